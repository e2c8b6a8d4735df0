import pytest
import torch
from torch import Tensor, nn

from geomtx import VGGT, FeatureExtractor
from lean import build_lean, lean_config
from reference import randomize


@pytest.fixture
def model() -> VGGT:
    return build_lean(depth=4, taps=(0, 1, 2, 3), heads=("camera", "depth")).double()


@pytest.fixture
def images() -> Tensor:
    return torch.rand(2, 3, 3, 28, 42, dtype=torch.float64)


@pytest.mark.parametrize("bare", [False, True])
def test_maps_are_the_patches_of_the_layers(model, images, bare):
    extractor = FeatureExtractor(model.encoder if bare else model, layers=(3, 1))
    maps, tokens = extractor(images), model.encoder(images)
    assert maps.keys() == {1, 3}
    for layer, found in maps.items():
        assert found.shape == (2, 3, 64, 2, 3)
        for row, column in ((0, 0), (1, 2), (0, 1)):
            token = tokens.layer(layer)[:, :, tokens.num_special + 3 * row + column]
            assert torch.equal(found[..., row, column], token)
    torch.testing.assert_close(extractor(images[0])[1], maps[1][:1], rtol=1e-10, atol=1e-10)  # without the B axis


def test_layers_that_no_head_reads(images):
    deep = randomize(VGGT(lean_config(depth=6, taps=(0, 2, 4, 5), heads=("depth",)))).double()
    assert FeatureExtractor(deep).layers == (0, 2, 4, 5)
    outputs = []
    deep.encoder.global_blocks[3].register_forward_hook(lambda *args: outputs.append(args[2]))
    (found,) = FeatureExtractor(deep, layers=(3,))(images).values()
    last = outputs[0].unflatten(1, (3, -1))[:, :, 5:]
    assert torch.equal(found[:, :, 32:].flatten(3), last.transpose(2, 3))


def test_nothing_after_the_last_layer_is_computed(model, images):
    for block in (model.encoder.frame_blocks[2], model.camera_head):
        block.register_forward_hook(lambda *_: pytest.fail("computed in vain"))
    assert FeatureExtractor(model, layers=(1,))(images).keys() == {1}


def test_tokens_have_the_special_ones_too(model, images):
    tokens = FeatureExtractor(model, layers=(2,)).read_tokens(images)
    assert tokens.layers.keys() == {2}
    assert torch.equal(tokens.layer(2), model.encoder(images).layer(2))
    assert model.depth_head.decoder.dim == tokens.layer(2).shape[-1]


def test_scenes_of_a_batch_do_not_meet_and_masked_patches_are_zero(model, images):
    extractor, mask = FeatureExtractor(model, layers=(1,)), torch.rand(2, 3, 2, 3) < 0.6
    both = extractor(images, patch_mask=mask)[1]
    for scene in range(2):
        alone = extractor(images[scene], patch_mask=mask[scene])[1][0]
        torch.testing.assert_close(both[scene], alone, rtol=1e-10, atol=1e-10)
    assert (both.movedim(2, -1)[~mask] == 0).all()
    assert (both.movedim(2, -1)[mask] != 0).any(-1).all()
    changed = torch.where(mask.repeat_interleave(14, 2).repeat_interleave(14, 3)[:, :, None], images, 1 - images)
    assert torch.equal(extractor(changed, patch_mask=mask)[1], both)


def test_frozen_it_records_nothing_and_stays_in_evaluation_mode(model, images):
    extractor = FeatureExtractor(model, layers=(1,), frozen=True)
    assert not extractor.encoder.training
    net = nn.Sequential(extractor).train()
    assert extractor.training
    assert not any(module.training for module in extractor.encoder.modules())
    assert not net(images)[1].requires_grad
    assert torch.is_grad_enabled()
    learning = FeatureExtractor(model, layers=(1,)).train()
    assert learning.encoder.training
    learning(images)[1].square().sum().backward()
    learned = {name for name, p in model.encoder.named_parameters() if p.grad is not None and p.grad.any()}
    assert any(name.startswith("global_blocks.1.") for name in learned)
    assert not any(name.startswith(("global_blocks.2.", "frame_blocks.2.")) for name in learned)


def test_what_can_not_be_extracted(model):
    with pytest.raises(ValueError, match=r"^model must have an AlternatingEncoder, or be one, got Linear$"):
        FeatureExtractor(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"^layer must be one of 0, 1, 2, 3, got 4$"):
        FeatureExtractor(model, layers=(1, 4))
    with pytest.raises(ValueError, match=r"^layers must name at least one, got \(\)$"):
        FeatureExtractor(model, layers=())
    assert "layers=(1,), frozen=False" in repr(FeatureExtractor(model, layers=(1,)))
