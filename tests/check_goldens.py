"""Compare every component with golden files: `python tests/check_goldens.py DIR`.

A golden file holds inputs, outputs and, in its metadata, the numbers of the component that made them. The component is
built from those numbers, its weights are made from their published names, and the worst relative error of its outputs
is printed. Exits 1 if one is above 1e-4. Which component a file is for, its name says: the longest of the known names
that it begins with, so `tracker_wide.safetensors` is a tracker.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

import geomtx
from check_goldens_alignment import CHECKS_ALIGNMENT
from check_goldens_da3 import CHECKS_DA3
from check_goldens_omega import CHECKS_OMEGA
from check_goldens_pairs import CHECKS_PAIRS
from check_goldens_pi3 import CHECKS_PI3
from geomtx.encoder import PatchEmbedding
from geomtx.layers import RotaryTable, apply_rotary, rotary_table
from geomtx.models.vggt import keys as vggt_keys
from geomtx.tracking import build_pyramid, correlate
from geomtx.types import Tokens, TrackIterations, TrackLabels
from golden_files import TOLERANCE, Check, Golden, fill_by_rule, make


def each_head(table: RotaryTable) -> RotaryTable:
    """The table of tokens with positions a batch, for heads before them, (B, P, D) → (B, 1, P, D)."""
    return table._replace(cos=table.cos[:, None], sin=table.sin[:, None])


def check_rope2d(golden: Golden) -> Iterator[Check]:
    tokens = golden.tensors["tokens"]
    table = rotary_table(golden.tensors["positions"], tokens.shape[-1], base=golden.meta["frequency"])
    yield Check("out", apply_rotary(tokens, each_head(table)), golden.tensors["out"])


def check_attention_block(golden: Golden) -> Iterator[Check]:
    meta, tensors = golden.meta, golden.tensors
    block = make(
        golden,
        lambda: geomtx.TransformerBlock(
            meta["dim"], meta["num_heads"], mlp_ratio=meta["mlp_ratio"], qk_norm=meta["qk_norm"]
        ),
        vggt_keys.BLOCK_KEYS,
    )
    head_dim = meta["dim"] // meta["num_heads"]
    table = rotary_table(tensors["positions"], head_dim, base=meta["rope_frequency"], dtype=golden.dtype)
    yield Check("out", block(tensors["tokens"], rope=each_head(table)), tensors["out"])


def check_dinov2_vit(golden: Golden) -> Iterator[Check]:
    golden.require(layer_norm_eps=1e-6, interpolate_offset=0.0, interpolate_antialias=True)
    meta, tensors = golden.meta, golden.tensors
    vit = make(
        golden,
        lambda: geomtx.VisionTransformer(
            meta["dim"],
            meta["depth"],
            num_heads=meta["num_heads"],
            patch_size=meta["patch_size"],
            image_size=meta["img_size"],
            num_registers=meta["num_register_tokens"],
        ),
        vggt_keys.VIT_KEYS,
    )
    features = vit.forward_features(tensors["images"])
    yield Check("cls_token", features.cls, tensors["cls_token"])
    yield Check("patch_tokens", features.patches, tensors["patch_tokens"])
    yield Check("register_tokens", features.registers, tensors["register_tokens"])
    if "images_native" in tensors:
        yield Check("patch_tokens_native", vit(tensors["images_native"]), tensors["patch_tokens_native"])


def check_aggregator(golden: Golden) -> Iterator[Check]:
    meta = golden.meta

    def build() -> nn.Module:
        vit = meta.get("vit")
        backbone: nn.Module = PatchEmbedding(meta["dim"], patch_size=meta["patch_size"])
        if vit is not None:
            backbone = geomtx.VisionTransformer(
                vit["dim"],
                vit["depth"],
                num_heads=vit["num_heads"],
                patch_size=meta["patch_size"],
                image_size=meta["img_size"],
                num_registers=vit.get("num_register_tokens", meta["num_register_tokens"]),
            )
        blocks = [
            geomtx.TransformerBlock(meta["dim"], meta["num_heads"], qk_norm=True) for _ in range(2 * meta["depth"])
        ]
        return geomtx.AlternatingEncoder(
            backbone,
            blocks[::2],
            blocks[1::2],
            num_registers=meta["num_register_tokens"],
            rope_base=meta.get("rope_frequency", 100),
        )

    tokens = make(golden, build, vggt_keys.ENCODER_KEYS)(golden.tensors["images"])
    for index, reference in golden.numbered("tokens").items():
        yield Check(f"tokens.{index}", tokens.layer(index), reference)


def check_camera_head(golden: Golden) -> Iterator[Check]:
    meta = golden.meta
    head = make(
        golden,
        lambda: geomtx.CameraHead(
            meta["dim"], meta["depth"], num_heads=meta["num_heads"], num_iterations=meta["num_iterations"]
        ),
        vggt_keys.CAMERA_HEAD_KEYS,
    )
    tokens = Tokens({0: golden.tensors["tokens"]}, 1, (14, 14), (1, golden.tensors["tokens"].shape[2] - 1))
    for index, encoding in enumerate(head(tokens).pose_encodings):
        yield Check(f"pose_encoding.{index}", encoding, golden.tensors[f"pose_encoding.{index}"])


def check_dpt(golden: Golden) -> Iterator[Check]:
    golden.require(conf_activation="expp1")
    meta = golden.meta
    features_only = meta.get("feature_only", False)
    patch, image_hw = meta["patch_size"], tuple(meta["image_size"])
    grid_hw = (image_hw[0] // patch, image_hw[1] // patch)

    def build_decoder() -> geomtx.DPTDecoder:
        return geomtx.DPTDecoder(
            meta["dim"],
            meta["features"],
            channels=tuple(meta["out_channels"]),
            taps=tuple(meta["taps"]),
            out_channels=meta["features"] if features_only else None,
            stride=meta.get("down_ratio", 1),
            position_signal=meta.get("pos_embed", True),
        )

    def build_head() -> geomtx.DenseHead:
        activation = {"exp": "exp", "inv_log": "signed_expm1", "linear": "linear"}[meta["activation"]]
        return geomtx.DenseHead(build_decoder(), meta["output_dim"] - 1, activation=activation)

    tokens = Tokens(golden.numbered("tokens"), meta["patch_start"], image_hw, grid_hw)
    if features_only:
        out = make(golden, build_decoder, vggt_keys.DECODER_KEYS).decode(tokens)
        yield Check("out", out, golden.tensors["out"])
        return
    value, confidence = make(golden, build_head, vggt_keys.DENSE_HEAD_KEYS)(tokens)
    yield Check("out", value[..., None] if meta["output_dim"] == 2 else value, golden.tensors["out"])
    yield Check("confidence", confidence, golden.tensors["confidence"])


def check_correlation(golden: Golden) -> Iterator[Check]:
    tensors = golden.tensors
    pyramid = build_pyramid(tensors["features"].flatten(0, 1), golden.meta["num_levels"])
    targets, coords = tensors["targets"].flatten(0, 1), tensors["coords"].flatten(0, 1)
    out = correlate(pyramid, targets, coords, radius=golden.meta["radius"])
    yield Check("out", out.unflatten(0, tensors["targets"].shape[:2]), tensors["out"])


def check_tracker(golden: Golden) -> Iterator[Check]:
    meta, tensors = golden.meta, golden.tensors
    tracker = make(
        golden,
        lambda: geomtx.Tracker(
            meta["dim"],
            num_levels=meta["corr_levels"],
            radius=meta["corr_radius"],
            num_iterations=meta["iterations"],
            hidden_dim=meta["hidden_dim"],
            num_heads=meta["num_heads"],
            depth=meta["depth"],
            num_virtual=meta["num_virtual_tracks"],
            stride=meta["stride"],
            max_displacement=meta.get("max_scale", 518),
        ),
        vggt_keys.TRACKER_KEYS,
    )
    result = tracker(tensors["features"], tensors["query_points"])
    query = tensors["query_points"][:, None, :, -2:]
    for index, coords in enumerate(result.coords_px):
        yield Check(f"tracks.{index}", coords, tensors[f"tracks.{index}"], query)
    yield Check("visibility", result.visibility_logits.sigmoid(), tensors["visibility"])
    yield Check("confidence", result.confidence_logits.sigmoid(), tensors["confidence"])


def check_vggt_1b(golden: Golden) -> Iterator[Check]:
    tensors = golden.tensors
    with torch.device("meta"):
        model = geomtx.VGGT(geomtx.VGGTConfig())
    fill_by_rule(model, vggt_keys.VGGT_KEYS, dtype=golden.dtype)
    tokens = model.encoder(tensors["images"])
    for index, reference in golden.numbered("tap").items():
        yield Check(f"tap.{index}", tokens.layer(index)[:, :, : reference.shape[2]], reference)
    yield Check("pose_enc", model.camera_head(tokens).pose_encodings[-1], tensors["pose_enc"])
    depth, points = model.depth_head(tokens), model.point_head(tokens)
    yield Check("depth", depth.value[..., None], tensors["depth"])
    yield Check("depth_conf", depth.confidence, tensors["depth_conf"])
    yield Check("world_points", points.value, tensors["world_points"])
    yield Check("world_points_conf", points.confidence, tensors["world_points_conf"])
    tracks, _ = model.track_head(tokens, tensors["query_points"])
    yield Check("track", tracks.coords_px, tensors["track"])
    yield Check("vis", tracks.visibility, tensors["vis"])
    yield Check("conf", tracks.confidence, tensors["conf"])


def check_pose_encoding(golden: Golden) -> Iterator[Check]:
    tensors, image_hw = golden.tensors, tuple(golden.meta["image_size"])
    encoding = geomtx.encode_pose(tensors["extrinsics"], tensors["intrinsics"], image_hw)
    yield Check("encoding", encoding, tensors["encoding"])
    for source, result in (("encoding", "decoded"), ("raw_encoding", "raw")):
        cameras = geomtx.decode_pose(tensors[source], image_hw)
        yield Check(f"{result}_extrinsics", cameras.cam_from_world, tensors[f"{result}_extrinsics"])
        yield Check(f"{result}_intrinsics", cameras.intrinsics, tensors[f"{result}_intrinsics"])


def check_unprojection(golden: Golden) -> Iterator[Check]:
    depth, extrinsics, intrinsics = (golden.tensors[name].double() for name in ("depth", "extrinsics", "intrinsics"))
    yield Check("points", geomtx.unproject(depth[..., 0], intrinsics, extrinsics), golden.tensors["points"])


def check_preprocessing(golden: Golden) -> Iterator[Check]:
    folder = golden.path.parent / "images"
    for name in golden.tensors:
        reference = golden.tensors[name]
        stem, kind, *rest = name.split(".")
        paths = sorted(folder.glob("*.png")) if stem == "all" else [folder / f"{stem}.png"]
        if kind.startswith("square"):  # any size, not only whole patches
            views = geomtx.load_views(paths, mode="square", size=int(kind.removeprefix("square")), patch_size=1)
        else:
            views = geomtx.load_views(paths, mode=kind, size=518)
        if not rest:
            pixels = (views.images * 255).round()[..., ::7, ::7]
            yield Check(name, pixels if stem == "all" else pixels[0], reference)
        elif rest == ["size"]:
            yield Check(name, torch.tensor(views.images.shape[-2:]), reference)
        elif rest == ["coords"]:
            yield Check(name, torch.stack([content_corners(t) for t in views.transforms]), reference)


def check_normalization(golden: Golden) -> Iterator[Check]:
    tensors = golden.tensors
    b, s, height, width = tensors["depths"].shape
    batch = geomtx.SceneBatch(
        torch.zeros(b, s, 3, height, width),
        geomtx.Cameras(tensors["extrinsics"], torch.eye(3, dtype=golden.dtype).expand(b, s, 3, 3)),
        depth=tensors["depths"],
        points=tensors["world_points"],
        mask=tensors["mask"],
    )
    batch, scale = geomtx.normalize_scene(batch)
    yield Check("extrinsics", batch.cameras.cam_from_world, tensors["out_extrinsics"])
    yield Check("depths", batch.depth, tensors["out_depths"])
    yield Check("world_points", batch.points, tensors["out_world_points"])
    # Points in each camera's own frame are no label of ours; the scale is what they test.
    yield Check("cam_points", tensors["cam_points"] / scale[:, None, None, None, None], tensors["out_cam_points"])


def released_loss(task: str, options: str) -> geomtx.MultitaskLoss:
    """The published loss of one task: "l1" … of the camera, "grad_conf.0.98" … of depth and points."""
    released = geomtx.MultitaskLoss.released()
    if task == "camera":
        return geomtx.MultitaskLoss.released(camera=replace(released.tasks["camera"], kind=options), depth=None)
    term, _, quantile = options.partition(".")
    kind, _, confidence = term.partition("_")
    head = {"depth": "depth", "point": "points"}[task]
    dense = replace(
        released.tasks["depth"],
        task=head,
        gradient={"none": None, "grad": "gradient", "normal": "normal"}[kind],
        gradient_confidence=confidence == "conf",
        legacy_unmasked_log=True,
        quantile=None if quantile == "-1" else float(quantile),
    )
    return geomtx.MultitaskLoss.released(**{"camera": None, "depth": None, head: dense})


def check_losses(golden: Golden) -> Iterator[Check]:
    tensors, (height, width) = golden.tensors, golden.meta["image_size"]
    cameras = geomtx.Cameras(tensors["extrinsics"], tensors["intrinsics"])
    images = torch.zeros(*tensors["mask"].shape[:2], 3, height, width)
    depth, points = tensors["gt_depth"], tensors["gt_points"]
    batch = geomtx.SceneBatch(images, cameras, depth=depth, points=points, mask=tensors["mask"])
    predictions = geomtx.Predictions(
        pose_encodings=torch.stack(list(golden.numbered("pose_encoding").values())),
        depth=geomtx.DenseMap(tensors["pred_depth"][..., 0], tensors["depth_confidence"]),
        points=geomtx.DenseMap(tensors["pred_points"], tensors["points_confidence"]),
    )
    for name in [name for name in tensors if name.startswith("loss.")]:
        _, task, options = name.split(".", 2)
        options, _, term = options.rpartition(".")
        terms = released_loss(task, options)(predictions, batch).terms
        # Without a gradient term there is nothing of that name to log; published is a zero.
        yield Check(name, terms.get(term, torch.zeros((), dtype=golden.dtype)), tensors[name])


def check_track_loss(golden: Golden) -> Iterator[Check]:
    meta, tensors = golden.meta, golden.tensors
    coords = torch.stack(list(golden.numbered("tracks").values()))
    iterations = TrackIterations(coords, tensors["visibility_logits"], tensors["confidence_logits"])
    visible = tensors["gt_visibility"]
    labels = TrackLabels(tensors["gt_tracks"], visible, torch.ones_like(visible[:, 0]))
    loss = geomtx.track_loss(iterations, labels, decay=meta["gamma"], threshold_px=meta["confidence_radius_px"])
    yield Check("position", loss.position, tensors["loss_track"])
    yield Check("visibility", loss.visibility, tensors["loss_visibility"])
    yield Check("confidence", loss.confidence, tensors["loss_confidence"])


def content_corners(transform: Any) -> Tensor:
    """(x1, y1, x2, y2) of the photo's borders in the model's image, and the photo's width and height."""
    height, width = transform.original_hw
    # Borders lie half a pixel outside the outermost pixel centres.
    borders = torch.tensor([[-0.5, -0.5], [width - 0.5, height - 0.5]], dtype=torch.float64)
    corners = transform.from_original(borders) + 0.5
    return torch.cat([corners.flatten(), torch.tensor([width, height])]).float()


CHECKS: dict[str, Callable[[Golden], Iterator[Check]]] = {
    "rope2d": check_rope2d,
    "attention_block": check_attention_block,
    "dinov2_vit": check_dinov2_vit,
    "aggregator": check_aggregator,
    "camera_head": check_camera_head,
    "dpt": check_dpt,
    "correlation": check_correlation,
    "tracker": check_tracker,
    "vggt_1b": check_vggt_1b,
    "pose_encoding": check_pose_encoding,
    "unprojection": check_unprojection,
    "preprocessing": check_preprocessing,
    "losses": check_losses,
    "normalization": check_normalization,
    "track_loss": check_track_loss,
    **CHECKS_ALIGNMENT,
    **CHECKS_DA3,
    **CHECKS_OMEGA,
    **CHECKS_PAIRS,
    **CHECKS_PI3,
}


def errors_of(path: Path, dtype: torch.dtype | None = None) -> dict[str, float] | None:
    """Output → relative error, computed in the file's precision or another; None if no component is known for it."""
    names = [name for name in CHECKS if path.stem.startswith(name)]
    if not names:
        return None
    golden = Golden.load(path, dtype)
    with torch.no_grad():
        errors = {check.name: check.error() for check in CHECKS[max(names, key=len)](golden)}
    return errors | dict.fromkeys(sorted(golden.tensors.unread), float("inf"))  # an output without a check


def main(arguments: list[str]) -> int:
    if len(arguments) != 1 or not Path(arguments[0]).is_dir():
        print("usage: python tests/check_goldens.py DIR", file=sys.stderr)
        return 2
    paths = sorted(Path(arguments[0]).glob("*.safetensors"))
    if not paths:
        print(f"no .safetensors files in {arguments[0]}", file=sys.stderr)
        return 2
    failed = False
    for path in paths:
        try:
            errors = errors_of(path)
        except Exception as error:  # the files after it count too
            print(f"{path.stem:32} FAIL     {type(error).__name__}: {' '.join(str(error).split())[:200]}", flush=True)
            failed = True
            continue
        if errors is None:
            print(f"{path.stem:32} not covered", flush=True)
            failed = True
            continue
        worst = max(errors, key=errors.__getitem__)
        passed = errors[worst] <= TOLERANCE
        failed |= not passed
        print(f"{path.stem:32} {errors[worst]:.1e}  {worst:24} {'ok' if passed else 'FAIL'}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
