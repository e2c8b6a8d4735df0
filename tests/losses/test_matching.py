import pytest
import torch
from torch.nn import functional as F

from geomtx.losses import MatchingSettings, matching_loss, matching_precision
from geomtx.types import DenseMap

B, N, D = 2, 6, 5


@pytest.fixture
def maps():
    """Descriptors and confidence of two images, and pixels of them, no two the same."""
    sizes = ((4, 5), (3, 6))
    made = []
    for height, width in sizes:
        value = F.normalize(torch.randn(B, height, width, D, dtype=torch.float64), dim=-1)
        made.append(DenseMap(value.requires_grad_(), (0.5 + torch.rand(B, height, width).double()).requires_grad_()))
    matches = []
    for height, width in sizes:
        places = torch.stack([torch.randperm(height * width)[:N] for _ in range(B)])
        matches.append(torch.stack([places % width, places // width], dim=-1))
    valid = torch.tensor([[True, True, False, True, False, True], [True, False, True, True, True, True]])
    return *made, tuple(matches), valid


def by_hand(first, second, matches, valid, kind) -> dict[tuple[int, int], torch.Tensor]:
    """Loss of each match, with loops."""
    losses = {}
    for scene in range(B):
        a = [first.value[scene, y, x] for x, y in matches[0][scene].tolist()]
        b = [second.value[scene, y, x] for x, y in matches[1][scene].tolist()]
        e = torch.stack([torch.stack([(one @ other / 0.05).exp() for other in b]) for one in a])
        for n in range(N):
            ratios = e[n, n] / e[n].sum(), e[n, n] / e[:, n].sum()
            loss = {
                "proper": -ratios[0].clamp(min=1e-8).log() - ratios[1].clamp(min=1e-8).log(),
                "dual": -(ratios[0] * ratios[1]).clamp(min=1e-8).log(),
                "all": -(e[n, n] / e.sum()).clamp(min=1e-8).log(),
            }[kind]
            if valid[scene, n]:
                losses[scene, n] = loss
    return losses


@pytest.mark.parametrize("kind", ["proper", "dual", "all"])
def test_equals_loops(maps, kind):
    losses = by_hand(*maps, kind)
    settings = MatchingSettings(kind=kind, confidence=None)
    torch.testing.assert_close(matching_loss(*maps, settings), torch.stack(list(losses.values())).mean())


@pytest.mark.parametrize("how", ["mean", "prod"])
@pytest.mark.parametrize("negatives", [None, 0.3])
def test_confidence_weighs_matches_and_is_taught_by_negatives(maps, how, negatives):
    first, second, matches, valid = maps
    losses = by_hand(*maps, "proper")
    terms, singles = [], []
    for scene in range(B):
        for n in range(N):
            p, q = (
                each.confidence[scene, xy[scene, n, 1], xy[scene, n, 0]]
                for each, xy in zip((first, second), matches, strict=True)
            )
            if valid[scene, n]:
                both = (p + q) / 2 if how == "mean" else p * q
                terms.append(both * losses[scene, n] - 10 * both.log())
            else:
                singles += [p, q]
    expected = torch.stack(terms).mean()
    if negatives is not None:
        level = torch.stack(list(losses.values())).detach().quantile(negatives)
        expected = expected + torch.stack([c * level - 10 * c.log() for c in singles]).mean()
    loss = matching_loss(*maps, MatchingSettings(confidence=how, negatives=negatives))
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert first.value.grad.isfinite().all()
    x, y = matches[0][0, 2]  # a negative
    assert (first.confidence.grad[0, y, x] != 0) == (negatives is not None)


def test_no_match_at_all_is_finite(maps):
    first, second, matches, valid = maps
    loss = matching_loss(first, second, matches, torch.zeros_like(valid), MatchingSettings(negatives=0.5))
    assert loss.isfinite()


def test_precision_counts_better_candidates():
    eye = torch.eye(6)[None]  # one row of six pixels whose descriptors are alike in both images
    pixels = torch.stack([torch.arange(4), torch.zeros(4, dtype=torch.long)], dim=-1)[None]
    all_valid = torch.ones(1, 4, dtype=torch.bool)
    first, second = eye[:, None], eye[:, None].clone()
    assert matching_precision(first, second, (pixels, pixels), all_valid) == 1
    second[0, 0, 1] = 2 * second[0, 0, 0]  # a better candidate for match 0; match 1 is lost to all that score more
    found = matching_precision(first, second, (pixels, pixels), all_valid)
    assert found == pytest.approx((1 / 2 + 1 / 1 + 1 + 1) / 4)
    second[0, 0, 4] = 3 * second[0, 0, 0]  # another one, outside the matches
    for others, rank in ((0, 2), (1, 3), (2, 3), (9, 3)):
        found = matching_precision(first, second, (pixels, pixels), all_valid, num_others=others)
        assert found == pytest.approx((1 / rank + 1 + 1 + 1) / 4)


def test_wrong_inputs(maps):
    with pytest.raises(ValueError, match=r"^kind must be one of 'proper', 'dual', 'all', got 'half'$"):
        matching_loss(*maps, MatchingSettings(kind="half"))
    with pytest.raises(ValueError, match=r"^negatives must be in 0 … 1, got 2$"):
        matching_loss(*maps, MatchingSettings(negatives=2))
    with pytest.raises(ValueError, match=r"^temperature must be positive, got 0$"):
        matching_loss(*maps, MatchingSettings(0))
