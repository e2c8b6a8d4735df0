"""Golden files of Pi3 and Pi3X, for `check_goldens.py`."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

import geomtx
from geomtx.encoder.alternating import AlternatingEncoder
from geomtx.encoder.geometry_conditioning import KnownGeometry, check_geometry, prepare_geometry
from geomtx.encoder.patches import Backbone, ImageNormalization
from geomtx.encoder.pose_injection import PoseBlock, as_matrices, pose_table
from geomtx.geometry import invert_rigid
from geomtx.heads.point_map import rigid_of_rows
from geomtx.heads.upsampler import Upsampler
from geomtx.layers.attention import key_mask
from geomtx.models.pi3 import Pi3, Pi3Config, keys
from geomtx.models.vggt.keys import BLOCK_KEYS
from geomtx.types import EmbeddedViews, Tokens
from golden_files import Check, Golden, make


def config_of(meta: dict[str, Any], **changes: Any) -> Pi3Config:
    """The configuration that a file's numbers are of."""
    numbers = {
        "dim": meta["dim"],
        "depth": meta.get("depth", 2) // 2,
        "num_heads": meta.get("num_heads", 1),
        "num_registers": meta["registers"],
        "table_size": meta.get("img_size", 70),
        "vit_depth": meta.get("vit_depth", 1),
        "vit_num_heads": meta.get("vit_heads", meta.get("num_heads", 1)),
        "head_dim": meta.get("head_dim", 16),
        "head_depth": meta.get("head_depth", 1),
        "head_num_heads": meta.get("head_heads", 1),
        "camera_dim": meta.get("camera_dim", 16),
    }
    return Pi3Config(**numbers | changes)


def grid_of(golden: Golden) -> tuple[tuple[int, int], tuple[int, int]]:
    """Size of the images and of the grid of patches."""
    height, width = golden.meta["image_size"]
    return (height, width), (height // 14, width // 14)


class GivenPatches(nn.Module):
    """A backbone whose patch tokens are given."""

    patch_size = 14

    def __init__(self, patches: Tensor) -> None:
        super().__init__()
        self.patches, self.dim = patches, patches.shape[-1]

    def forward(self, images: Tensor, patch_mask: Tensor | None = None) -> Tensor:
        return self.patches.flatten(0, 1)


def check_decoder(golden: Golden) -> Iterator[Check]:
    tensors, (image_hw, _) = golden.tensors, grid_of(golden)
    config = config_of(golden.meta)
    backbone: Backbone = GivenPatches(tensors["patches"])

    def build() -> nn.Module:
        model = Pi3(config).encoder
        return AlternatingEncoder(
            backbone, model.frame_blocks, model.global_blocks, special=model.special, taps=config.taps
        )

    own = keys.keys_of(config)
    encoder = make(golden, build, type(own)(tuple((a, b.removeprefix("encoder.")) for a, b in own.pairs)))
    tokens = encoder(tensors["patches"].new_zeros(*tensors["patches"].shape[:2], 3, *image_hw))
    yield Check("out", tokens.layer(config.taps[-1]), tensors["out"])
    _ = tensors["positions"]  # those of the grid


def check_points_head(golden: Golden) -> Iterator[Check]:
    tensors, (image_hw, grid_hw) = golden.tensors, grid_of(golden)
    config = config_of(golden.meta, dim=golden.meta["dim"] // 2)
    own = keys.keys_of(config)
    head = make(
        golden,
        lambda: Pi3(config).point_head,
        type(own)(tuple((a, b.removeprefix("point_head.")) for a, b in own.pairs if b.startswith("point_head."))),
    )
    views = tensors["tokens"].shape[:2]
    tokens = Tokens({config.taps[-1]: tensors["tokens"]}, config.num_registers, image_hw, grid_hw)
    yield Check("point_tokens", head.points.trunk(tokens).unflatten(0, views), tensors["point_tokens"])
    yield Check("camera_tokens", head.camera.trunk(tokens).unflatten(0, views), tensors["camera_tokens"])
    raw = head.points(tokens).movedim(1, -1).unflatten(0, views)
    yield Check("raw", raw, tensors["raw"])
    logits = head.confidence(tokens)[:, 0].unflatten(0, views)
    yield Check("confidence_logits", logits, tensors["confidence_logits"])
    yield Check("local_points", head.locate(raw), tensors["local_points"])
    yield Check("log z", raw[..., 2], tensors["local_points"][..., 2].log())
    yield Check("world_from_cam", as_matrices(head.camera(tokens)).unflatten(0, views), tensors["world_from_cam"])


def check_preprocessing(golden: Golden) -> Iterator[Check]:
    """Pictures without their alpha channel, which is dropped in the published way and composed in geomtx's."""
    folder = golden.path.parent / "images"
    with tempfile.TemporaryDirectory() as place:
        for path in sorted(folder.glob("*.png")):
            Image.open(path).convert("RGB").save(Path(place) / path.name)
        views = geomtx.load_views(place, mode="area", size=golden.meta["pixel_limit"])
    yield Check("all", (views.images * 255).round()[..., ::7, ::7], golden.tensors["all"])
    yield Check("all.size", torch.tensor(views.image_hw), golden.tensors["all.size"])


def check_rotation(golden: Golden) -> Iterator[Check]:
    nine = golden.tensors["nine"]
    rigid = rigid_of_rows(torch.zeros_like(nine[:, :3]), nine.unflatten(-1, (3, 3)))
    yield Check("rotation", rigid[..., :3], golden.tensors["rotation"])


def make_model(golden: Golden, config: Pi3Config) -> Pi3:
    """A whole model, with ImageNet's mean and standard deviation."""
    model: Any = make(golden, lambda: Pi3(config), keys.keys_of(config))
    model.encoder.normalize = ImageNormalization()
    return model


def check_pi3(golden: Golden) -> Iterator[Check]:
    tensors = golden.tensors
    model = make_model(golden, config_of(golden.meta))
    yield from compare(model, tensors["images"], tensors, "")


def compare(
    model: Pi3, images: Tensor, tensors: dict[str, Tensor], prefix: str, known: KnownGeometry | None = None
) -> Iterator[Check]:
    """Compare predictions; files have the first views, or the first scenes, of some maps."""
    given = (
        {}
        if known is None
        else model.condition(prepare_geometry(check_geometry(known, images)), tuple(images.shape[-2:]))
    )
    tokens = model.encoder(images, **given)
    found = model.run_heads(lambda head: tokens, model.heads)
    # From confidences below 1.1 their logits can't be had in float32.
    logits = model.point_head.confidence(tokens)[:, 0].unflatten(0, images.shape[:2])
    yield Check(f"{prefix}confidence", found.depth.confidence, 1 + logits.exp())

    def cut(name: str, value: Tensor) -> Check:
        golden = tensors[prefix + name]
        return Check(prefix + name, value[: golden.shape[0], : golden.shape[1]], golden)

    yield cut("local_points", found.points_cam.value)
    logs = [each[..., 2].log() for each in (found.points_cam.value, tensors[f"{prefix}local_points"])]
    yield Check(f"{prefix}log z", logs[0][:, : logs[1].shape[1]], logs[1])
    yield cut("confidence_logits", logits)
    yield cut("world_from_cam", as_matrices(invert_rigid(found.cameras.cam_from_world)))
    if f"{prefix}points" in tensors:
        yield cut("points", found.points.value)
    if f"{prefix}metric" in tensors:
        yield Check(f"{prefix}metric", found.metric_scale, tensors[f"{prefix}metric"])
    if f"{prefix}rays" in tensors:
        yield cut("rays", nn.functional.normalize(found.points_cam.value, dim=-1))


def check_pi3x(golden: Golden) -> Iterator[Check]:
    tensors, meta = golden.tensors, golden.meta
    config = config_of(
        meta,
        known_geometry=True,
        pose_layers=tuple(layer for layer in Pi3Config.pose_layers if 2 * layer < meta["depth"]),
        metric_depth=meta.get("metric_depth", meta["head_depth"]),
        max_log_depth=15.0,
        upsampling=tuple(meta["upsample"]),
        metric_dim=meta["metric_dim"],
        metric_num_heads=meta["metric_heads"],
    )
    model = make_model(golden, config)
    images, poses = tensors["images"], invert_rigid(tensors["poses_in"][..., :3, :])
    # Published pixel centres are at halves.
    intrinsics = tensors["intrinsics_in"].clone()
    intrinsics[..., :2, 2] -= 0.5
    all_known = KnownGeometry(poses, intrinsics, tensors["depth_in"])
    masks = {name: tensors[f"partial.{name}_mask"] for name in ("depth", "pose", "ray")}
    partial = all_known._replace(depth_mask=masks["depth"], pose_mask=masks["pose"], intrinsics_mask=masks["ray"])
    for prefix, known in (
        ("", None),
        ("known.", all_known),
        ("no_depth.", all_known._replace(depth=None)),
        ("partial.", partial),
    ):
        if f"{prefix}local_points" in tensors:
            yield from compare(model, images, tensors, prefix, known)


def check_conv_head(golden: Golden) -> Iterator[Check]:
    tensors, (image_hw, grid_hw) = golden.tensors, grid_of(golden)
    head = make(
        golden,
        lambda: Upsampler(golden.meta["dim"], stages=golden.meta["upsample"], out_dims=(2, 1)),
        keys.UPSAMPLER_KEYS,
    )
    out = head(tensors["tokens"], grid_hw, image_hw)
    yield Check("xy", out[:, :2], tensors["xy"])
    yield Check("log_z", out[:, 2:], tensors["log_z"])


def check_pose_injection(golden: Golden) -> Iterator[Check]:
    tensors, (image_hw, grid_hw) = golden.tensors, grid_of(golden)
    meta, poses = golden.meta, invert_rigid(tensors["poses"][..., :3, :])
    block = make(
        golden,
        lambda: PoseBlock(meta["dim"], meta["num_heads"], qk_norm=True, norm_eps=1e-6),
        BLOCK_KEYS,
    )
    x = tensors["tokens"].unflatten(1, (poses.shape[1], -1))
    mask = torch.ones(poses.shape[:2], dtype=torch.bool)
    table = pose_table(EmbeddedViews(x, 0, image_hw, grid_hw, poses=poses, posed=mask), block.attention.head_dim)
    out = block(x.flatten(1, 2), rope=table, mask=key_mask(table.active))
    yield Check("out", out - tensors["tokens"], tensors["out"])


CHECKS_PI3: dict[str, Callable[[Golden], Iterator[Check]]] = {
    "pi3": check_pi3,
    "pi3_decoder": check_decoder,
    "pi3_points_head": check_points_head,
    "pi3_preprocessing": check_preprocessing,
    "pi3_rotation": check_rotation,
    "pi3x": check_pi3x,
    "pi3x_conv_head": check_conv_head,
    "pi3x_pose_injection": check_pose_injection,
}
