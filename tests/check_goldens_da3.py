"""Golden files of Depth Anything 3, for `check_goldens.py`."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

import geomtx
from geomtx.encoder import CameraEncoder, choose_reference
from geomtx.encoder.camera_encoder import to_first_camera
from geomtx.encoder.patches import IMAGENET_MEAN, IMAGENET_STD
from geomtx.geometry import encode_pose, fit_similarity, invert_rigid
from geomtx.geometry.ray_cameras import cameras_from_rays
from geomtx.heads import CameraMLP, DepthRayHead, DepthSkyHead, DPTDecoder
from geomtx.models import DepthAnything3, DepthAnything3Config
from geomtx.models.da3 import keys
from geomtx.models.da3.metric import depth_in_metres, fill_sky, scale_to_metres
from geomtx.models.da3.parts import build_encoder
from geomtx.types import Cameras, DenseMap, Tokens
from golden_files import Check, Golden, fill_by_rule, make

RULES = ("saddle_balanced", "saddle_sim_range", "first", "middle")


def undo_normalization(images: Tensor) -> Tensor:
    """The images of normalised ones, (..., 3, H, W)."""
    mean, std = (images.new_tensor(each, dtype=torch.float64)[:, None, None] for each in (IMAGENET_MEAN, IMAGENET_STD))
    return (images * std + mean).to(images.dtype)


def check_backbone(golden: Golden) -> Iterator[Check]:
    meta, tensors = golden.meta, golden.tensors
    taps = tuple(meta["taps"])
    many_views = meta["alt_start"] >= 0
    config = DepthAnything3Config(
        dim=meta["dim"],
        depth=meta["depth"],
        num_heads=meta["num_heads"],
        first_global=meta["alt_start"] if many_views else None,
        gated=meta["ffn"] != "mlp",
        taps=(taps + taps[-1:] * 4)[:4],
        table_size=meta["img_size"],
    )
    encoder = make(golden, lambda: build_encoder(config), keys.backbone_keys(config))
    images = undo_normalization(tensors["images"])
    layers = dict(zip(config.taps, config.layers, strict=True))

    def compare(name: str, tokens: Tokens) -> Iterator[Check]:
        for tap, layer in layers.items():
            stem = f"{name}." if name else ""
            if f"{stem}patches.{tap}" in tensors:
                yield Check(f"{stem}patches.{tap}", tokens.layer(layer)[:, :, 1:], tensors[f"{stem}patches.{tap}"])
            if f"{stem}token.{tap}" in tensors:
                yield Check(f"{stem}token.{tap}", tokens.layer(layer)[:, :, 0], tensors[f"{stem}token.{tap}"])

    if not many_views:
        yield from compare("", encoder(images))
        return
    for rule in RULES:
        if any(name.startswith(f"{rule}.") for name in tensors):
            encoder.reference = rule
            yield from compare(rule, encoder(images))
        if f"{rule}.index" in tensors:
            chosen = choose_reference(tensors["class_tokens"], rule)
            yield Check(f"{rule}.index", chosen, tensors[f"{rule}.index"])
    yield from compare("two_views", encoder(images[:, :2]))
    yield from compare("known", encoder(images, camera_tokens=tensors["camera_tokens"]))


def check_reference_view(golden: Golden) -> Iterator[Check]:
    for rule in RULES:
        yield Check(rule, choose_reference(golden.tensors["class_tokens"], rule), golden.tensors[rule])


def read_tokens(golden: Golden) -> Tokens:
    """Patch tokens of four layers, without special tokens."""
    image_hw, patch = tuple(golden.meta["image_size"]), golden.meta["patch_size"]
    return Tokens(golden.numbered("tokens"), 0, image_hw, (image_hw[0] // patch, image_hw[1] // patch))


def check_dual_dpt(golden: Golden) -> Iterator[Check]:
    meta, tensors = golden.meta, golden.tensors

    def build() -> nn.Module:
        channels = tuple(meta["out_channels"])
        decoder = DPTDecoder(meta["dim"], meta["features"], channels=channels, taps=(0, 1, 2, 3), rectified_skip=False)
        return DepthRayHead(decoder)

    found = make(golden, build, keys.DENSE_HEAD_KEYS)(read_tokens(golden))
    yield from compare_dense(found["depth"], tensors["depth"], tensors["depth_conf"], "depth")
    yield Check("ray", found["rays"].value, tensors["ray"])
    yield Check("ray_conf", found["rays"].confidence, tensors["ray_conf"])


def compare_dense(dense: tuple[Tensor, Tensor], value: Tensor, confidence: Tensor, name: str) -> Iterator[Check]:
    """Compare values, their logarithms, and confidences."""
    yield Check(name, dense[0], value)
    yield Check(f"log {name}", dense[0].log(), value.log())
    yield Check(f"{name}_conf", dense[1], confidence)


def check_mono_dpt(golden: Golden) -> Iterator[Check]:
    meta, tensors = golden.meta, golden.tensors

    def build() -> nn.Module:
        decoder = DPTDecoder(
            meta["dim"],
            meta["features"],
            channels=tuple(meta["out_channels"]),
            taps=(0, 1, 2, 3),
            position_signal=False,
            token_norm=False,
            rectified_skip=False,
        )
        return DepthSkyHead(decoder)

    found = make(golden, build, keys.DENSE_HEAD_KEYS)(read_tokens(golden))
    yield Check("depth", found["depth"].value, tensors["depth"])
    yield Check("log depth", found["depth"].value.log(), tensors["depth"].log())
    yield Check("sky", found["sky"], tensors["sky"])


def check_camera_decoder(golden: Golden) -> Iterator[Check]:
    meta, tensors = golden.meta, golden.tensors
    head = make(golden, lambda: CameraMLP(meta["dim"]), keys.CAMERA_HEAD_KEYS)
    yield Check("pose_encoding", head.encode(tensors["tokens"]), tensors["pose_encoding"])
    yield from compare_cameras(head.predict(tensors["tokens"], tuple(meta["image_size"])).cameras, tensors)


def compare_cameras(cameras: Cameras, tensors: dict[str, Tensor], prefix: str = "") -> Iterator[Check]:
    """Compare poses, and intrinsics one by one, as those of a field of view of 0 are very large."""
    yield Check(f"{prefix}extrinsics", cameras.cam_from_world, tensors[f"{prefix}extrinsics"][..., :3, :])
    if f"{prefix}intrinsics" in tensors:
        golden = tensors[f"{prefix}intrinsics"]
        one_by_one = cameras.intrinsics / torch.where(golden == 0, 1.0, golden)
        yield Check(f"{prefix}intrinsics", one_by_one, (golden != 0).to(golden.dtype))


def check_camera_encoder(golden: Golden) -> Iterator[Check]:
    meta, tensors = golden.meta, golden.tensors
    encoder = make(
        golden,
        lambda: CameraEncoder(meta["dim"], meta["depth"], num_heads=meta["num_heads"]),
        keys.CAMERA_ENCODER_KEYS,
    )
    cameras = Cameras(tensors["extrinsics"][..., :3, :], tensors["intrinsics"])
    image_hw = tuple(meta["image_size"])
    encoding = encode_pose(invert_rigid(cameras.cam_from_world), cameras.intrinsics, image_hw)
    yield Check("pose_encoding", encoding, tensors["pose_encoding"])
    yield Check("camera_tokens", encoder(cameras, image_hw), tensors["camera_tokens"])


def check_model(config: DepthAnything3Config) -> Callable[[Golden], Iterator[Check]]:
    """A whole model of published size."""

    def check(golden: Golden) -> Iterator[Check]:
        with torch.device("meta"):
            model = DepthAnything3(config)
        fill_by_rule(model, keys.keys_of(config), dtype=golden.dtype)
        images = undo_normalization(golden.tensors["images"])
        yield from compare_model(model, golden, images, "", {})
        if "known.extrinsics_in" in golden.tensors:
            poses = golden.tensors["known.extrinsics_in"][..., :3, :]
            image_hw = (images.shape[-2], images.shape[-1])
            known = model.camera_encoder(Cameras(poses, golden.tensors["known.intrinsics_in"]), image_hw)
            yield from compare_model(model, golden, images, "known.", {"camera_tokens": known})

    return check


def compare_model(
    model: DepthAnything3, golden: Golden, images: Tensor, prefix: str, known: dict[str, Tensor]
) -> Iterator[Check]:
    """Compare all that a model computes, with known cameras or without."""
    tensors = golden.tensors
    tokens = model.encoder(images, **known)
    for tap, layer in zip(model.config.taps, model.config.layers, strict=True):
        name = f"{prefix}tap.{tap}"
        if name in tensors:
            yield Check(name, tokens.layer(layer)[:, :, 1 : 1 + tensors[name].shape[2]], tensors[name])
    if model.camera_head is not None:
        token = tokens.layer(model.config.layers[-1])[:, :, 0]
        yield Check(f"{prefix}camera_token", token, tensors[f"{prefix}camera_token"])
        encoding = model.camera_head.encode(token)
        yield Check(f"{prefix}pose_encoding", encoding, tensors[f"{prefix}pose_encoding"])
        yield from compare_cameras(model.camera_head(tokens).cameras, tensors, prefix)
    found = model.run_heads(lambda head: tokens, model.heads)
    if found.sky is not None:
        yield Check("depth", found.depth.value, tensors["depth"])
        yield Check("log depth", found.depth.value.log(), tensors["depth"].log())
        yield Check("sky", found.sky, tensors["sky"])
        yield Check("depth_after_sky", fill_sky(found.depth.value, found.sky), tensors["depth_after_sky"])
        return
    confidence = tensors[f"{prefix}depth_conf"]
    yield from compare_dense(found.depth, tensors[f"{prefix}depth"], confidence, f"{prefix}depth")
    if f"{prefix}ray" in tensors:
        yield Check(f"{prefix}ray", found.rays.value, tensors[f"{prefix}ray"])
        yield Check(f"{prefix}ray_conf", found.rays.confidence, tensors[f"{prefix}ray_conf"])


def check_rays_to_pose(golden: Golden) -> Iterator[Check]:
    """The published way, with the published draws; and the exact one, whose rotations are the true ones."""
    tensors, image_hw = golden.tensors, tuple(golden.meta["image_size"])
    rays, confidence = tensors["ray"], tensors["ray_conf"]
    cameras = cameras_from_rays(rays, confidence, image_hw, decomposition="ql", samples=tensors["samples"])
    yield Check("extrinsics", cameras.cam_from_world, tensors["extrinsics"])
    yield Check("intrinsics", cameras.intrinsics, tensors["intrinsics"])
    yield Check("world_from_cam", invert_rigid(cameras.cam_from_world), tensors["world_from_cam"][..., :3, :])
    size = tensors["ray"].new_tensor([image_hw[1] / 2, image_hw[0] / 2])
    yield Check("focal", cameras.intrinsics.diagonal(dim1=-2, dim2=-1)[..., :2] / size, tensors["focal"])
    yield Check("principal_point", cameras.intrinsics[..., :2, 2] / size, tensors["principal_point"])
    exact = cameras_from_rays(rays, confidence, image_hw).cam_from_world
    degrees = rotation_angle(exact[..., :3], tensors["true_extrinsics"][..., :3]).rad2deg().amax()
    yield Check("true rotation", (degrees > 0.15).to(degrees.dtype), torch.zeros_like(degrees))


def rotation_angle(first: Tensor, second: Tensor) -> Tensor:
    """Angle between rotations in radians."""
    return (((first.mT @ second).diagonal(dim1=-2, dim2=-1).sum(-1) - 1) / 2).clamp(-1, 1).acos()


def check_known_poses(golden: Golden) -> Iterator[Check]:
    tensors = golden.tensors
    given, predicted = tensors["extrinsics"][None, :, :3], tensors["predicted"]
    yield Check("normalized", to_first_camera(given)[0], tensors["normalized"][:, :3])
    centers = (invert_rigid(each)[..., 3] for each in (given[0], predicted))
    scale, rotation, translation = fit_similarity(*centers)
    yield Check("scale", scale[None], tensors["scale"])
    yield Check("rotation", rotation, tensors["rotation"])
    yield Check("translation", translation, tensors["translation"])
    turned = given[0, :, :, :3] @ rotation.mT
    moved = torch.cat([turned, scale * given[0, :, :, 3:] - turned @ translation[:, None]], dim=-1)
    yield Check("aligned", moved, tensors["aligned"][:, :3])


def check_nested(golden: Golden) -> Iterator[Check]:
    """All views of the file are of one scene, as published."""
    tensors = golden.tensors
    one = {name: tensors[name].flatten(0, 1)[None] for name in tensors if tensors[name].ndim > 1}
    depth, cameras = DenseMap(one["depth"], one["depth_conf"]), Cameras(one["extrinsics"], one["intrinsics"])
    found = scale_to_metres(depth, cameras, one["metric_depth"], one["sky"])
    yield Check("out.scale", found.scale, tensors["out.scale"])
    yield Check("out.depth", found.depth.value, one["out.depth"])
    yield Check("out.depth_conf", found.depth.confidence, one["out.depth_conf"])
    yield Check("out.extrinsics", found.cameras.cam_from_world, one["out.extrinsics"])
    metres = depth_in_metres(one["metric_depth"], one["intrinsics"])
    yield Check("out.metric_depth", metres, one["out.metric_depth"])
    yield Check("mono.depth", fill_sky(one["metric_depth"], one["sky"]), one["mono.depth"])


def check_preprocessing(golden: Golden) -> Iterator[Check]:
    """Pictures without their alpha channel, which is dropped in the published way and composed in geomtx's."""
    folder = golden.path.parent / "images"
    half = torch.tensor(
        [[0.0, 0.0, 0.5], [0.0, 0.0, 0.5], [0.0, 0.0, 0.0]]
    )  # between the centre and the edge of a pixel
    with tempfile.TemporaryDirectory() as place:
        for path in sorted(folder.glob("*.png")):
            Image.open(path).convert("RGB").save(Path(place) / path.name)
        known = [golden.tensors[f"{path.stem}.intrinsics_in"] for path in sorted(folder.glob("*.png"))]
        for name in [name.removesuffix(".size") for name in golden.tensors if name.endswith(".size")]:
            which, *_, mode = name.split(".")
            size, step = (100, 1) if ".100." in name else (504, 7)
            files = sorted(Path(place).glob("*.png" if which == "all" else f"{which}.png"))
            views = geomtx.load_views(files, mode=mode, size=size, cut=True)
            images, expected = (views.images * 255).round()[..., ::step, ::step], golden.tensors[name].float()
            images = images if which == "all" else images[0]
            # Within a grey level.
            yield Check(f"{name} in grey levels", (images - expected).abs().clamp(min=1.0), torch.ones_like(expected))
            yield Check(f"{name}.size", torch.tensor(views.image_hw), golden.tensors[f"{name}.size"])
            given = known if which == "all" else [golden.tensors[f"{which}.intrinsics_in"]]
            moved = [
                view.intrinsics_from_original(k - half) + half for view, k in zip(views.transforms, given, strict=True)
            ]
            found = torch.stack(moved) if which == "all" else moved[0]
            yield Check(f"{name}.intrinsics", found, golden.tensors[f"{name}.intrinsics"])


CHECKS_DA3: dict[str, Callable[[Golden], Iterator[Check]]] = {
    "da3_backbone": check_backbone,
    "da3_reference_view": check_reference_view,
    "da3_dual_dpt": check_dual_dpt,
    "da3_mono_dpt": check_mono_dpt,
    "da3_camera_decoder": check_camera_decoder,
    "da3_camera_encoder": check_camera_encoder,
    "da3_small": check_model(DepthAnything3Config.small()),
    "da3_base": check_model(DepthAnything3Config.base()),
    "da3_rays_to_pose": check_rays_to_pose,
    "da3_known_poses": check_known_poses,
    "da3_nested": check_nested,
    "da3_preprocessing": check_preprocessing,
    "da3_mono_large": check_model(DepthAnything3Config.mono()),
}
