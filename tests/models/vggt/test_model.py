import copy
import io
import pickle
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from geomtx import VGGT, Attention, CameraHead, DPTDecoder, Predictions, VGGTConfig
from geomtx.geometry import rotation_angle
from geomtx.inference import predict
from lean import lean_config
from reference import named_tensors, relative_error, without_gradient

HEADS = ("camera", "depth", "points", "tracks")
FIELDS = {
    "camera": {"cameras.cam_from_world", "cameras.intrinsics", "pose_encodings"},
    "depth": {"depth.value", "depth.confidence"},
    "points": {"points.value", "points.confidence"},
    "tracks": {
        "tracks.coords_px",
        "tracks.visibility",
        "tracks.confidence",
        "track_iterations.coords_px",
        "track_iterations.visibility_logits",
        "track_iterations.confidence_logits",
    },
}


@pytest.fixture
def model(lean_model) -> VGGT:
    return lean_model.double()


@pytest.fixture
def images() -> Tensor:
    """(2, 3, 3, 28, 42)."""
    return torch.rand(2, 3, 3, 28, 42, dtype=torch.float64)


@pytest.fixture
def queries() -> Tensor:
    """(2, 5, 2)."""
    return torch.rand(2, 5, 2, dtype=torch.float64) * torch.tensor([41, 27])


def view_axis(name: str) -> int:
    """Of a prediction, counted from the front."""
    return 2 if name in ("pose_encodings", "track_iterations.coords_px") else 1


def assert_same(ours: Predictions, reference: Predictions, atol: float = 1e-10, tracks_atol: float = 1e-6) -> None:
    """The tracker magnifies rounding errors some 65-fold an iteration."""
    ours, reference = named_tensors(ours), named_tensors(reference)
    assert ours.keys() == reference.keys()
    for name in reference:
        allowed = tracks_atol if name.startswith("track") else atol
        torch.testing.assert_close(
            ours[name], reference[name], rtol=allowed, atol=allowed, msg=lambda m, n=name: f"{n}: {m}"
        )


def take_views(prediction: Predictions, views: list[int]) -> dict[str, Tensor]:
    return {n: t.index_select(view_axis(n), torch.tensor(views)) for n, t in named_tensors(prediction).items()}


def assert_same_views(ours: Predictions, my_views: list[int], reference: Predictions, views: list[int]) -> None:
    mine, theirs = take_views(ours, my_views), take_views(reference, views)
    for name in theirs:
        allowed = 1e-6 if name.startswith("track") else 1e-10
        torch.testing.assert_close(
            mine[name], theirs[name], rtol=allowed, atol=allowed, msg=lambda m, n=name: f"{n}: {m}"
        )


# Shapes and which heads run


def test_shapes(model, images, queries):
    shapes = {name: tuple(t.shape) for name, t in named_tensors(model(images, queries)).items()}
    assert shapes == {
        "cameras.cam_from_world": (2, 3, 3, 4),
        "cameras.intrinsics": (2, 3, 3, 3),
        "pose_encodings": (2, 2, 3, 9),
        "depth.value": (2, 3, 28, 42),
        "depth.confidence": (2, 3, 28, 42),
        "points.value": (2, 3, 28, 42, 3),
        "points.confidence": (2, 3, 28, 42),
        "tracks.coords_px": (2, 3, 5, 2),
        "tracks.visibility": (2, 3, 5),
        "tracks.confidence": (2, 3, 5),
        "track_iterations.coords_px": (2, 2, 3, 5, 2),
        "track_iterations.visibility_logits": (2, 3, 5),
        "track_iterations.confidence_logits": (2, 3, 5),
    }


def test_ranges(model, images, queries):
    prediction = model(images, queries)
    assert (prediction.depth.value > 0).all()
    assert (prediction.depth.confidence > 1).all()
    assert (prediction.points.confidence > 1).all()
    assert ((prediction.tracks.visibility > 0) & (prediction.tracks.visibility < 1)).all()
    rotations = prediction.cameras.cam_from_world[..., :3]
    torch.testing.assert_close(rotations @ rotations.mT, torch.eye(3).double().expand_as(rotations), rtol=0, atol=1e-12)
    torch.testing.assert_close(
        prediction.cameras.intrinsics[..., :2, 2], torch.tensor([21.0, 14.0]).double().expand(2, 3, 2)
    )


def test_a_scene_needs_no_batch_axis(model, images, queries):
    mask = torch.rand(3, 2, 3) < 0.7
    assert_same(model(images[0], queries[0], mask), model(images[:1], queries[:1], mask[None]), atol=0, tracks_atol=0)


@pytest.mark.parametrize("heads", [("camera",), ("depth", "tracks"), ("points",), ()])
def test_only_the_heads_asked_for(model, images, queries, heads):
    everything = named_tensors(model(images, queries))
    found = named_tensors(model(images, queries, heads=heads))
    assert found.keys() == set().union(*(FIELDS[head] for head in heads))
    for name, tensor in found.items():
        assert torch.equal(tensor, everything[name])


@pytest.mark.parametrize("heads", [("camera",), ("camera", "depth"), ("points", "tracks"), ()])
def test_a_model_of_some_heads(images, queries, heads):
    model = VGGT(lean_config(heads=heads)).double()
    assert model.heads == heads
    assert named_tensors(model(images, queries)).keys() == set().union(*(FIELDS[head] for head in heads))
    built = {name.partition(".")[0] for name, _ in model.named_parameters()} - {"encoder"}
    names = {"camera": "camera_head", "depth": "depth_head", "points": "point_head", "tracks": "track_head"}
    assert built == {names[head] for head in heads}


def test_without_queries_there_are_no_tracks(model, images):
    prediction = model(images)
    assert prediction.tracks is None
    assert prediction.track_iterations is None
    with pytest.raises(ValueError, match=r"^query_points must be given for the head 'tracks', got None$"):
        model(images, heads=("tracks",))


@pytest.mark.parametrize("query", [(3.0, 1, 1), (-1.0, 1, 1), (0.0, 42, 1), (0.0, 1, -2)])
def test_queries_outside_the_views_are_refused(model, images, query):
    queries = torch.tensor(query, dtype=images.dtype).expand(2, 4, 3)
    with pytest.raises(ValueError, match=r"^query_points must lie in one of 3 views of 42x28 pixels, got \["):
        model(images, queries)
    with pytest.raises(ValueError, match=r"^query_points must be finite, got \[nan, "):
        model(images, queries * torch.nan)


def test_cameras_alone_compute_nothing_dense(model, images, queries, monkeypatch):
    def refuse(*_):
        raise AssertionError("the decoder ran")

    monkeypatch.setattr(DPTDecoder, "merge", refuse)
    kept = []
    model.encoder.register_forward_hook(lambda _, __, tokens: kept.append(list(tokens.layers)))
    model(images, heads=("camera",))
    model(images, queries, heads=("camera",))
    assert kept == [[1], [1]]
    with pytest.raises(AssertionError, match="the decoder ran"):
        model(images, heads=("depth",))


def test_layers_that_are_no_taps_are_let_go(images):
    model = VGGT(lean_config(depth=6, taps=(0, 2, 3, 4), heads=("depth",)))
    kept = []
    model.encoder.register_forward_hook(lambda _, __, tokens: kept.append(list(tokens.layers)))
    model(images.float())
    assert kept == [[0, 2, 3, 4]]


def test_every_part_is_usable_alone(model, images, queries):
    whole = model(images, queries)
    tokens = model.encoder(images)
    parts = Predictions(
        *model.camera_head(tokens),
        model.depth_head(tokens),
        model.point_head(tokens),
        *model.track_head(tokens, queries),
    )
    assert_same(parts, whole, atol=0, tracks_atol=0)


@pytest.mark.parametrize("options", [{"backbone": "conv"}, {"num_registers": 0}, {"patch_size": 7, "dim": 48}])
def test_other_numbers(options, images, queries):
    prediction = VGGT(lean_config(**options)).double()(images, queries)
    assert prediction.depth.value.shape == (2, 3, 28, 42)
    assert all(tensor.isfinite().all() for tensor in named_tensors(prediction).values())


def test_every_number_of_the_configuration_goes_where_it_belongs():
    """All different from each other and from the defaults."""
    config = VGGTConfig(
        dim=48,
        depth=5,
        num_heads=3,
        patch_size=6,
        num_registers=2,
        image_size=30,
        vit_depth=1,
        vit_num_heads=4,
        rope_base=70.0,
        taps=(0, 1, 2, 4),
        camera_depth=2,
        camera_num_heads=8,
        camera_iterations=5,
        dpt_features=24,
        dpt_channels=(4, 8, 12, 16),
        track_features=28,
        track_levels=3,
        track_radius=1,
        track_iterations=6,
        track_dim=60,
        track_num_heads=5,
        track_depth=7,
        track_virtual=9,
        attention="math",
    )
    model = VGGT(config)
    encoder, camera, tracker = model.encoder, model.camera_head, model.track_head.tracker
    vit, updater = encoder.backbone, tracker.updater
    assert (encoder.special.camera.shape[-1], len(encoder.frame_blocks), len(encoder.global_blocks)) == (48, 5, 5)
    assert {block.attention.num_heads for block in (*encoder.frame_blocks, *encoder.global_blocks)} == {3}
    assert (encoder.special.num_tokens, encoder.rope_base, encoder.taps) == (3, 70.0, (0, 1, 2, 4))
    assert (vit.patch_size, vit.table_side, vit.num_registers, len(vit.blocks)) == (6, 5, 2, 1)
    assert vit.blocks[0].attention.num_heads == 4
    assert (len(camera.trunk), camera.trunk[0].attention.num_heads, camera.num_iterations) == (2, 8, 5)
    assert camera.layer == 4
    for head in (model.depth_head, model.point_head):
        assert head.decoder.reduce[0].out_channels == 24
    for decoder in (model.depth_head.decoder, model.point_head.decoder, model.track_head.decoder):
        assert (decoder.taps, [conv.out_channels for conv in decoder.project]) == ((0, 1, 2, 4), [4, 8, 12, 16])
    assert [(h.value_dim, h.activation) for h in (model.depth_head, model.point_head)] == [
        (1, "exp"),
        (3, "signed_expm1"),
    ]
    decoder = model.track_head.decoder
    assert (decoder.reduce[0].out_channels, decoder.out_channels, decoder.stride) == (28, 28, 2)
    assert not decoder.position_signal
    assert (tracker.num_levels, tracker.radius, tracker.num_iterations, tracker.stride) == (3, 1, 6, 2)
    assert tracker.correlation_mlp.expand.out_features == updater.input_project.out_features == 60
    assert (len(updater.view_blocks), updater.virtual_tracks.shape[1]) == (7, 9)
    assert updater.view_blocks[0].attention.num_heads == 5
    attentions = [module for module in model.modules() if isinstance(module, Attention)]
    assert len(attentions) == 1 + 10 + 2 + 4 * 7
    assert {module.backend.__name__ for module in attentions} == {"attend_math"}


def test_attention_backends_agree(model, images, queries):
    other = VGGT(lean_config(attention="math")).double()
    other.load_state_dict(model.state_dict())
    assert_same(other(images, queries), model(images, queries))


# Symmetries


def test_views_after_the_first_have_no_order(model, queries):
    images, order = torch.rand(2, 5, 3, 28, 42, dtype=torch.float64), [0, 3, 1, 4, 2]
    assert_same_views(model(images[:, order], queries), [0, 1, 2, 3, 4], model(images, queries), order)


def test_the_first_view_is_the_reference(model, images):
    swapped, straight = model(images[:, [1, 0, 2]]), model(images)
    for name in ("cameras.cam_from_world", "depth.value", "points.value"):
        ours, reference = take_views(swapped, [1, 0, 2])[name], take_views(straight, [0, 1, 2])[name]
        assert relative_error(ours, reference) > 1e-5, name


def test_scenes_of_a_batch_do_not_see_each_other(model):
    images = torch.rand(3, 2, 3, 28, 42, dtype=torch.float64)
    queries = torch.rand(3, 4, 2, dtype=torch.float64) * 27
    mask = torch.rand(3, 2, 2, 3) < 0.7
    together = named_tensors(model(images, queries, mask))
    for scene in range(3):
        alone = named_tensors(model(images[scene], queries[scene], mask[scene]))
        for name, tensor in alone.items():
            ours = together[name].narrow(view_axis(name) - 1, scene, 1)
            allowed = 1e-6 if name.startswith("track") else 1e-10
            torch.testing.assert_close(ours, tensor, rtol=allowed, atol=allowed, msg=lambda m, n=name: f"{n}: {m}")


def test_a_single_view(model, queries):
    prediction = model(torch.rand(2, 1, 3, 28, 42, dtype=torch.float64), queries)
    assert all(tensor.isfinite().all() for tensor in named_tensors(prediction).values())
    torch.testing.assert_close(prediction.tracks.coords_px[:, 0], queries)


def test_images_need_not_be_contiguous(model, images, queries):
    stored = images.movedim(2, -1).contiguous().movedim(-1, 2)
    strided = torch.rand(2, 5, 2, dtype=torch.float64).repeat(1, 1, 2)[..., ::2]
    strided.copy_(queries)
    assert not stored.is_contiguous()
    assert not strided.is_contiguous()
    assert_same(model(stored, strided), model(images, queries))


def test_inputs_are_not_written_to(model, images, queries):
    mask = torch.rand(2, 3, 2, 3) < 0.7
    before = images.clone(), queries.clone(), mask.clone()
    model(images, queries, mask)
    for now, then in zip((images, queries, mask), before, strict=True):
        assert torch.equal(now, then)


# Masks


def test_content_of_masked_patches_changes_nothing(model, images, queries):
    """In no output, to the last bit, even where it is NaN or infinite."""
    mask = torch.rand(2, 3, 2, 3) < 0.7
    mask[:, :, 0, 0] = True
    pixels = mask.repeat_interleave(14, dim=2).repeat_interleave(14, dim=3)[:, :, None]
    reference = model(images, queries, mask)
    for content in (torch.nan, torch.inf, -1e6):
        assert_same(model(images.masked_fill(~pixels, content), queries, mask), reference, atol=0, tracks_atol=0)
    assert all(tensor.isfinite().all() for tensor in named_tensors(reference).values())


def test_a_mask_changes_what_is_seen(model, images):
    mask = torch.ones(2, 3, 2, 3, dtype=torch.bool)
    mask[:, 1, 1, 2] = False
    masked, whole = named_tensors(model(images, patch_mask=mask)), named_tensors(model(images))
    assert relative_error(masked["cameras.cam_from_world"], whole["cameras.cam_from_world"]) > 1e-6


def test_a_padded_view_is_no_view(model, queries):
    images = torch.rand(2, 4, 3, 28, 42, dtype=torch.float64)
    mask = torch.ones(2, 4, 2, 3, dtype=torch.bool)
    mask[:, 2] = False
    images[:, 2] = torch.nan
    padded, without = model(images, queries, mask), model(images[:, [0, 1, 3]], queries)
    assert_same_views(padded, [0, 1, 3], without, [0, 1, 2])
    assert all(tensor.isfinite().all() for tensor in named_tensors(padded).values())


def test_scenes_of_different_numbers_of_views(model, queries):
    """One of two and one of three in a batch."""
    images = torch.rand(2, 3, 3, 28, 42, dtype=torch.float64)
    mask = torch.ones(2, 3, 2, 3, dtype=torch.bool)
    mask[0, 2] = False
    together = model(images, queries, mask)
    short, long = model(images[0, :2], queries[0]), model(images[1], queries[1])
    for scene, alone, views in ((0, short, [0, 1]), (1, long, [0, 1, 2])):
        mine = {n: t.narrow(view_axis(n) - 1, scene, 1) for n, t in take_views(together, views).items()}
        for name, tensor in named_tensors(alone).items():
            allowed = 1e-6 if name.startswith("track") else 1e-10
            torch.testing.assert_close(
                mine[name], tensor, rtol=allowed, atol=allowed, msg=lambda m, n=name: f"{n}: {m}"
            )


def test_a_mask_of_all_true_is_no_mask(model, images, queries):
    assert_same(model(images, queries, torch.ones(2, 3, 2, 3, dtype=torch.bool)), model(images, queries))


@pytest.mark.parametrize("attention", ["sdpa", "math"])
def test_a_scene_without_a_single_patch_stays_finite(attention, images, queries):
    model = VGGT(lean_config(attention=attention)).double()
    mask = torch.ones(2, 3, 2, 3, dtype=torch.bool)
    mask[1] = False
    predictions = named_tensors(model(images, queries, mask))
    assert all(tensor.isfinite().all() for tensor in predictions.values())
    sum(tensor.sum() for tensor in predictions.values()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


# Training


def test_every_parameter_gets_a_gradient(model, images, queries):
    """But the ViT's mask token, which is of no use and asks for none."""
    model.train()
    predictions = named_tensors(model(images, queries)).values()
    sum((tensor * torch.randn_like(tensor)).sum() for tensor in predictions).backward()
    assert without_gradient(model) == ["encoder.backbone.mask_token"]


def test_gradients_do_not_read_masked_patches(model, images, queries):
    mask = torch.ones(2, 3, 2, 3, dtype=torch.bool)
    mask[:, 1, 1, 2] = False
    images[:, 1, :, 14:, 28:] = torch.nan
    predictions = named_tensors(model(images, queries, mask)).values()
    sum((tensor * torch.randn_like(tensor)).sum() for tensor in predictions).backward()
    assert without_gradient(model) == ["encoder.backbone.mask_token"]


def test_gradients_of_the_images_end_at_the_mask(model, images, queries):
    mask = torch.ones(2, 3, 2, 3, dtype=torch.bool)
    mask[:, 1, 1, 2] = False
    images.requires_grad_()
    sum(tensor.sum() for tensor in named_tensors(model(images, queries, mask)).values()).backward()
    assert images.grad.isfinite().all()
    assert not images.grad[:, 1, :, 14:, 28:].any()
    assert images.grad[:, 1, :, 14:, :28].any()


def test_steps_of_training_lower_the_loss(lean_model, images, queries):
    model, images, queries = lean_model.train(), images.float(), queries.float()
    with torch.no_grad():
        targets = {
            "cameras.cam_from_world": torch.eye(3, 4).expand(2, 3, 3, 4),
            "depth.value": images.mean(2),
            "points.value": images.movedim(2, -1),
            "tracks.coords_px": queries[:, None].expand(-1, 3, -1, -1),
        }
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=4e-3)
    history = []
    for _ in range(5):
        predictions = named_tensors(model(images, queries))
        losses = {name: (predictions[name] - target).abs().mean() for name, target in targets.items()}
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        history.append({name: loss.item() for name, loss in losses.items()})
    for name in ("cameras.cam_from_world", "depth.value", "points.value"):
        assert history[-1][name] < 0.9 * history[0][name], name
    assert sum(history[-1].values()) < 0.9 * sum(history[0].values())


def test_training_mode_computes_the_same(model, images, queries):
    assert_same(model.train()(images, queries), model.eval()(images, queries), atol=0, tracks_atol=0)


# Precision. The bounds on rotations, in radians, are about 1.4 times the worst of twelve random lean models.

ROTATION_BOUNDS = {
    ("weights", torch.float32): 2.5e-6,
    ("weights", torch.float16): 0.0055,
    ("weights", torch.bfloat16): 0.06,
    ("autocast", torch.float16): 0.0042,
    ("autocast", torch.bfloat16): 0.04,
}


def assert_precise(model: VGGT, images: Tensor, queries: Tensor, how: str, dtype: torch.dtype, device: str) -> None:
    reference = model(images, queries)
    other = copy.deepcopy(model).to(device, dtype if how == "weights" else torch.float32)
    images, queries = images.to(device, torch.float32), queries.to(device, torch.float32)
    with torch.no_grad(), torch.autocast(device, dtype, enabled=how == "autocast"):
        prediction = other(images, queries)
    for name, tensor in named_tensors(prediction).items():
        assert tensor.dtype == torch.float32, name
        assert tensor.isfinite().all(), name
    rotations = (p.cameras.cam_from_world[..., :3].cpu().double() for p in (prediction, reference))
    assert rotation_angle(*rotations).max() < ROTATION_BOUNDS[how, dtype]
    eps = torch.finfo(dtype).eps
    for name in ("depth.value", "points.value", "depth.confidence"):
        error = relative_error(named_tensors(prediction)[name].cpu(), named_tensors(reference)[name])
        assert error < (2 if dtype != torch.float32 else 10) * eps, name
    if dtype != torch.float32:  # what leaves the last layers has bits that the model's precision doesn't have
        for name in ("pose_encodings", "depth.value", "points.value", "tracks.coords_px"):
            tensor = named_tensors(prediction)[name]
            assert not torch.equal(tensor, tensor.to(dtype).float()), name


@pytest.mark.parametrize(("how", "dtype"), ROTATION_BOUNDS)
def test_precision(model, images, queries, how, dtype):
    assert_precise(model, images, queries, how, dtype, "cpu")


@pytest.mark.cuda
@pytest.mark.parametrize(("how", "dtype"), ROTATION_BOUNDS)
def test_precision_on_a_gpu(model, images, queries, how, dtype, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # float32 means float32
    assert_precise(model, images, queries, how, dtype, "cuda")


@pytest.mark.cuda
def test_a_gpu_computes_the_same(model, images, queries):
    mask = torch.rand(2, 3, 2, 3) < 0.7
    reference = model(images, queries, mask)
    ours = copy.deepcopy(model).cuda()(images.cuda(), queries.cuda(), mask.cuda())
    for name, tensor in named_tensors(ours).items():
        assert tensor.is_cuda, name
        error = relative_error(tensor.cpu(), named_tensors(reference)[name])
        assert error < (1e-5 if name.startswith("track") else 1e-9), name


def test_float64_stays_float64(model, images, queries):
    assert {tensor.dtype for tensor in named_tensors(model(images, queries)).values()} == {torch.float64}


def test_images_may_have_another_precision_than_the_model(model, images, queries):
    prediction = copy.deepcopy(model).float()(images, queries)
    assert {tensor.dtype for tensor in named_tensors(prediction).values()} == {torch.float32}
    half = copy.deepcopy(model).bfloat16()(images.bfloat16(), queries)
    assert {tensor.dtype for tensor in named_tensors(half).values()} == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_trains(model, images, queries, dtype):
    half = model.to(dtype).train()
    predictions = named_tensors(half(images.to(dtype), queries.float()))
    sum(tensor.mean() for tensor in predictions.values()).backward()
    assert all(p.grad.isfinite().all() for p in half.parameters() if p.grad is not None)


# Copies


def test_copies_compute_the_same(model, images, queries):
    reference = model(images, queries)
    state = io.BytesIO()
    torch.save(model.state_dict(), state)
    state.seek(0)
    restored = VGGT(model.config).double()
    restored.load_state_dict(torch.load(state, weights_only=True))
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), restored):
        assert_same(other(images, queries), reference, atol=0, tracks_atol=0)
        assert other.config == model.config


def test_a_deep_copy_has_parameters_of_its_own(model, images):
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert all(parameter.any() for name, parameter in model.named_parameters() if name.endswith("project.weight"))


def test_predictions_pickle_and_map(model, images, queries):
    model.add_head("cameras_again", CameraHead(64, 1, num_heads=4).double())
    prediction = model(images, queries)
    again = pickle.loads(pickle.dumps(prediction))
    assert_same(again, prediction, atol=0, tracks_atol=0)
    mapped = torch.utils._pytree.tree_map_only(torch.Tensor, lambda tensor: tensor.detach() + 1, prediction)
    assert isinstance(mapped, Predictions)
    assert torch.equal(mapped.depth.value, prediction.depth.value + 1)


def test_builds_on_the_meta_device_at_full_size():
    with torch.device("meta"):
        model = VGGT(VGGTConfig())
    assert all(parameter.is_meta for parameter in model.parameters())
    assert not list(model.buffers())
    assert sum(parameter.numel() for parameter in model.parameters()) == 1_256_537_516


# What a caller can get wrong


def test_heads_that_the_model_does_not_have(images):
    model = VGGT(lean_config(heads=("camera", "depth"))).double()
    with pytest.raises(ValueError, match=r"^head must be one of 'camera', 'depth', got 'points'$"):
        model(images, heads=("camera", "points"))


@pytest.mark.usefixtures("unchecked")
def test_wrong_inputs(model, images, queries):
    wanted = r"^images must have shape \(B, S, 3, H, W\) or \(S, 3, H, W\), got "
    with pytest.raises(ValueError, match=wanted + r"\(3, 28, 42\)$"):
        model(images[0, 0])
    with pytest.raises(ValueError, match=wanted + r"\(3, 28, 42\)$"):
        model(images[0, 0], queries[0])
    with pytest.raises(ValueError, match=wanted + r"\(2, 3, 28, 42, 3\)$"):
        model(images.movedim(2, -1))
    with pytest.raises(ValueError, match=r"^images must be floating point, got torch.uint8$"):
        model((images * 255).byte())
    with pytest.raises(ValueError, match=r"^number of views must be positive, got 0$"):
        model(images[:, :0])
    with pytest.raises(ValueError, match=r"^image height must be a multiple of 14, got 27$"):
        model(images[..., :27, :])
    wanted = r"^query_points must have shape \(2, N, 2\) or \(2, N, 3\), got "
    with pytest.raises(ValueError, match=wanted + r"\(2, 5, 4\)$"):
        model(images, queries.repeat(1, 1, 2))
    with pytest.raises(ValueError, match=wanted + r"\(1, 5, 2\)$"):
        model(images, queries[0])
    with pytest.raises(ValueError, match=wanted + r"\(2,\)$"):
        model(images, queries[0, 0])
    with pytest.raises(ValueError, match=r"^patch_mask must have shape \(2, 3, 2, 3\), got \(2, 3, 28, 42\)$"):
        model(images, patch_mask=torch.ones(2, 3, 28, 42, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"^head must be one of .*, got 'normals'$"):
        model(images, heads=("normals",))


def test_images_too_small_to_track(model):
    images, queries = torch.rand(1, 2, 3, 14, 14, dtype=torch.float64), torch.rand(1, 2, 2, dtype=torch.float64)
    assert model(images).depth.value.shape == (1, 2, 14, 14)
    config = lean_config(track_levels=5)
    with pytest.raises(ValueError, match=r"^images must have at least 32 pixels a side for tracks, got \(14, 14\)"):
        VGGT(config).double()(images, queries)


def test_taps_beyond_the_depth():
    with pytest.raises(ValueError, match=r"^tap must be one of 0, 1, got 2$"):
        VGGT(VGGTConfig.tiny(depth=2))


def test_images_too_small_to_track_do_for_other_heads():
    model = VGGT(lean_config(track_levels=5)).double()
    images, queries = torch.rand(1, 2, 3, 14, 14, dtype=torch.float64), torch.rand(1, 2, 2, dtype=torch.float64)
    assert model(images, queries, heads=("depth",)).depth.value.shape == (1, 2, 14, 14)
    assert model(images).tracks is None


def test_queries_on_the_border_of_the_image(model, images):
    """Up to half a pixel outside of the outermost pixel centres."""
    queries = torch.tensor([[-0.5, -0.5], [41.5, 27.5], [0, 27.5]], dtype=torch.float64).expand(2, 3, 2)
    assert model(images, queries).tracks.coords_px.isfinite().all()
    assert model(images, queries[:, :0]).tracks.coords_px.shape == (2, 3, 0, 2)


def test_global_blocks_start_by_similarity_on_request():
    model = VGGT(VGGTConfig.tiny(similarity_gain=1.5, heads=()))
    dim = model.config.dim
    for block in model.encoder.global_blocks:
        weight, bias = block.attention.qkv.weight, block.attention.qkv.bias
        assert torch.equal(weight[:dim], weight[dim : 2 * dim])
        assert torch.equal(bias[:dim], bias[dim : 2 * dim])
        assert (block.attention.q_norm.weight == 1.5).all()
        assert (block.attention.k_norm.weight == 1.5).all()
    for block in [*model.encoder.frame_blocks, *VGGT(VGGTConfig.tiny(heads=())).encoder.global_blocks]:
        weight = block.attention.qkv.weight
        assert not torch.equal(weight[:dim], weight[dim : 2 * dim])
        assert (block.attention.q_norm.weight == 1).all()


@pytest.mark.usefixtures("unchecked")
def test_images_that_are_none_are_named_at_the_door(tiny_model: VGGT) -> None:
    pixels = torch.randint(0, 256, (2, 3, 28, 28), dtype=torch.uint8)
    for call in (tiny_model, tiny_model.encoder, partial(predict, tiny_model)):
        with pytest.raises(ValueError, match=r"^images must be floating point, got torch.uint8$"):
            call(pixels)
        with pytest.raises(ValueError, match=r"^images must be a tensor, got numpy.ndarray$"):
            call(pixels.numpy() / np.float32(255))
        with pytest.raises(ValueError, match=r"^images must be a tensor, got list$"):
            call(list(pixels / 255))
