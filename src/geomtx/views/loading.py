"""Loads photos or frames of a video as `Views`: which are read, in which order, and how they are sized."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from geomtx.checks import check_at_least, check_divisible, check_option, check_positive, close_matches
from geomtx.files import unique_names
from geomtx.inference.plan import free_bytes
from geomtx.views.frames import FrameChoice, FramePlan, choose_frames, frame_times, plan_frames
from geomtx.views.layout import CENTER_MODES, fit_area
from geomtx.views.listing import PathLike, PhotoError, find_video, list_photos, name_files
from geomtx.views.pictures import Picture, read_picture
from geomtx.views.transform import MODES, Mode, ViewTransform, cut_to_smallest, place_photo
from geomtx.views.two_resizes import BOUND_MODES
from geomtx.views.views import Preparation, Views

__all__ = ["default_size", "load_views", "preferred_mode", "prepare_again"]

logger = logging.getLogger(__name__)

_SIZE = 518
_PIXEL_BYTES = 16  # of an image while views are made: 8-bit and float32 colours, mask
_MIN_REDUCTION = 4  # a photo reduced while it is decoded stays this many times larger than the model's image


def load_views(
    source: PathLike | Iterable[PathLike],
    *,
    mode: Mode | str | None = None,
    size: int | None = None,
    patch_size: int | None = None,
    model: Any = None,
    cut: bool = False,
    **choice: Any,
) -> Views:
    """Load photos, or frames of a video, for a model, with the way back to their original pixels.

    The EXIF orientation is applied, transparent pixels are composed onto white ("center": they have the colour that is
    stored with them), and 16-bit grey keeps its range. Of an animation the first frame is read, of a TIFF file the
    first image that is no preview. HEIC needs the extra `heic`. Photos are resized by Pillow's bicubic filter ("area",
    and "center" of larger photos: Lanczos; "…_bound_…": OpenCV's, see below); a photo over 100 megapixels is reduced
    while it is decoded. If images have different sizes after that, they are padded with white to the largest height and
    width, centred, with the smaller half of the padding at the top and left; `Views.masks` is False there.

    Frames of a video (.mp4, .mov, …; needs the extra `video`) are chosen by time, see `FrameChoice`, and turned
    upright; pixels that are not square are made so. Views of a video have no files: what copies photos, such as the
    format "splat", needs the folder that `extract_frames` writes, whose frames are loaded with their times.

    | mode | image | what is lost |
    |---|---|---|
    | "fit" | longer side `size`, the other rounded to whole patches | nothing |
    | "crop" | width `size`, height rounded to whole patches, centre-cropped to `size` | rows of tall photos |
    | "pad" | as "fit", then padded with white to a square | nothing |
    | "square" | padded with black to a square, then resized | nothing |
    | "center" | longer side `size`, both cut about the centre to whole patches, a square to 4:3 | the borders |
    | "center_square" | shorter side `size`, the longer one cut about the centre | the ends of the longer side |
    | "area" | `size` pixels in the shape of the first photo, to which all photos are resized | the shape of others |
    | "upper_bound_resize" | longer side `size`, then both resized to the nearest whole patches | nothing |
    | "upper_bound_crop" | longer side `size`, then both cut to whole patches | up to a patch at the edges |
    | "lower_bound_resize", "lower_bound_crop" | the same with the shorter side `size` | the same |
    | "balanced" | as many pixels as a square of side `size`, sides rounded to whole patches | what exceeds 2:1 |
    | "max_size" | as "fit" | what exceeds 2:1 |

    The four with bounds are Depth Anything 3's, whose default is the first of them with 504 pixels: each of the two
    steps takes the mean of what a pixel covers, or interpolates cubically where a side grows. Their `size` need not be
    a multiple of the patch.

    Args:
        source: Folder, file, or several files in the order of the views; the first is the reference view. Images of a
            folder are read in natural order (img2 before img10), without hidden files, subfolders and pictures of
            results that geomtx wrote. Or a video.
        mode: Way of fitting a photo into the model's image, see the table; defaults to the one that `model` is made
            for, without one to "fit".
        size: Side of the model's image in pixels, a multiple of the patch; defaults to that of `model`, without one to
            the multiple nearest to 518, the size of the published models. For "area" the number of pixels, at most;
            defaults to that of `model`, without one to those of a square of 518.
        patch_size: Side of the model's patches in pixels; defaults to that of `model`, without one to 14.
        model: Model that the views are for, or its configuration, which has a `patch_size` and, if it is made for
            images of some size, an `image_size`.
        cut: Whether images that come out in different sizes are cut to the smallest height and width, centred, as
            Depth Anything 3's authors do, instead of padded; always with "…_bound_crop". Much is lost where some photos
            are upright and others are not.
        choice: Choice of a video's frames, see `FrameChoice`: `fps` or `max_views`, `skip_blurred`,
            `skip_duplicates`.

    Raises:
        PhotoError: A ValueError that names the folder without images, or the file that is missing, damaged, not an
            image, a camera's raw file, too thin, or larger than 1000 megapixels (or `PIL.Image.MAX_IMAGE_PIXELS` if
            that is set); or the video that can't be decoded or has no frame.
        ValueError: For an unknown mode, a size that is not a multiple of the patch, images that don't fit into memory,
            a `patch_size` that isn't that of `model`, or a choice of frames that is out of range or for photos.
        ImportError: For a video if PyAV is not installed.
        TypeError: For an option that doesn't exist.
    """
    mode = preferred_mode(model) if mode is None else mode
    check_option("mode", mode, MODES)
    patch_size, image_size = _choose_sizes(model, patch_size)
    check_positive("patch_size", patch_size)
    side = default_size(patch_size, image_size) if size is None else size
    if mode == "area":
        side = _default_area(model, image_size) if size is None else size
        check_at_least("size", side, patch_size**2)
    else:
        check_positive("size", side)
        if mode not in BOUND_MODES:
            check_divisible("size", side, patch_size)
    if isinstance(source, Iterable) and not isinstance(source, str):
        source = list(source)  # it is looked at twice
    how = Preparation(mode, side, size is not None, cut)
    wanted, video = _parse_choice(choice), find_video(source)
    if video is not None:
        views = _prepare_frames(plan_frames(video, wanted), how, patch_size)
    elif wanted != FrameChoice():
        raise ValueError(f"{next(iter(choice))} must be for a video, got photos")
    else:
        paths = list_photos(source)
        views = _prepare(paths, name_files(paths), how, patch_size)
    logger.info("loaded %d views of %dx%d pixels", len(views), views.image_hw[1], views.image_hw[0])
    return views


def prepare_again(views: Views, patch_size: int, image_size: int | None) -> Views:
    """Prepare views again from their photos, for a model of another patch or image size.

    What `Views.with_masks` left out stays left out.

    Args:
        views: Views with a `preparation`, whose photos are still there.
        patch_size: Side in pixels of the model's patches.
        image_size: Side in pixels of the images that the model is made for, which replaces a size that nobody chose;
            None where it is made for none. A size that was chosen becomes the nearest multiple of the patch; a number
            of pixels stays.

    Raises:
        PhotoError: As `load_views`, and for a photo with a mask that has another size by now.
    """
    before = views.preparation
    paths = [path for path in views.paths if path is not None]
    assert before is not None, "only views that were loaded can be loaded again"
    side = before.size if before.asked else image_size or _SIZE
    size = before.size if before.mode in ("area", *BOUND_MODES) and before.asked else default_size(patch_size, side)
    if before.mode == "area":
        size = before.size
    again = _prepare(paths, views.names, before._replace(size=size), patch_size)
    pairs = zip(zip(views.transforms, views.masks.cpu(), strict=True), again.transforms, strict=True)
    left_out = torch.stack(
        [_carry_left_out(*before, after, path) for (before, after), path in zip(pairs, paths, strict=True)]
    )
    return replace(again, masks=again.masks & ~left_out).prepared_by(again.preparation)


def _carry_left_out(before: ViewTransform, mask: Tensor, after: ViewTransform, path: Path) -> Tensor:
    """Return where an image shows what the mask of an earlier image of the same photo left out of the photo."""
    left_out = before.mask & ~mask
    if not left_out.any():
        return torch.zeros(after.image_hw, dtype=torch.bool)
    if before.original_hw != after.original_hw:
        size, now = (f"{width}x{height}" for height, width in (before.original_hw, after.original_hw))
        raise PhotoError(f"'{path}' must have the {size} pixels of its mask, got {now}; the file was replaced since")
    return after.depth_from_original(before.depth_to_original(left_out, mode="nearest"), mode="nearest")


def _prepare(paths: Sequence[Path], names: Sequence[str], how: Preparation, patch_size: int) -> Views:
    images, transforms = [], []
    place = _Placement(how, patch_size)
    for path in paths:  # one photo in full resolution at a time
        photo = read_picture(path, min_side=_MIN_REDUCTION * _side_of(how), opaque=how.mode in CENTER_MODES)
        _check_memory(len(paths), how, photo.original_hw)
        image, transform = place(photo, str(path))
        images.append(image)
        transforms.append(transform)
    if _cuts(how):
        images, transforms = cut_to_smallest(images, transforms)
    views = Views.assemble(images, transforms, names, paths, patch_size)
    return replace(views, times=frame_times(paths)).prepared_by(how)


def _prepare_frames(plan: FramePlan, how: Preparation, patch_size: int) -> Views:
    images, transforms, names, times = [], [], [], []
    place = _Placement(how, patch_size)
    for frame in choose_frames(plan):
        photo = Picture(frame.picture, (frame.picture.height, frame.picture.width), 1)
        _check_memory(len(plan.indices), how, photo.original_hw)
        image, transform = place(photo, f"{plan.path}, frame {frame.name}")
        images.append(image)
        transforms.append(transform)
        names.append(frame.name)
        times.append(frame.time)
    if _cuts(how):
        images, transforms = cut_to_smallest(images, transforms)
    views = Views.assemble(images, transforms, unique_names(names), [None] * len(images), patch_size)
    return replace(views, times=tuple(times)).prepared_by(how)


class _Placement:
    """Places photos one after the other; where all get one size, the first photo decides it."""

    def __init__(self, how: Preparation, patch_size: int) -> None:
        self.how = how
        self.patch_size = patch_size
        self.image_wh: tuple[int, int] | None = None

    def __call__(self, photo: Picture, name: str) -> tuple[Tensor, ViewTransform]:
        """Return the image of a photo, (3, H, W) uint8, and the transform to it."""
        if self.how.mode == "area" and self.image_wh is None:
            self.image_wh = fit_area((photo.original_hw[1], photo.original_hw[0]), self.how.size, self.patch_size)
        return place_photo(photo, self.how.mode, self.image_wh or self.how.size, self.patch_size, name=name)


def _cuts(how: Preparation) -> bool:
    """Whether images of different sizes are cut; those that were cut before can't be padded, as transforms say."""
    return how.cut or (how.mode in BOUND_MODES and how.mode.endswith("_crop"))


def _side_of(how: Preparation) -> int:
    """Return the side of a square with as many pixels as an image has at most."""
    return math.isqrt(how.size) if how.mode == "area" else how.size


def _default_area(model: Any, image_size: int) -> int:
    """Return the number of pixels that a model is made for."""
    return getattr(getattr(model, "config", model), "num_pixels", image_size**2)


def _parse_choice(options: dict[str, Any]) -> FrameChoice:
    known = [field.name for field in fields(FrameChoice)]
    for name in options:
        if name not in known:
            raise TypeError(f"load_views takes no option {name!r}{close_matches(name, known)}")
    return FrameChoice(**options)


def _check_memory(num_views: int, how: Preparation, photo_hw: tuple[int, int]) -> None:
    """Refuse images that don't fit into the host's memory where all are as large as that of one photo."""
    height, width = photo_hw
    thin = min(photo_hw) / max(photo_hw)
    shares = {"fit": thin, "center": thin, "crop": min(1.0, height / width), "upper": thin, "lower": 1 / thin}
    share = shares.get(how.mode.partition("_")[0], 1.0)
    pixels = how.size if how.mode == "area" else how.size**2 * share
    needed, free = num_views * pixels * _PIXEL_BYTES, free_bytes(torch.device("cpu"))
    if free is not None and needed > free:
        raise ValueError(
            f"size must be small enough for memory, got {how.size}: {num_views} images need {needed / 2**30:.3g} GiB, "
            f"and {free / 2**30:.3g} GiB are free"
        )


def _choose_sizes(model: Any, patch_size: int | None) -> tuple[int, int]:
    """Return the side of a patch and that of the images, of a model if there is one."""
    if model is None:
        return 14 if patch_size is None else patch_size, _SIZE
    outer = getattr(model, "config", model)
    config = getattr(outer, "vggt", outer)  # of a model with a VGGT inside, which may see the images in its own way
    found = getattr(outer, "patch_size", getattr(config, "patch_size", None))
    if not isinstance(found, int):
        raise ValueError(f"model must be a model or its configuration, with a patch_size, got {type(model).__name__}")
    if patch_size not in (None, found):
        raise ValueError(f"patch_size must be the model's {found}, got {patch_size}")
    return found, getattr(config, "image_size", None) or _SIZE


def preferred_mode(model: Any) -> str:
    """Return the mode in which photos are prepared for a model or its configuration; "fit" for None."""
    return getattr(getattr(model, "config", model), "photo_mode", "fit")


def default_size(patch_size: int, image_size: int = _SIZE) -> int:
    """Return the multiple of `patch_size` nearest to a model's image size, which defaults to the published 518."""
    return max(round(image_size / patch_size), 1) * patch_size
