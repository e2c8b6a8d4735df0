import weakref

import pytest
import torch

from geomtx import VGGT, VGGTConfig
from geomtx.heads.track import extract_features
from geomtx.inference import PLANS, GlobalApproximation, MemoryPlan, predict
from geomtx.inference.attention import attention_table
from geomtx.inference.pieces import move_aside
from geomtx.types import Tokens
from lean import build_lean
from reference import named_tensors

ALL = ("camera", "depth", "points", "tracks")
SMALL = (MemoryPlan(2, 7), MemoryPlan(1, 1000, "cpu"), MemoryPlan(100, 1, output_device=None, part_device="cpu"))


@pytest.fixture
def model(lean_model) -> VGGT:
    return lean_model.double()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(2, 3, 3, 28, 42, dtype=torch.float64)


def mask_of(images: torch.Tensor) -> torch.Tensor:
    """Some patches are out, and one view is out with all of its."""
    mask = torch.ones(*images.shape[:2], images.shape[-2] // 14, images.shape[-1] // 14, dtype=torch.bool)
    mask[0, 1, :1] = False
    mask[1, 2] = False
    return mask


@pytest.mark.parametrize(
    ("plan", "masked"), [*((plan, False) for plan in SMALL), *((plan, True) for plan in (*SMALL, *PLANS))]
)
def test_pieces_give_what_the_whole_gives(model, images, plan, masked):
    queries = 27 * torch.rand(2, 4, 2, dtype=torch.float64)
    mask = mask_of(images) if masked else None
    with torch.no_grad():
        whole, pieces = model(images, queries, mask), predict(model, images, queries, mask, plan=plan)
    expected, got = named_tensors(whole), named_tensors(pieces)
    assert expected.keys() == got.keys()
    for name, value in expected.items():
        # The tracker enlarges rounding.
        # Focal lengths are in pixels, and a narrow field of view makes them large.
        torch.testing.assert_close(got[name], value, rtol=1e-9, atol=1e-6 if "track" in name else 1e-12, msg=name)


@pytest.mark.parametrize("heads", [("camera",), ("depth",), ("points", "tracks"), ("camera", "depth")])
def test_some_heads(model, images, heads):
    queries = torch.full((2, 3, 2), 20.0, dtype=torch.float64) if "tracks" in heads else None
    with torch.no_grad():
        whole = model(images, queries, heads=heads)
        pieces = predict(model, images, queries, heads=heads, plan=SMALL[0])
    assert [value is None for value in pieces] == [value is None for value in whole]
    for name, value in named_tensors(whole).items():
        torch.testing.assert_close(named_tensors(pieces)[name], value, rtol=1e-9, atol=1e-6, msg=name)


def test_a_layer_that_is_read_twice(images):
    model = build_lean(depth=3, taps=(0, 1, 1, 2), heads=("camera", "depth")).double()
    with torch.no_grad():
        whole, pieces = model(images), predict(model, images, plan=SMALL[0])
    torch.testing.assert_close(pieces.depth.value, whole.depth.value, rtol=1e-9, atol=1e-12)


def test_scopes_of_all_kinds(images):
    for scopes in (("global", "global"), ("frame", "cross"), ("frame", "frame")):
        model = build_lean(scopes=scopes, heads=("camera", "depth")).double()
        with torch.no_grad():
            whole, pieces = model(images), predict(model, images, plan=SMALL[0])
        torch.testing.assert_close(pieces.depth.value, whole.depth.value, rtol=0, atol=1e-12)


def test_images_may_be_in_another_precision(lean_model, images):
    """They come over view by view."""
    with torch.no_grad():
        pieces = predict(lean_model, images, plan=SMALL[0], heads=("depth",))
        whole = lean_model(images, heads=("depth",))
    assert pieces.depth.value.dtype == torch.float32
    torch.testing.assert_close(pieces.depth.value, whole.depth.value, rtol=1e-4, atol=1e-5)


def test_layers_are_let_go_before_the_next(images):
    """Of a layer, the tokens beside those that the blocks go on with live until the layer has been read."""
    alive, kept = [], []
    model = build_lean(depth=4, taps=(0, 1, 2, 3), heads=()).double()
    model.encoder.frame_blocks[-1].register_forward_pre_hook(
        lambda *_: alive.append(sum(part() is not None for part in kept))
    )

    def remember(item):
        kept.append(weakref.ref(item[1][0]))

    with torch.no_grad():
        views = model.encoder.embed(images)
        attend = attention_table(model.encoder, views, SMALL[2], GlobalApproximation())
        for _ in map(remember, model.encoder.run(views.x, attend, model.config.taps, keep=move_aside(SMALL[2]))):
            pass
    assert len(kept) == 4
    assert set(alive) == {0}


def test_other_blocks_can_not_be_cut(model, images):
    model.encoder.global_blocks[1] = torch.nn.Identity()
    with (
        torch.no_grad(),
        pytest.raises(ValueError, match=r"^blocks must be TransformerBlock for chunks of tokens, got Id"),
    ):
        predict(model, images, plan=SMALL[0])


@pytest.mark.parametrize("view_chunk", [1, 4, 99])
def test_chunks_of_views_alone_change_nothing_and_keep_gradients(model, images, view_chunk):
    plan, queries = MemoryPlan(view_chunk, output_device=None), 27 * torch.rand(2, 4, 2, dtype=torch.float64)
    whole, chunked = model(images, queries), predict(model, images, queries, plan=plan)
    for name, value in named_tensors(whole).items():
        limits = {"rtol": 1e-9, "atol": 1e-6 if "track" in name else 1e-12}
        torch.testing.assert_close(named_tensors(chunked)[name], value, **limits, msg=name)
    parameters = [*model.depth_head.parameters(), model.encoder.special.camera]
    gradients = [torch.autograd.grad(each.depth.value.mean(), parameters) for each in (whole, chunked)]
    for got, expected in zip(*gradients[::-1], strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("plan", [None, SMALL[0]])
def test_convolutions_read_channels_last(model, images, plan):
    """The order that GPUs' kernels want; nobody has to turn maps over on the way."""
    formats = {}

    def look(name: str, x: torch.Tensor) -> None:
        formats[name] = x.is_contiguous(memory_format=torch.channels_last)

    for head in (model.depth_head, model.point_head):
        for name, module in head.named_modules():
            if isinstance(module, torch.nn.Conv2d | torch.nn.ConvTranspose2d):
                module.register_forward_pre_hook(lambda _, args, name=name: look(name, args[0]))
    with torch.no_grad():
        predict(model, images, heads=("depth", "points"), plan=plan)
    assert formats
    assert [name for name, last in formats.items() if not last] == []


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ("low", r"^plan must be a MemoryPlan, got 'low'$"),
        (MemoryPlan(0, 8), r"^view_chunk of plan must be a whole number, at least 1, got 0$"),
        (MemoryPlan(1, 2.5), r"^token_chunk of plan must be a whole number, at least 1, got 2.5$"),
        (MemoryPlan(None, 8), r"^view_chunk of plan must be given with a token_chunk, got None$"),
        (MemoryPlan(1, 8, tap_device="gpu"), r"^tap_device of plan must be a device, got 'gpu'$"),
    ],
)
def test_plans_that_are_none(model, images, plan, message):
    with torch.no_grad(), pytest.raises(ValueError, match=message):
        predict(model, images, plan=plan)


def test_features_of_tracks_come_back_from_where_maps_wait():
    """The tracker's device, here "meta", has them, though a plan puts results of single views together elsewhere."""
    with torch.device("meta"):
        head = VGGT(VGGTConfig.tiny()).track_head
    waiting = torch.zeros(1, 3, head.decoder.out_channels, 14, 14)
    tokens = Tokens({}, 5, (56, 56), (4, 4), None)
    assert extract_features(head, tokens, lambda function, tokens: waiting).device.type == "meta"
