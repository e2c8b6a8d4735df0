import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from geomtx import decode_pose
from geomtx.heads import OnePassCameraHead, TextAlignmentHead
from geomtx.heads.head import run_head, runs_in_parts
from heads.random_tokens import cast, random_tokens
from reference import gelu, normalize, randomize, without_gradient

HEADS = {
    "camera": lambda: OnePassCameraHead(16, 2, num_heads=2, masked_bias=True),
    "text": lambda: TextAlignmentHead(16, 2, num_heads=2, out_dim=10),
}


def head(kind: str) -> OnePassCameraHead | TextAlignmentHead:
    return randomize(HEADS[kind]()).double().eval()


def result(model, tokens, **options) -> Tensor:
    found = run_head(model, tokens, None, **options)
    return found[1] if isinstance(model, OnePassCameraHead) else found.embedding


def affine(module, x: Tensor) -> Tensor:
    return x @ module.weight.T + module.bias


def test_cameras_equal_the_formulas():
    model, tokens = head("camera"), random_tokens()
    x = normalize(tokens.layers[3][:, :, :3], model.token_norm.weight, model.token_norm.bias).flatten(1, 2)
    for block in model.trunk:
        x = block(x)
    x = normalize(x.unflatten(1, (3, 3))[:, :, 0], model.trunk_norm.weight, model.trunk_norm.bias)
    raw = affine(model.pose_mlp.contract, gelu(affine(model.pose_mlp.expand, x)))
    encoding = torch.cat([raw[..., :7], raw[..., 7:].clamp(min=0) + 0.01], dim=-1)
    cameras, encodings = model(tokens)
    torch.testing.assert_close(encodings, encoding[None], rtol=0, atol=1e-12)
    for ours, expected in zip(cameras, decode_pose(encoding, tokens.image_hw), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)


def test_embeddings_equal_the_formulas():
    model, tokens = head("text"), random_tokens()
    x = normalize(tokens.layers[3][:, :, :3], model.token_norm.weight, model.token_norm.bias).flatten(1, 2)
    x = torch.cat([model.language_token.expand(2, -1, -1), x], dim=1)
    for block in model.trunk:
        x = block(x)
    token = normalize(x[:, 0], model.trunk_norm.weight, model.trunk_norm.bias)
    hidden = gelu(affine(model.project[0], token))
    raw = affine(model.project[3], normalize(hidden, model.project[2].weight, model.project[2].bias))
    found = model(tokens)
    torch.testing.assert_close(found.token, token, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.embedding, raw / raw.norm(dim=-1, keepdim=True), rtol=0, atol=1e-12)
    shuffled = tokens._replace(layers={3: tokens.layers[3][:, [2, 0, 1]]})
    torch.testing.assert_close(model(shuffled).embedding, found.embedding, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", HEADS)
def test_reads_special_tokens_of_valid_views_in_steps_too(kind):
    model, tokens = head(kind), random_tokens(mask=torch.ones(2, 3, 9, dtype=torch.bool))
    tokens.mask[1, 1] = False
    changed = tokens._replace(layers={3: tokens.layers[3].clone()})
    changed.layers[3][:, :, 3:] = torch.nan
    changed.layers[3][1, 1, 1] += 5
    seen = (slice(None), tokens.mask[:, :, 0]) if kind == "camera" else ...
    torch.testing.assert_close(result(model, changed)[seen], result(model, tokens)[seen], rtol=0, atol=1e-12)
    assert runs_in_parts(model)
    in_steps = result(model, tokens, gather=lambda part: part)
    torch.testing.assert_close(in_steps, result(model, tokens), rtol=0, atol=0)


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_ends_in_float32(kind, dtype):
    model, tokens = head(kind), random_tokens()
    expected = result(model, tokens)
    found = result(model.to(dtype), cast(tokens, dtype))
    assert found.dtype == torch.float32
    assert F.cosine_similarity(found.double(), expected, dim=-1).min() > 0.99


@pytest.mark.parametrize("kind", HEADS)
def test_every_parameter_gets_a_gradient(kind):
    model, tokens = head(kind), random_tokens()
    out = result(model, tokens)
    (out * torch.randn_like(out)).sum().backward()
    assert without_gradient(model) == []


@pytest.mark.parametrize("kind", HEADS)
def test_a_layer_that_was_not_kept(kind):
    model = head(kind)
    model.layer = 7
    with pytest.raises(ValueError, match=r"^layer must be one of the tapped layers \[0, 1, 2, 3\], got 7$"):
        model(random_tokens())
