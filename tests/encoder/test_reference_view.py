import pytest
import torch

from geomtx.encoder import choose_reference


def test_one_or_two_views_have_the_first_for_reference():
    for rule in ("saddle_balanced", "saddle_sim_range", "first", "middle"):
        assert choose_reference(torch.randn(2, 2, 8), rule).tolist() == [0, 0]


def test_fixed_rules():
    tokens = torch.randn(2, 5, 8)
    assert choose_reference(tokens, "first").tolist() == [0, 0]
    assert choose_reference(tokens, "middle").tolist() == [2, 2]


def test_the_balanced_rule_takes_the_view_in_the_middle_of_the_ranges():
    """Directions on an arc: the middle one is neither the most similar to all nor the least, nor the longest."""
    angles = torch.tensor([0.0, 0.3, 1.5, 1.6, 1.7])
    tokens = torch.stack([angles.cos(), angles.sin(), torch.ones(5)], dim=-1)[None]
    directions = torch.nn.functional.normalize(tokens, dim=-1)[0]
    similarity = directions @ directions.T
    mean = (similarity.sum(1) - 1) / 4
    features = torch.stack([mean, tokens[0].norm(dim=-1), directions.var(dim=-1)])
    low, high = features.amin(1, keepdim=True), features.amax(1, keepdim=True)
    wanted = ((features - low) / (high - low + 1e-8) - 0.5).abs().sum(0)
    assert choose_reference(tokens).item() == wanted.argmin().item()


def test_the_widest_range_of_similarities():
    tokens = torch.tensor([[[1.0, 0.0], [1.0, 0.1], [-1.0, 0.05], [0.0, 1.0]]])
    similarity = torch.nn.functional.normalize(tokens, dim=-1)[0]
    similarity = similarity @ similarity.T - torch.eye(4)
    wanted = (similarity.amax(1) - similarity.amin(1)).argmax().item()
    assert choose_reference(tokens, "saddle_sim_range").item() == wanted


def test_views_that_may_not_be_chosen():
    tokens = torch.randn(1, 4, 8)
    best = choose_reference(tokens).item()
    valid = torch.ones(1, 4, dtype=torch.bool)
    valid[0, best] = False
    assert choose_reference(tokens, valid=valid).item() != best


def test_half_precision_chooses_as_float32():
    tokens = torch.randn(3, 6, 16).bfloat16()
    assert torch.equal(choose_reference(tokens), choose_reference(tokens.float()))


@pytest.mark.usefixtures("unchecked")
def test_an_unknown_rule():
    with pytest.raises(ValueError, match=r"^rule must be one of 'saddle_balanced', .*, got 'last'"):
        choose_reference(torch.zeros(1, 3, 4), "last")
