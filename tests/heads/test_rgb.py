import pytest
import torch

from geomtx.heads import DPTDecoder, RGBHead
from geomtx.types import Tokens


def make_head() -> RGBHead:
    return RGBHead(DPTDecoder(16, 8, channels=(8, 8, 8, 8), taps=(0, 1, 2, 3)), hidden_dim=8)


def make_tokens(views: int = 3) -> Tokens:
    layers = {index: torch.randn(2, views, 1 + 12, 16) for index in range(4)}
    return Tokens(layers, 1, (24, 32), (3, 4))


def test_pictures_are_colours_and_start_at_about_grey():
    head, tokens = make_head(), make_tokens()
    grey = head(tokens)
    assert grey.shape == (2, 3, 3, 24, 32)
    assert (grey - 0.5).abs().max() < 0.3
    torch.nn.init.normal_(head.out.weight)
    pictures = head(tokens)
    assert pictures.std() > 0.01
    assert 0 <= pictures.min() <= pictures.max() <= 1


def test_every_view_by_itself_and_every_parameter_has_a_gradient():
    head, tokens = make_head(), make_tokens()
    torch.nn.init.normal_(head.out.weight)
    torch.testing.assert_close(head(tokens.select_views(slice(1, None))), head(tokens)[:, 1:])
    head(tokens).square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in head.parameters())


@pytest.mark.usefixtures("unchecked")
def test_tokens_of_another_width():
    with pytest.raises(ValueError, match=r"^tokens must have shape \(B, S, P, 16\), got \(2, 3, 13, 8\)$"):
        make_head()(make_tokens()._replace(layers={index: torch.randn(2, 3, 13, 8) for index in range(4)}))
