import pytest
import torch
from torch.nn import functional as F

from geomtx.geometry import fit_intrinsics, nearest_rotation
from geomtx.heads import MetricScaleHead, PixelShuffle, TokenDecoder, Upsampler
from geomtx.heads.head import run_head
from geomtx.heads.point_map import rigid_of_rows
from geomtx.inference.pieces import heads_in_chunks
from geomtx.inference.plan import MemoryPlan
from geomtx.layers import apply_rotary
from geomtx.layers.conv import NormedResidualConv
from heads.random_tokens import cast, random_tokens


def test_intrinsics_of_exact_points_are_those_that_made_them():
    focal, (height, width) = torch.tensor([300.0, 420.0]), (28, 42)
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    pixels = torch.stack([columns - (width - 1) / 2, rows - (height - 1) / 2], dim=-1)
    slopes = pixels / focal
    slopes[:5] = torch.nan
    mask = torch.ones(height, width, dtype=torch.bool)
    mask[:5] = False
    expected = torch.tensor([[300.0, 0.0, 20.5], [0.0, 420.0, 13.5], [0.0, 0.0, 1.0]])
    torch.testing.assert_close(fit_intrinsics(slopes, mask), expected)
    # Focal lengths are those of least squares: no other ones project the points better.
    noisy = slopes.nan_to_num() + 0.01 * torch.randn_like(slopes)
    found = fit_intrinsics(noisy)
    best = found.diagonal()[:2]

    def error(focal: torch.Tensor) -> torch.Tensor:
        return (focal * noisy - pixels).square().sum()

    assert all(error(best) < error(best * (1 + step)) for step in (torch.tensor([1e-2, 0.0]), torch.tensor([0, -1e-2])))
    assert (fit_intrinsics(slopes, torch.zeros_like(mask)).diagonal() == torch.tensor([0.0, 0.0, 1.0])).all()


def test_the_nearest_rotation():
    matrices = torch.randn(20, 3, 3, dtype=torch.float64)
    found = nearest_rotation(matrices)
    torch.testing.assert_close(found @ found.mT, torch.eye(3, dtype=torch.float64).expand(20, 3, 3))
    torch.testing.assert_close(torch.linalg.det(found), torch.ones(20, dtype=torch.float64))
    step = torch.linalg.matrix_exp(torch.tensor([[0.0, -0.05, 0.02], [0.05, 0.0, 0.04], [-0.02, -0.04, 0.0]]).double())
    for other in (found @ step, found @ step.mT):
        assert ((found - matrices).square().sum((-2, -1)) < (other - matrices).square().sum((-2, -1))).all()


def test_gradients_at_rotations_are_finite():
    """Where singular values are equal, those of a decomposition itself are not."""
    rows = torch.eye(3, dtype=torch.float64).expand(2, 3, 3).clone().requires_grad_()
    rigid = rigid_of_rows(torch.zeros(2, 3, dtype=torch.float64), rows)
    (rigid * torch.randn_like(rigid)).sum().backward()
    assert rows.grad.isfinite().all()
    assert rows.grad.abs().max() > 1e-3


@torch.no_grad()
def test_a_token_holds_the_pixels_of_its_patch():
    shuffle = PixelShuffle(5, 2, patch_size=3).double()
    tokens = torch.randn(1, 6, 5, dtype=torch.float64)
    maps = shuffle(tokens, (2, 3), (6, 9))
    numbers = shuffle.project(tokens)
    for channel, row, column in ((0, 0, 0), (1, 5, 8), (1, 3, 4)):
        token = (row // 3) * 3 + column // 3
        place = channel * 9 + 3 * (row % 3) + column % 3
        assert maps[0, channel, row, column] == numbers[0, token, place]


@torch.no_grad()
def test_the_upsampler_repeats_its_border_and_knows_where_pixels_are():
    upsampler = Upsampler(16, stages=(16, 16, 16), out_dims=(2, 1)).double()
    tokens = torch.randn(1, 6, 16, dtype=torch.float64)
    maps = upsampler(tokens, (2, 3), (28, 42))
    assert maps.shape == (1, 3, 28, 42)
    even = upsampler(tokens[:, :1].expand(1, 6, 16), (2, 3), (28, 42))
    assert (even - even.mean((-2, -1), keepdim=True)).abs().max() > 1e-3  # by the position alone
    for unit in (NormedResidualConv(16),):
        flat = unit(torch.randn(1, 16, 1, 1).expand(1, 16, 5, 6))
        torch.testing.assert_close(flat, flat[..., :1, :1].expand_as(flat))
    with pytest.raises(ValueError, match=r"^channels of a stage must be a multiple of 16, got 24$"):
        Upsampler(16, stages=(24,), out_dims=(1,))


@torch.no_grad()
def test_the_metric_scale_is_that_of_attention_to_all_tokens_at_once():
    head = MetricScaleHead(16, 16, 2, num_heads=2).double().eval()
    mask = torch.rand(2, 3, 9) < 0.7
    mask[:, 0, 0] = True
    mask[1, 2] = False
    tokens = random_tokens(layers=(3,), mask=mask)
    query = head.project_token(head.token[:, 0]).expand(2, -1)
    for block in head.blocks:
        projected, rope, _ = head._keys(tokens)
        normed = block.token_norm(projected)
        keys = apply_rotary(block.key(normed).unflatten(-1, (2, 8)), rope.over_heads()).flatten(1, 2)
        values = block.value(normed).unflatten(-1, (2, 8)).flatten(1, 2)
        asked = block.query(block.query_norm(query)).unflatten(-1, (2, 8))[:, :, None]
        found = F.scaled_dot_product_attention(
            asked, keys.transpose(1, 2), values.transpose(1, 2), mask.flatten(1)[:, None, None]
        )
        query = query + block.attention_out(found.flatten(1))
        query = query + block.mlp(block.mlp_norm(query))
    expected = head.out(head.contract(query)).exp()[:, 0]
    torch.testing.assert_close(head(tokens), expected)
    in_chunks = heads_in_chunks(torch.device("cpu"), MemoryPlan(2))
    torch.testing.assert_close(run_head(head, tokens, None, each_view=in_chunks), expected)
    unseen = head(tokens._replace(mask=torch.zeros_like(mask)))
    assert unseen.isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    head = MetricScaleHead(16, 16, 2, num_heads=2).eval()
    tokens = random_tokens(layers=(3,))
    expected = head(cast(tokens, torch.float32))
    found = head.to(dtype)(cast(tokens, dtype))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=3e-2, atol=3e-2)
    trunk = TokenDecoder(16, 16, 1, num_heads=2, out_dim=8)
    expected = trunk(cast(tokens, torch.float32))
    assert expected.shape == (6, 9, 8)
    torch.testing.assert_close(trunk.to(dtype)(cast(tokens, dtype)).float(), expected, rtol=3e-2, atol=3e-2)
