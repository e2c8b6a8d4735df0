import pytest
import torch

from geomtx.encoder import SpecialTokens
from reference import without_gradient


@pytest.mark.parametrize("num_registers", [0, 1, 4])
@pytest.mark.parametrize("num_views", [1, 2, 5])
def test_first_view_has_a_set_of_its_own(num_registers, num_views):
    special = SpecialTokens(6, num_registers=num_registers)
    patches = torch.randn(2, num_views, 3, 6)
    out = special(patches)
    assert special.num_tokens == 1 + num_registers
    assert out.shape == (2, num_views, special.num_tokens + 3, 6)
    assert torch.equal(out[:, :, special.num_tokens :], patches)
    for view in range(num_views):
        kind = min(view, 1)
        for scene in range(2):
            assert torch.equal(out[scene, view, 0], special.camera[0, kind, 0])
            assert torch.equal(out[scene, view, 1 : special.num_tokens], special.registers[0, kind])


def test_views_after_the_first_of_their_scene():
    special = SpecialTokens(6)
    patches = torch.randn(2, 5, 3, 6)
    whole = special(patches)
    for first, num in ((0, 2), (1, 1), (3, 2)):
        part = special(patches[:, first : first + num], first_view=first)
        assert torch.equal(part, whole[:, first : first + num])


def test_every_parameter_gets_a_gradient():
    special = SpecialTokens(6)
    special(torch.randn(2, 3, 4, 6)).square().sum().backward()
    assert without_gradient(special) == []


def test_a_new_model_tells_the_first_view_from_the_others():
    special = SpecialTokens(64)
    assert not torch.equal(special.camera[:, 0], special.camera[:, 1])
    assert special.camera.std().item() == pytest.approx(0.01, rel=0.5)
    assert SpecialTokens(64, std=0.3).registers.std().item() == pytest.approx(0.3, rel=0.5)


def test_takes_the_precision_of_the_patches():
    assert SpecialTokens(4)(torch.randn(1, 2, 3, 4).bfloat16()).dtype == torch.bfloat16
