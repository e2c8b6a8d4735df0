import pytest
import torch

from geomtx.layers import GridRotary, RotaryTable, apply_rotary, grid_positions, rotary_table
from reference import rotate

D = 16


def table_of(positions: torch.Tensor, **options) -> RotaryTable:
    return rotary_table(positions, D, dtype=torch.float64, **options)


def test_the_origin_is_the_identity():
    x = torch.randn(2, 3, D)
    table = rotary_table(torch.zeros(3, 2, dtype=torch.long), D)
    assert torch.equal(apply_rotary(x, table), x)
    assert torch.equal(table.cos, torch.ones(3, D))
    assert torch.equal(table.sin, torch.zeros(3, D))


@pytest.mark.parametrize("base", [100.0, 10000.0, 2.5])
@pytest.mark.parametrize("head_dim", [4, 16, 64])
def test_equals_complex_rotation(base, head_dim):
    positions = torch.randint(0, 60, (9, 2))
    x = torch.randn(2, 3, 9, head_dim, dtype=torch.float64)
    table = rotary_table(positions, head_dim, base=base, dtype=torch.float64)
    torch.testing.assert_close(apply_rotary(x, table), rotate(x, positions, base), rtol=0, atol=1e-12)


def test_first_half_turns_with_the_row_and_second_with_the_column():
    x = torch.randn(1, D)
    rows_only = apply_rotary(x, rotary_table(torch.tensor([[7, 0]]), D))
    columns_only = apply_rotary(x, rotary_table(torch.tensor([[0, 7]]), D))
    assert torch.equal(rows_only[:, D // 2 :], x[:, D // 2 :])
    assert torch.equal(columns_only[:, : D // 2], x[:, : D // 2])
    assert not torch.allclose(rows_only[:, : D // 2], x[:, : D // 2], atol=0.1)
    assert not torch.allclose(columns_only[:, D // 2 :], x[:, D // 2 :], atol=0.1)


def test_scores_depend_on_differences_of_positions_only():
    q, k = torch.randn(2, 1, D, dtype=torch.float64)
    query, key = torch.tensor([[3, 11]]), torch.tensor([[8, 2]])

    def score(shift):
        return (apply_rotary(q, table_of(query + shift)) * apply_rotary(k, table_of(key + shift))).sum()

    for shift in ([5, 0], [0, 17], [40, 31]):
        torch.testing.assert_close(score(torch.tensor(shift)), score(torch.tensor([0, 0])), rtol=0, atol=1e-12)
    moved = (apply_rotary(q, table_of(query)) * apply_rotary(k, table_of(key + 1))).sum()
    assert (moved - score(torch.tensor([0, 0]))).abs() > 1e-3


def test_lengths_are_preserved():
    x = torch.randn(4, 30, D, dtype=torch.float64)
    turned = apply_rotary(x, table_of(torch.randint(0, 100, (30, 2))))
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1), rtol=0, atol=1e-12)


def test_turns_add_up():
    x = torch.randn(5, D, dtype=torch.float64)
    a, b = torch.randint(0, 20, (2, 5, 2))
    twice = apply_rotary(apply_rotary(x, table_of(a)), table_of(b))
    torch.testing.assert_close(twice, apply_rotary(x, table_of(a + b)), rtol=0, atol=1e-12)


def test_slowest_and_fastest_pairs_tell_the_base():
    angles = torch.atan2(*table_of(torch.tensor([[1, 0]]), base=100.0)[1::-1])[0]
    assert (angles[: D // 4] < 0).all(), "the sign of a pair's first is in the table"
    angles = angles.abs()
    torch.testing.assert_close(angles[0], torch.tensor(1.0, dtype=torch.float64))
    torch.testing.assert_close(angles[D // 4 - 1], torch.tensor(100.0, dtype=torch.float64) ** -(1 - 4 / D))
    assert torch.equal(angles[: D // 4], angles[D // 4 : D // 2]), "angles are repeated, not interleaved"


def test_grid_counts_patches_from_one_row_by_row():
    positions = grid_positions((2, 3), 2, torch.device("cpu"))
    assert positions.tolist() == [[0, 0], [0, 0], [1, 1], [1, 2], [1, 3], [2, 1], [2, 2], [2, 3]]


def test_repeat_puts_views_one_after_the_other():
    table = table_of(grid_positions((2, 3), 1, torch.device("cpu")))
    repeated = table.repeat(3)
    for ours, once in zip(repeated[:2], table[:2], strict=True):
        assert torch.equal(ours, torch.cat([once, once, once]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_rounded_once(dtype):
    """Tables of half precision would be off by hundredths."""
    positions = torch.randint(1, 38, (50, 2))
    x = torch.randn(50, D).to(dtype)
    out = apply_rotary(x, rotary_table(positions, D))
    assert out.dtype == dtype
    exact = rotate(x.double(), positions, 100.0)
    assert ((out.double() - exact).abs() / x.double().abs().amax()).max() < torch.finfo(dtype).eps


def test_gradient_is_the_inverse_rotation():
    x = torch.randn(5, D, dtype=torch.float64, requires_grad=True)
    table = table_of(torch.randint(0, 20, (5, 2)))
    seed = torch.randn(5, D, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(apply_rotary(x, table), x, seed)
    torch.testing.assert_close(apply_rotary(gradient, table), seed, rtol=0, atol=1e-12)


def test_head_dim_must_split_into_pairs_of_two_axes():
    with pytest.raises(ValueError, match=r"^head_dim must be a multiple of 4, got 6$"):
        rotary_table(torch.zeros(1, 2, dtype=torch.long), 6)


# Positions from -1 to 1


def test_coordinates_of_a_grid_are_anchored_at_its_corner():
    """The longer side reaches from -1 to 1, by half a patch less; the shorter one begins with it."""
    rotary = GridRotary(8)
    rotary.periods[:] = torch.tensor([2 * torch.pi, 4 * torch.pi])
    table = rotary((2, 3), 1, torch.float64)
    angles = torch.atan2(-table.sin, table.cos)[:, :4]  # of the first channel of each pair
    y, x = [-2 / 3, 0], [-2 / 3, 0, 2 / 3]
    expected = [[0, 0, 0, 0], *([b, b / 2, a, a / 2] for b in y for a in x)]
    torch.testing.assert_close(angles, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-7)


def test_pairs_are_half_a_head_apart():
    rotary = GridRotary(16, base=30.0)
    x, table = torch.randn(3, 2 + 12, 16, dtype=torch.float64), rotary((4, 3), 2, torch.float64)
    rows, columns = torch.meshgrid(torch.arange(4.0), torch.arange(3.0), indexing="ij")
    places = [(2 * (each.flatten().double() + 0.5) / 4 - 1)[:, None] for each in (rows, columns)]
    periods = 30.0 ** (2 * torch.arange(4, dtype=torch.float64) / 8)
    turns = torch.polar(torch.ones(12, 8).double(), 2 * torch.pi * torch.cat([p / periods for p in places], dim=1))
    turned = torch.complex(x[..., 2:, :8], x[..., 2:, 8:]) * turns
    expected = torch.cat([x[..., :2, :], torch.cat([turned.real, turned.imag], dim=-1)], dim=-2)
    torch.testing.assert_close(apply_rotary(x, table), expected, rtol=0, atol=1e-6)  # periods are float32
    assert torch.equal(apply_rotary(x, table)[..., :2, :], x[..., :2, :])
    torch.testing.assert_close(
        apply_rotary(x[..., :, None, :], table.over_heads())[..., 0, :], apply_rotary(x, table), rtol=0, atol=0
    )
    part = slice(3, 9)
    torch.testing.assert_close(
        apply_rotary(x[:, part], table.rows(part)), apply_rotary(x, table)[:, part], rtol=0, atol=0
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_periods_stay_exact_in_a_model_of_half_precision(dtype):
    rotary = GridRotary(64)
    exact = rotary.periods.clone()
    assert torch.equal(torch.nn.Sequential(rotary).to(dtype)[0].periods, exact)
    assert torch.equal(rotary.double().periods, exact.double())
    with pytest.raises(ValueError, match=r"^head_dim must be a multiple of 4, got 6$"):
        GridRotary(6)
