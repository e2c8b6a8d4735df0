import torch

from geomtx.losses.reduce import masked_mean, select


def test_mean_of_the_selected():
    values, mask = torch.randn(3, 4, 5, dtype=torch.float64), torch.rand(3, 4, 1) > 0.5
    mask[0, 0] = True
    torch.testing.assert_close(masked_mean(values, mask), values[mask.expand_as(values)].mean())
    torch.testing.assert_close(masked_mean(values), values.mean())


def test_hidden_values_have_no_influence_and_no_gradient():
    values = torch.tensor([1.0, float("nan"), float("inf"), 3.0], requires_grad=True)
    mask = torch.tensor([True, False, False, True])
    masked_mean(values, mask).backward()
    torch.testing.assert_close(masked_mean(values, mask).detach(), torch.tensor(2.0))
    torch.testing.assert_close(values.grad, torch.tensor([0.5, 0.0, 0.0, 0.5]))
    assert select(values, mask).isfinite().all()


def test_mean_of_nothing_is_a_zero_with_a_graph():
    values = torch.full((4,), float("nan"), requires_grad=True)
    mean = masked_mean(values, torch.zeros(4, dtype=torch.bool))
    mean.backward()
    assert mean == 0
    assert (values.grad == 0).all()
    assert masked_mean(torch.zeros(0, requires_grad=True)).requires_grad
