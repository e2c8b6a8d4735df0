"""Loads photos as `Views`: which files are read, in which order, and how they are sized."""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from geomtx.checks import check_divisible, check_option, check_positive
from geomtx.files import is_own_picture, unique_names, user_path
from geomtx.views.error import PhotoError
from geomtx.views.pictures import check_file, read_picture
from geomtx.views.transform import MODES, Mode, place_photo
from geomtx.views.views import Views

__all__ = ["EXTENSIONS", "default_size", "list_photos", "load_views"]

logger = logging.getLogger(__name__)

EXTENSIONS = (
    *(".avif", ".bmp", ".gif", ".heic", ".heif", ".hif", ".jfif", ".jp2", ".jpeg", ".jpg", ".mpo"),
    *(".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp"),
)
"""File name extensions of images in a folder. An image that cannot be read, or a broken link, is an error."""

_SIZE = 518
_MIN_REDUCTION = 4  # a photo reduced while it is decoded stays this many times larger than the model's image
PathLike = str | os.PathLike[str]


def load_views(
    source: PathLike | Iterable[PathLike],
    *,
    mode: Mode | str = "fit",
    size: int | None = None,
    patch_size: int = 14,
) -> Views:
    """Load photos for a model, with the way back to their original pixels.

    The EXIF orientation is applied, transparent pixels are composed onto white, and 16-bit grey keeps its range. Of an
    animation the first frame is read, of a TIFF file the first image that is no preview. HEIC needs the extra `heic`.
    Photos are resized by Pillow's bicubic filter; a photo over 100 megapixels is reduced while it is decoded. If images
    have different sizes after that, they are padded with white to the largest height and width, centred, with the
    smaller half of the padding at the top and left; `Views.masks` is False there.

    | mode | image | what is lost |
    |---|---|---|
    | "fit" | longer side `size`, the other rounded to whole patches | nothing |
    | "crop" | width `size`, height rounded to whole patches, centre-cropped to `size` | rows of tall photos |
    | "pad" | as "fit", then padded with white to a square | nothing |
    | "square" | padded with black to a square, then resized | nothing |

    Args:
        source: Folder, file, or several files in the order of the views; the first is the reference view. Images of a
            folder are read in natural order (img2 before img10), without hidden files, subfolders and pictures of
            results that geomtx wrote.
        mode: How a photo is fitted into the model's image, see the table; defaults to "fit".
        size: Side of the model's image in pixels, a multiple of `patch_size`; defaults to the multiple nearest to 518,
            the size of the published models. `config.image_size` is the size that a model is made for.
        patch_size: Side of the model's patches in pixels; defaults to 14.

    Raises:
        PhotoError: A ValueError that names the folder without images, or the file that is missing, damaged, not an
            image, a camera's raw file, too thin, or larger than 1000 megapixels (or `PIL.Image.MAX_IMAGE_PIXELS` if
            that is set).
        ValueError: For an unknown mode, or a size that is not a multiple of `patch_size`.
    """
    check_option("mode", mode, MODES)
    check_positive("patch_size", patch_size)
    size = default_size(patch_size) if size is None else size
    check_positive("size", size)
    check_divisible("size", size, patch_size)
    paths = list_photos(source)
    images, transforms = [], []
    for path in paths:  # one photo in full resolution at a time
        photo = read_picture(path, min_side=_MIN_REDUCTION * size)
        image, transform = place_photo(photo, mode, size, patch_size, name=str(path))
        images.append(image)
        transforms.append(transform)
    views = Views.assemble(images, transforms, _name_files(paths), paths, patch_size)
    logger.info("loaded %d views of %dx%d pixels", len(views), views.image_hw[1], views.image_hw[0])
    return views


def default_size(patch_size: int, image_size: int = _SIZE) -> int:
    """Return the multiple of `patch_size` nearest to a model's image size, which defaults to the published 518."""
    return max(round(image_size / patch_size), 1) * patch_size


def list_photos(source: PathLike | Iterable[PathLike]) -> list[Path]:
    """List the files that `load_views` reads, in its order.

    Raises:
        PhotoError: If there are none, or one of them does not exist.
    """
    if not isinstance(source, str | os.PathLike):
        if not isinstance(source, Iterable):
            raise PhotoError(f"source must be a folder, a file or a list of files, got {type(source).__name__}")
        paths = []
        for path in source:
            if not isinstance(path, str | os.PathLike):
                raise PhotoError(f"source must hold paths, got {type(path).__name__}; for images see Views.from_images")
            paths.append(user_path(path))
        if not paths:
            raise PhotoError("source must hold at least one photo, got an empty list")
        for path in paths:
            check_file(path)
        return paths
    path = user_path(source)
    if path.is_dir():
        return _list_folder(path)
    if not path.exists():
        raise PhotoError(f"source must be an existing folder or image, got '{path}'")
    return [path]


def _list_folder(folder: Path) -> list[Path]:
    try:
        files = [file for file in folder.iterdir() if file.suffix.lower() in EXTENSIONS and file.name[0] != "."]
    except OSError as error:
        raise PhotoError(f"folder '{folder}' must be readable, got {error.strerror}") from error
    files = sorted((file for file in files if not file.is_dir()), key=_natural_key)
    for file in files:
        check_file(file)
    files = _without_own(files)
    if not files:
        raise PhotoError(f"folder '{folder}' must hold images (.jpg, .png, …), got none")
    return files


def _without_own(files: list[Path]) -> list[Path]:
    """Leave out reports and other pictures that geomtx wrote, and log a warning that names them."""
    own = [file for file in files if is_own_picture(file)]
    if own:
        names = ", ".join(f"'{file}'" for file in own)
        logger.warning("left out %s: written by geomtx, not a photo; name the file itself to use it", names)
    return [file for file in files if file not in own]


def _natural_key(path: Path) -> tuple[list[str | int], str]:
    """Sort key in which runs of digits compare as numbers; text and numbers alternate, so that types match."""
    parts = re.split(r"(\d+)", path.name.casefold())
    return [int(part) if index % 2 else part for index, part in enumerate(parts)], path.name


def _name_files(paths: Sequence[Path]) -> tuple[str, ...]:
    """Name files, with as many parent folders as make the names unique; a file listed twice gets a number."""
    all_parts = [path.absolute().parts[1:] for path in paths]
    depths = dict.fromkeys(all_parts, 1)
    while True:
        names = {parts: "/".join(parts[-depth:]) for parts, depth in depths.items()}
        counts = Counter(names.values())
        short = [parts for parts, depth in depths.items() if counts[names[parts]] > 1 and depth < len(parts)]
        if not short:
            break
        depths.update({parts: depths[parts] + 1 for parts in short})
    return unique_names(names[parts] for parts in all_parts)
