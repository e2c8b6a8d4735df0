import copy

import pytest
import torch
from torch import Tensor

from geomtx import CameraHead, decode_pose
from heads.random_tokens import cast, random_tokens
from reference import gelu, normalize, randomize, without_gradient


def head(**options) -> CameraHead:
    options = {"num_heads": 2, "num_iterations": 3, **options}
    return randomize(CameraHead(16, options.pop("depth", 2), **options)).double().eval()


def refine_by_formula(model: CameraHead, camera_tokens: Tensor) -> Tensor:
    """Encodings of all iterations, from the parameters; only the trunk's blocks are the module's own."""
    p = dict(model.named_parameters())

    def linear(name, x):
        return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]

    t = normalize(camera_tokens, p["token_norm.weight"], p["token_norm.bias"])
    raw, encodings = None, []
    for _ in range(model.num_iterations):
        embedded = linear("pose_embedding", p["initial_pose"].expand(*t.shape[:2], 9) if raw is None else raw)
        shift, scale, gate = linear("modulation.project", embedded * embedded.sigmoid()).split(16, dim=-1)
        x = t + gate * (normalize(t, eps=1e-6) * (1 + scale) + shift)
        for block in model.trunk:
            x = block(x)
        x = normalize(x, p["trunk_norm.weight"], p["trunk_norm.bias"])
        delta = linear("pose_mlp.contract", gelu(linear("pose_mlp.expand", x)))
        raw = delta if raw is None else raw + delta
        encodings.append(torch.cat([raw[..., :7], raw[..., 7:].clamp(min=0)], dim=-1))
    return torch.stack(encodings)


def test_equals_the_formulas():
    model, tokens = head(num_iterations=4), random_tokens()
    prediction = model(tokens)
    expected = refine_by_formula(model, tokens.layers[3][:, :, 0])
    torch.testing.assert_close(prediction.pose_encodings, expected, rtol=0, atol=1e-12)
    cameras = decode_pose(expected[-1], tokens.image_hw)
    for ours, reference in zip(prediction.cameras, cameras, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("num_iterations", [1, 2, 5])
def test_shapes(num_iterations):
    prediction = head(num_iterations=num_iterations)(random_tokens(2, 4))
    assert prediction.pose_encodings.shape == (num_iterations, 2, 4, 9)
    assert prediction.cameras.cam_from_world.shape == (2, 4, 3, 4)
    assert prediction.cameras.intrinsics.shape == (2, 4, 3, 3)


def test_reads_the_camera_token_of_one_layer_only():
    model, tokens = head(), random_tokens()
    other = random_tokens()
    other.layers[3][:, :, 0] = tokens.layers[3][:, :, 0]
    assert torch.equal(model(other).pose_encodings, model(tokens).pose_encodings)
    chosen = head(layer=1)
    chosen.load_state_dict(model.state_dict())
    tokens.layers[1][:, :, 0] = tokens.layers[3][:, :, 0]
    assert torch.equal(chosen(tokens).pose_encodings, model(tokens).pose_encodings)


def test_the_gradient_is_cut_between_iterations():
    model, tokens = head(num_iterations=3), random_tokens()
    encodings = model(tokens).pose_encodings
    for iteration in range(3):
        (gradient,) = torch.autograd.grad(
            encodings[iteration].sum(), model.initial_pose, retain_graph=True, allow_unused=True
        )
        assert (gradient is not None and bool(gradient.any())) == (iteration == 0)


def test_the_gradient_of_an_iteration_is_that_of_its_correction():
    """With what came before as a constant."""
    torch.manual_seed(5)
    model, tokens = head(num_iterations=2), random_tokens()
    encodings = model(tokens).pose_encodings
    weights = torch.randn_like(encodings[1])
    weights[..., 7:] = 0  # the activation hides the raw field of view
    ours = torch.autograd.grad((encodings[1] * weights).sum(), model.pose_mlp.contract.weight)[0]
    once = copy.deepcopy(model)
    once.num_iterations = 1
    with torch.no_grad():  # the first prediction as the start of a single iteration
        raw = model.pose_mlp(model.trunk_norm(trunk_output(model, tokens)))
    once.pose_embedding.forward = lambda _: model.pose_embedding(raw)
    reference = torch.autograd.grad((once(tokens).pose_encodings[0] * weights).sum(), once.pose_mlp.contract.weight)[0]
    torch.testing.assert_close(ours, reference, rtol=0, atol=1e-12)


def trunk_output(model: CameraHead, tokens) -> Tensor:
    t = model.token_norm(tokens.layers[3][:, :, 0])
    x = t + model.modulation(t, model.pose_embedding(model.initial_pose.expand(*t.shape[:2], 9)))
    for block in model.trunk:
        x = block(x)
    return x


def test_every_parameter_gets_a_gradient():
    model = head()
    prediction = model(random_tokens())
    (prediction.pose_encodings * torch.randn_like(prediction.pose_encodings)).sum().backward()
    assert without_gradient(model) == []


def test_order_of_views_does_not_matter_and_scenes_are_apart():
    model, tokens = head(), random_tokens(3, 4)
    encodings, order = model(tokens).pose_encodings, [2, 0, 3, 1]
    permuted = tokens._replace(layers={k: v[:, order] for k, v in tokens.layers.items()})
    torch.testing.assert_close(model(permuted).pose_encodings, encodings[:, :, order], rtol=0, atol=1e-12)
    alone = tokens._replace(layers={k: v[1:2] for k, v in tokens.layers.items()})
    torch.testing.assert_close(model(alone).pose_encodings, encodings[:, 1:2], rtol=0, atol=1e-12)


def test_a_masked_view_is_no_view():
    model, tokens = head(), random_tokens(1, 3)
    mask = torch.ones(1, 3, 9, dtype=torch.bool)
    mask[:, 1] = False
    without = tokens._replace(layers={k: v[:, [0, 2]] for k, v in tokens.layers.items()})
    masked = model(tokens._replace(mask=mask)).pose_encodings
    torch.testing.assert_close(masked[:, :, [0, 2]], model(without).pose_encodings, rtol=0, atol=1e-12)
    assert masked.isfinite().all()


def test_an_untrained_output_of_zeros_gives_finite_cameras_and_gradients():
    model = head(num_iterations=1)
    with torch.no_grad():
        for parameter in model.pose_mlp.contract.parameters():
            parameter.zero_()
    prediction = model(random_tokens())
    assert not prediction.pose_encodings.any()
    for part in prediction.cameras:
        assert part.isfinite().all()
    assert torch.equal(prediction.cameras.cam_from_world[0, 0], torch.eye(3, 4, dtype=torch.float64))
    sum(part.sum() for part in prediction.cameras).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_ends_in_float32(dtype):
    model, tokens = head(), random_tokens()
    prediction = copy.deepcopy(model).to(dtype)(cast(tokens, dtype))
    assert prediction.pose_encodings.dtype == torch.float32
    assert {part.dtype for part in prediction.cameras} == {torch.float32}
    error = (prediction.pose_encodings - model(tokens).pose_encodings).abs().max()
    assert 0 < error < 40 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_ends_in_float32(dtype):
    model, tokens = head().float(), cast(random_tokens(), torch.float32)
    with torch.autocast("cpu", dtype):
        prediction = model(tokens)
    assert prediction.pose_encodings.dtype == torch.float32
    assert {part.dtype for part in prediction.cameras} == {torch.float32}
    error = (prediction.pose_encodings - model(tokens).pose_encodings).abs().max()
    assert 0 < error < 40 * torch.finfo(dtype).eps


def test_the_correction_itself_is_not_rounded():
    """Its last layer is a float32 island: bfloat16 weights, but sums that bfloat16 doesn't have."""
    prediction = head().to(torch.bfloat16)(cast(random_tokens(), torch.bfloat16)).pose_encodings
    assert not torch.equal(prediction, prediction.bfloat16().float())


def test_float64_stays_float64():
    assert head()(random_tokens()).pose_encodings.dtype == torch.float64


def test_wrong_tokens():
    with pytest.raises(ValueError, match=r"^tokens must have shape \(B, S, P, 16\), got \(2, 3, 9, 8\)$"):
        head()(random_tokens(dim=8))
    with pytest.raises(ValueError, match=r"^layer must "):
        head(layer=7)(random_tokens())
    with pytest.raises(ValueError, match=r"^num_iterations must "):
        head(num_iterations=0)


@pytest.mark.parametrize("num_iterations", [1, 4])
def test_a_new_head_starts_near_a_camera_that_looks_ahead(num_iterations):
    """Away from the rectifier's zero side, where a field of view would never learn."""
    model = CameraHead(16, 2, num_heads=2, num_iterations=num_iterations)
    with torch.no_grad():
        model.pose_mlp.contract.weight.zero_()
    prediction = model(cast(random_tokens(), torch.float32))
    start = torch.tensor([0.0, 0, 0, 0, 0, 0, 1, 1, 1]).expand(2, 3, 9)
    torch.testing.assert_close(prediction.pose_encodings[-1], start)
    torch.testing.assert_close(prediction.cameras.cam_from_world, torch.eye(3, 4).expand(2, 3, 3, 4))
