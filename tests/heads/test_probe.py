import torch
from torch import Tensor, nn

from geomtx.heads.probe import make_probe, unmake_probe
from geomtx.types import ProjectedTokens, Tokens


class Sum(nn.Module):
    def forward(self, tokens: Tokens | ProjectedTokens, factor: float = 1.0) -> Tensor:
        maps = tokens.maps if isinstance(tokens, ProjectedTokens) else tokens.layers.values()
        return factor * sum(each.sum() for each in maps)


def tokens_of(layer: Tensor) -> Tokens:
    return Tokens({0: layer}, 1, (28, 28), (2, 2))


def test_the_gradient_ends_and_the_value_does_not_change():
    layer, head = torch.rand(1, 2, 5, 3, requires_grad=True), Sum()
    before = head(tokens_of(layer), 2.0)
    make_probe(head)
    make_probe(head)  # twice is once
    probed = head(tokens_of(layer), 2.0)
    assert torch.equal(probed, before)
    assert before.requires_grad
    assert not probed.requires_grad
    unmake_probe(head)
    assert head(tokens_of(layer)).requires_grad
    assert len(head._forward_pre_hooks) == 0


def test_other_hooks_stay():
    head, calls = Sum(), []
    head.register_forward_pre_hook(lambda *_: calls.append(1))
    make_probe(head)
    unmake_probe(head)
    head(tokens_of(torch.rand(1, 1, 5, 3)))
    assert calls == [1]


def test_projected_tokens_pass():
    head, maps = Sum(), torch.rand(2, 3, 2, 2)
    make_probe(head)
    assert torch.equal(head(ProjectedTokens((maps,), (1, 2), (28, 28))), maps.sum())
