"""Patch tokens of further views, and vectors that are added to tokens."""

import pytest
import torch
from torch import Tensor, nn

from geomtx.encoder import AlternatingEncoder, PatchEmbedding
from geomtx.layers.block import TransformerBlock
from geomtx.types import Tokens


def make_block(dim: int = 16) -> TransformerBlock:
    return TransformerBlock(dim, 2, qk_norm=True, layer_scale=0.5).double()


def make_encoder() -> AlternatingEncoder:
    encoder = AlternatingEncoder(
        PatchEmbedding(16, patch_size=4), [make_block() for _ in range(2)], [make_block() for _ in range(2)]
    )
    return encoder.double()


IMAGES, EXTRA = (2, 3, 3, 8, 12), (2, 2, 6, 16)


def encode(encoder: AlternatingEncoder, images: Tensor, extra: Tensor, **options: Tensor) -> Tokens:
    views = encoder.embed(images, extra_patches=extra, **options)
    return encoder.collect(views, encoder.attention(views))


def test_extra_views_come_after_the_images_with_tokens_of_other_views():
    encoder, images, extra = make_encoder(), torch.rand(*IMAGES).double(), torch.randn(*EXTRA).double()
    assert encode(encoder, images, extra).layer(1).shape == (2, 5, 11, 32)
    assert torch.equal(encode(encoder, images[:1], extra[0]).layer(1), encode(encoder, images[:1], extra[:1]).layer(1))
    # An image whose patches are the extra ones does the same.
    patches = encoder.backbone(images.flatten(0, 1) - 0.5).unflatten(0, (2, 3))

    class Given(nn.Module):
        dim, patch_size = 16, 4

        def __init__(self, patches: Tensor) -> None:
            super().__init__()
            self.patches = patches

        def forward(self, images, patch_mask=None):
            return self.patches.flatten(0, 1)

    encoder.backbone = Given(patches)
    got = encode(encoder, images, extra)
    encoder.backbone = Given(torch.cat([patches, extra], dim=1))
    expected = encoder(torch.rand(2, 5, 3, 8, 12).double())
    for index in (0, 1):
        assert torch.equal(got.layer(index), expected.layer(index))


def test_masks_of_the_images_hold_for_extra_views():
    encoder, images, extra = make_encoder(), torch.rand(*IMAGES).double(), torch.randn(*EXTRA).double()
    mask = torch.rand(2, 3, 2, 3) > 0.4
    mask[:, :, 0, 0] = True
    tokens = encode(encoder, images, extra, patch_mask=mask)
    assert tokens.mask[:, 3:].all()
    hidden = ~mask.repeat_interleave(4, -2).repeat_interleave(4, -1)[:, :, None]
    other = torch.where(hidden, torch.rand_like(images), images)
    again = encode(encoder, other, extra, patch_mask=mask)
    torch.testing.assert_close(again.layer(1)[:, 3:], tokens.layer(1)[:, 3:])


def test_scenes_of_a_batch_do_not_mix():
    encoder, images, extra = make_encoder(), torch.rand(*IMAGES).double(), torch.randn(*EXTRA).double()
    both, one = encode(encoder, images, extra).layer(1), encode(encoder, images[1:], extra[1:]).layer(1)
    torch.testing.assert_close(both[1:], one)


def test_shifts_are_of_their_tokens_alone():
    encoder, images, extra = make_encoder(), torch.rand(*IMAGES).double(), torch.randn(*EXTRA).double()
    plain = encoder.embed(images, extra_patches=extra).x
    camera, patches = torch.randn(2, 3, 16).double(), torch.randn(2, 3, 6, 16).double()
    shifted = encoder.embed(images, extra_patches=extra, camera_shift=camera, patch_shift=patches).x
    expected = plain.clone()
    expected[:, :3, 0] += camera
    expected[:, :3, 5:] += patches
    torch.testing.assert_close(shifted, expected)


def test_a_shift_of_nothing_changes_nothing_and_of_something_does():
    encoder, images = make_encoder(), torch.rand(*IMAGES).double()
    before = encoder(images).layer(1)
    assert torch.equal(encoder(images, camera_shift=torch.zeros(2, 3, 16).double()).layer(1), before)
    assert (encoder(images, camera_shift=torch.ones(2, 3, 16).double()).layer(1) - before).abs().max() > 1e-3
    assert torch.equal(encoder(images, patch_shift=torch.zeros(2, 3, 6, 16).double()).layer(1), before)
    assert (encoder(images, patch_shift=torch.ones(2, 3, 6, 16).double()).layer(1) - before).abs().max() > 1e-3
    single = encoder(images[0], camera_shift=torch.ones(3, 16).double()).layer(1)
    assert single.shape == (1, 3, 11, 32)


@pytest.mark.usefixtures("unchecked")
def test_errors():
    encoder, images, extra = make_encoder(), torch.rand(*IMAGES).double(), torch.randn(*EXTRA).double()
    with pytest.raises(ValueError, match=r"^extra_patches must have shape \(2, T, 6, 16\), got \(2, 2, 5, 16\)$"):
        encoder.embed(images, extra_patches=extra[:, :, :5])
    with pytest.raises(ValueError, match=r"^extra_patches must "):
        encoder.embed(images, extra_patches=extra[:, :0])
    with pytest.raises(ValueError, match=r"^camera_shift must "):
        encoder(images, camera_shift=torch.zeros(2, 5, 16))
    with pytest.raises(ValueError, match=r"^patch_shift must "):
        encoder(images, patch_shift=torch.zeros(2, 3, 5, 16))
