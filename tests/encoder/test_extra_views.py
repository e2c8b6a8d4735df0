import pytest
import torch
from torch import nn

from geomtx.encoder import AlternatingEncoder, ExtraViews, GlobalApproximation, PatchEmbedding
from geomtx.encoder.extra_views import shift_tokens
from geomtx.layers.block import TransformerBlock


def make_block(dim: int = 16) -> TransformerBlock:
    return TransformerBlock(dim, 2, qk_norm=True, layer_scale=0.5).double()


def make_encoder() -> AlternatingEncoder:
    encoder = AlternatingEncoder(
        PatchEmbedding(16, patch_size=4), [make_block() for _ in range(2)], [make_block() for _ in range(2)]
    )
    return encoder.double()


IMAGES, EXTRA = (2, 3, 3, 8, 12), (2, 2, 6, 16)


def test_extra_views_come_after_the_images_with_tokens_of_other_views():
    encoder, images, extra = make_encoder(), torch.rand(*IMAGES).double(), torch.randn(*EXTRA).double()
    tokens = encoder(images, extra_views=ExtraViews(extra), taps=(0, 1))
    assert tokens.layer(1).shape == (2, 5, 11, 32)
    # An image whose patches are the extra ones does the same.
    patches = encoder.backbone(images.flatten(0, 1) - 0.5).unflatten(0, (2, 3))

    class Given(nn.Module):
        dim, patch_size = 16, 4

        def forward(self, images, patch_mask=None):
            return torch.cat([patches, extra], dim=1).flatten(0, 1)

    class First(Given):
        def forward(self, images, patch_mask=None):
            return patches.flatten(0, 1)

    encoder.backbone = First()
    got = encoder(images, extra_views=ExtraViews(extra))
    encoder.backbone = Given()
    expected = encoder(torch.rand(2, 5, 3, 8, 12).double())
    for index in (0, 1):
        assert torch.equal(got.layer(index), expected.layer(index))


def test_isolated_views_change_nothing_for_others():
    encoder, images, extra = make_encoder(), torch.rand(*IMAGES).double(), torch.randn(*EXTRA).double()
    together = encoder(images, extra_views=ExtraViews(extra, isolated=True)).layer(1)
    torch.testing.assert_close(together[:, :3], encoder(images).layer(1))
    alone = encoder(images, extra_views=ExtraViews(extra[:, 1:], isolated=True)).layer(1)
    torch.testing.assert_close(together[:, 4:], alone[:, 3:])
    seen = encoder(images, extra_views=ExtraViews(extra)).layer(1)
    assert (seen[:, :3] - together[:, :3]).abs().max() > 1e-4
    changed = encoder(1 - images, extra_views=ExtraViews(extra, isolated=True)).layer(1)
    assert (changed[:, 3:] - together[:, 3:]).abs().max() > 1e-4  # they do see the images


@pytest.mark.parametrize("isolated", [True, False])
def test_masks_of_the_images_hold_for_extra_views(isolated):
    encoder, images, extra = make_encoder(), torch.rand(*IMAGES).double(), torch.randn(*EXTRA).double()
    mask = torch.rand(2, 3, 2, 3) > 0.4
    mask[:, :, 0, 0] = True
    tokens = encoder(images, patch_mask=mask, extra_views=ExtraViews(extra, isolated=isolated))
    assert tokens.mask[:, 3:].all()
    hidden = ~mask.repeat_interleave(4, -2).repeat_interleave(4, -1)[:, :, None]
    other = torch.where(hidden, torch.rand_like(images), images)
    again = encoder(other, patch_mask=mask, extra_views=ExtraViews(extra, isolated=isolated))
    torch.testing.assert_close(again.layer(1)[:, 3:], tokens.layer(1)[:, 3:])


@pytest.mark.parametrize("isolated", [True, False])
def test_scenes_of_a_batch_do_not_mix(isolated):
    encoder, images, extra = make_encoder(), torch.rand(*IMAGES).double(), torch.randn(*EXTRA).double()
    both = encoder(images, extra_views=ExtraViews(extra, isolated=isolated)).layer(1)
    one = encoder(images[1:], extra_views=ExtraViews(extra[1:], isolated=isolated)).layer(1)
    torch.testing.assert_close(both[1:], one)


@pytest.mark.parametrize(("first", "count"), [(0, 1), (1, 2), (1, 3)])
def test_a_shift_is_of_some_tokens_alone(first, count):
    x, shift = torch.randn(2, 5, 4, 8), torch.randn(2, 3, count, 8)
    shifted = shift_tokens(x, shift, first)
    end = first + count
    torch.testing.assert_close(shifted[:, :3, first:end], x[:, :3, first:end] + shift)
    assert torch.equal(shifted[:, 3:], x[:, 3:])
    assert torch.equal(shifted[:, :, :first], x[:, :, :first])
    assert torch.equal(shifted[:, :, end:], x[:, :, end:])


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
    with pytest.raises(ValueError, match=r"^extra_views.patches must have shape \(2, T, 6, 16\), got \(2, 2, 5, 16\)$"):
        encoder(images, extra_views=ExtraViews(extra[:, :, :5]))
    with pytest.raises(ValueError, match=r"^extra_views must be at least one view, got 0$"):
        encoder(images, extra_views=ExtraViews(extra[:, :0]))
    with pytest.raises(ValueError, match=r"^extra_views must be None with an approximation or chunks, got some$"):
        encoder(images, extra_views=ExtraViews(extra), approximation=GlobalApproximation(stride=2))
    with pytest.raises(ValueError, match=r"^camera_shift must have shape \(2, 3, 16\), got \(2, 5, 16\)$"):
        encoder(images, camera_shift=torch.zeros(2, 5, 16))
    with pytest.raises(ValueError, match=r"^patch_shift must have shape \(2, 3, \d+, 16\), got \(2, 3, 5, 16\)$"):
        encoder(images, patch_shift=torch.zeros(2, 3, 5, 16))
    cross = AlternatingEncoder(
        PatchEmbedding(16, patch_size=4), [make_block()], [make_block()], order=(("frame", "cross"),)
    ).double()
    with pytest.raises(ValueError, match=r"^extra_views must not be isolated with the scope 'cross', got"):
        cross(images, extra_views=ExtraViews(extra, isolated=True))

    class Plain(nn.Module):
        def forward(self, x, rope=None, mask=None):
            return x

    plain = AlternatingEncoder(PatchEmbedding(16, patch_size=4), [Plain()], [Plain()], rope_base=None).double()
    with pytest.raises(ValueError, match=r"^blocks must be TransformerBlock for isolated views, got Plain$"):
        plain(images, extra_views=ExtraViews(extra, isolated=True))
