import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import geomtx
from geomtx import VGGT, CameraHead, DenseHead, DPTDecoder, MultitaskLoss, SceneBatch, Tokens, Tracker, TrackHead
from geomtx.heads import RGBHead
from geomtx.heads.track import check_track_images
from geomtx.inference import LEAN_PLAN, PLANS, MemoryPlan, predict
from geomtx.losses.terms import HeadTerm
from lean import build_lean, lean_config
from reference import named_tensors


def decoder(dim: int = 64, taps: tuple[int, ...] = (0, 0, 1, 1), **options) -> DPTDecoder:
    return DPTDecoder(dim, 16, channels=(16, 16, 32, 32), taps=taps, **options)


def dense(dim: int = 64, taps: tuple[int, ...] = (0, 0, 1, 1)) -> DenseHead:
    return DenseHead(decoder(dim, taps), 3)


def track() -> TrackHead:
    numbers = {"num_levels": 3, "radius": 2, "hidden_dim": 32, "num_heads": 2, "depth": 1, "num_virtual": 4}
    tracker = Tracker(16, num_iterations=2, **numbers)
    return TrackHead(decoder(out_channels=16, stride=2, position_signal=False), tracker)


class Mean(nn.Module):
    """A head of another library: one number a view, from all tokens that take part."""

    def __init__(self, dim: int = 64) -> None:
        super().__init__()
        self.project = nn.Linear(dim, 1)

    def forward(self, tokens: Tokens) -> Tensor:
        return sum(self.project(layer).mean(dim=(2, 3)) for layer in tokens.layers.values())


MAKERS: dict[str, Callable[[], nn.Module]] = {
    "dense": dense,
    "camera": lambda: CameraHead(64, 1, num_heads=4, layer=0),
    "track": track,
    "rgb": lambda: RGBHead(decoder(), hidden_dim=8),
    "foreign": Mean,
}


@pytest.fixture
def images() -> Tensor:
    return torch.rand(2, 3, 3, 28, 42)


@pytest.fixture
def model(lean_model: VGGT) -> VGGT:
    for name, make in MAKERS.items():
        lean_model.add_head(f"my_{name}", make())
    return lean_model.double()


@pytest.fixture
def queries() -> Tensor:
    return torch.rand(2, 5, 2, dtype=torch.float64) * torch.tensor([41, 27])


def assert_close(ours, reference, tolerance: float = 1e-9) -> None:
    ours, reference = named_tensors(ours), named_tensors(reference)
    assert ours.keys() == reference.keys()
    for name, tensor in reference.items():
        torch.testing.assert_close(
            ours[name], tensor, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


# What they give


def test_every_head_reads_the_same_tokens(model, images, queries):
    images = images.double()
    tokens, extra = model.encoder(images), model(images, queries).extra
    assert model.heads == (
        "camera",
        "depth",
        "points",
        "tracks",
        "my_dense",
        "my_camera",
        "my_track",
        "my_rgb",
        "my_foreign",
    )
    heads = model.extra_heads
    expected = {
        "my_dense": heads["my_dense"](tokens),
        "my_camera": heads["my_camera"](tokens),
        "my_track": heads["my_track"](tokens, queries),
        "my_rgb": heads["my_rgb"](tokens),
        "my_foreign": heads["my_foreign"](tokens),
    }
    assert extra["my_dense"].value.shape == (2, 3, 28, 42, 3)
    assert_close(extra, expected, tolerance=0)


def test_the_models_own_predictions_are_what_they_were(lean_model, images):
    before = lean_model(images)
    lean_model.add_head("normals", dense())
    after = lean_model(images)
    assert after.extra.keys() == {"normals"}
    assert_close(after._replace(extra=None), before, tolerance=0)
    assert lean_model.remove_head("normals") is not None
    assert lean_model(images).extra is None


def test_only_the_heads_asked_for(model, images):
    predictions = model(images.double(), heads=("my_dense", "depth"))
    assert predictions.extra.keys() == {"my_dense"}
    assert predictions.depth is not None
    assert predictions.cameras is None
    assert model(images.double(), heads=("camera",)).extra is None
    assert model(images.double()).extra.keys() == {
        "my_dense",
        "my_camera",
        "my_rgb",
        "my_foreign",
    }  # no queries, no tracks
    with pytest.raises(ValueError, match=r"^query_points must be given for the head 'my_track', got None$"):
        model(images.double(), heads=("my_track",))
    with pytest.raises(ValueError, match=r"^head must be one of .*, got 'my_dens'; did you mean 'my_dense'\?$"):
        model(images.double(), heads=("my_dens",))


def test_scenes_of_a_batch_do_not_meet(model, images, queries):
    images, mask = images.double(), torch.rand(2, 3, 2, 3) < 0.7
    both = model(images, queries, mask).extra
    for scene in range(2):
        part = slice(scene, scene + 1)
        alone = model(images[part], queries[part], mask[part]).extra
        assert both.keys() == alone.keys()
        for name, tensor in named_tensors(alone).items():
            axis = 1 if "encodings" in name or "iterations.coords" in name else 0
            ours = named_tensors(both)[name].select(axis, scene)
            torch.testing.assert_close(ours, tensor.select(axis, 0), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("plan", [PLANS[1], LEAN_PLAN], ids=["device", "lean"])
@pytest.mark.parametrize("heads", [None, ("my_camera", "my_dense"), ("my_rgb",), ("my_foreign",)])
def test_in_pieces_they_give_the_same(model, images, queries, plan, heads):
    images, mask = images.double(), torch.rand(2, 3, 2, 3) < 0.7
    given = queries if heads is None else None
    with torch.no_grad():
        whole = model(images, given, mask, heads=heads)
        pieces = predict(model, images, given, mask, heads=heads, plan=plan._replace(view_chunk=2, token_chunk=11))
    assert_close(pieces, whole, tolerance=1e-6)


def test_pictures_are_made_of_some_views_at_a_time(model, images):
    calls = []
    model.extra_heads["my_rgb"].hidden.register_forward_hook(lambda *args: calls.append(len(args[2])))
    whole = model(images.double(), heads=("my_rgb",))
    pieces = predict(model, images.double(), heads=("my_rgb",), plan=MemoryPlan(4))
    assert calls == [6, 4, 2]  # two scenes with two views at a time, then with one
    assert_close(pieces, whole)


# Precision


@pytest.mark.parametrize("name", MAKERS)
def test_a_head_stays_in_float32_on_an_encoder_in_bfloat16(name, images, queries):
    model, head = VGGT(lean_config(heads=("camera",))).bfloat16().eval(), MAKERS[name]()
    geomtx.freeze(model, ["*"])
    model.add_head("mine", head)
    given = (queries.float(),) if name == "track" else ()
    tokens = model.encoder(images)
    assert {layer.dtype for layer in tokens.layers.values()} == {torch.bfloat16}
    layers = {index: layer.float() for index, layer in tokens.layers.items()}
    expected = named_tensors(head(tokens._replace(layers=layers), *given))
    found = named_tensors(model(images, *given, heads=("mine",)).extra["mine"])
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[part], expected[part]) for part in expected)
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}
    sum((tensor * torch.randn_like(tensor)).sum() for tensor in found.values() if tensor.requires_grad).backward()
    assert [part for part, parameter in head.named_parameters() if parameter.grad is None] == []
    assert {part.partition(".")[0] for part, p in model.named_parameters() if p.grad is not None} == {"extra_heads"}


def test_gradients_reach_an_encoder_of_another_precision(images):
    model = VGGT(lean_config(heads=())).bfloat16()
    model.add_head("mine", dense())
    model(images).extra["mine"].value.square().mean().backward()
    assert learning(model) == {"extra_heads.mine", "encoder"}


@pytest.mark.parametrize("name", MAKERS)
def test_a_head_of_another_precision_in_pieces(name, images, queries):
    model = VGGT(lean_config(heads=("camera",))).double().eval()
    model.add_head("mine", MAKERS[name]())
    if name == "track":
        model.extra_heads["mine"].tracker.num_iterations = 1  # with random weights, each makes rounding much larger
    given = (queries.float(),) if name == "track" else ()
    with torch.no_grad():
        whole = model(images, *given, heads=("mine",)).extra
        pieces = predict(model, images, *given, heads=("mine",), plan=LEAN_PLAN._replace(view_chunk=2, token_chunk=11))
    assert_close(pieces.extra, whole, tolerance=1e-3)
    assert {tensor.dtype for tensor in named_tensors(pieces.extra).values()} == {torch.float32}


def test_under_autocast_tokens_stay_what_they_are(lean_model, images):
    seen = []

    class Look(Mean):
        def forward(self, tokens: Tokens) -> Tensor:
            seen.extend(layer.dtype for layer in tokens.layers.values())
            return super().forward(tokens)

    with torch.autocast("cpu", torch.bfloat16):
        given = [layer.dtype for layer in lean_model.encoder(images).layers.values()]
        lean_model.add_head("look", Look())
        seen.clear()
        lean_model(images, heads=("look",))
    assert seen == given


# Learning


def labels(images: Tensor) -> SceneBatch:
    return SceneBatch(images, depth=torch.rand(2, 3, 28, 42) + 1, points=torch.rand(2, 3, 28, 42, 3))


def point_error(prediction, batch: SceneBatch) -> Tensor | None:
    return None if batch.points is None else (prediction.value - batch.points).abs().mean()


def test_the_loss_of_a_head_joins_the_others(lean_model, images):
    lean_model.add_head("normals", dense())
    lean_model.add_head("mean", Mean())
    batch = labels(images)
    predictions = lean_model(images, heads=("depth", "normals"))
    error = point_error(predictions.extra["normals"], batch)
    for given, weight in ((point_error, 1.0), (HeadTerm("normals", point_error, 0.25), 0.25)):
        loss = MultitaskLoss(others={"normals": given})
        report = loss(predictions, batch)
        assert report.tasks.keys() == {"depth", "normals"}
        torch.testing.assert_close(report.tasks["normals"], weight * error)
        torch.testing.assert_close(report.terms["loss_normals"], error)
    # Without labels or prediction, it takes no part.
    assert loss(predictions, batch._replace(points=None)).tasks.keys() == {"depth"}
    assert loss(lean_model(images, heads=("depth",)), batch).tasks.keys() == {"depth"}


@pytest.mark.usefixtures("unchecked")
def test_losses_that_are_none():
    with pytest.raises(ValueError, match=r"^others must be terms or functions of a prediction and a batch, got 'l1'$"):
        MultitaskLoss(others={"normals": "l1"})


def learning(model: VGGT) -> set[str]:
    parts = {name: p for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    return {".".join(name.split(".")[: 2 if name.startswith("extra") else 1]) for name in parts}


def test_gradients_reach_the_head_and_the_encoder(lean_model, images):
    lean_model.add_head("normals", dense())
    lean_model.add_head("mean", Mean())
    loss = MultitaskLoss(depth=None, points=None, others={"normals": point_error})
    loss(lean_model(images), labels(images)).total.backward()
    assert learning(lean_model) == {"extra_heads.normals", "encoder"}


def test_copies_have_heads_of_their_own(lean_model, images):
    lean_model.add_head("mean", Mean())
    copied = copy.deepcopy(lean_model)
    lean_model.remove_head("mean")
    assert copied.heads[-1] == "mean"
    copied(images, heads=("mean",)).extra["mean"].sum().backward()
    assert learning(lean_model) == set()
    assert "extra_heads.mean" in learning(copied)


# Structure


def test_heads_see_tokens_and_nothing_else(lean_model, images):
    """No pixels, no other head's predictions: they stand beside each other on one encoder."""
    seen = []

    class Look(nn.Module):
        def forward(self, *args, **options):
            seen.append((args, options))
            return args[0].layer(1).mean()

    lean_model.add_head("look", Look())
    seen.clear()
    lean_model(images)
    ((args, options),) = seen
    assert [type(value) for value in args] == [Tokens]
    assert options == {}
    tensors = [*args[0].layers.values(), args[0].mask]
    assert all(tensor is None or tensor.shape[-1] != images.shape[-1] for tensor in tensors)


# Errors


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("depth", r"^name must not be one of 'camera', .*'consistency', 'normals', got 'depth'$"),
        ("consistency", r"^name must not be one of .* got 'consistency'$"),
        ("normals", r"^name must not be one of .* got 'normals'$"),
        ("my.head", r"^name must be an identifier .* got 'my.head'$"),
        ("keys", r"^name must be an identifier that torch.nn.ModuleDict doesn't use itself, got 'keys'$"),
        ("", r"^name must be an identifier .* got ''$"),
        (3, r"^name must be an identifier .* got 3$"),
    ],
)
def test_names(lean_model, name, message):
    lean_model.add_head("normals", Mean())
    with pytest.raises(ValueError, match=message):
        lean_model.add_head(name, Mean())
    assert list(lean_model.extra_heads) == ["normals"]


@pytest.mark.usefixtures("unchecked")
def test_other_things_that_are_no_heads(lean_model):
    with pytest.raises(ValueError, match=r"^head must be a torch.nn.Module, got function$"):
        lean_model.add_head("mine", lambda tokens: tokens)
    with pytest.raises(ValueError, match=r"^head must be no part of the model yet, got one that is, DenseHead$"):
        lean_model.add_head("mine", lean_model.depth_head)
    assert lean_model.heads == lean_model.config.heads
    lean_model.add_head("mine", Mean())
    with pytest.raises(ValueError, match=r"^name of an added head must be one of 'mine', got 'depth'$"):
        lean_model.remove_head("depth")


def test_images_too_small_for_added_tracks():
    model = VGGT(lean_config(heads=("camera",)))
    model.add_head("mine", track())
    side = model.extra_heads["mine"].tracker.min_image_side
    with pytest.raises(
        ValueError, match=rf"^images must have at least {side} pixels a side for tracks, got \(6, 42\)$"
    ):
        check_track_images(torch.zeros(1, 2, 3, 6, 42), [model.extra_heads["mine"]])


def test_an_added_head_may_read_other_layers_than_the_model_s_heads(images):
    model = build_lean(heads=("camera",), depth=4, taps=(0, 0, 1, 3))
    model.add_head(
        "normals", geomtx.DenseHead(geomtx.DPTDecoder(64, 16, channels=(16, 16, 32, 32), taps=(0, 1, 2, 3)), 3)
    )
    with torch.no_grad():
        assert model(images).extra["normals"].value.shape == (2, 3, 28, 42, 3)
