"""Loads photos as `Views`: which files are read, in which order, and how they are sized."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from geomtx.checks import check_divisible, check_option, check_positive
from geomtx.views.listing import PathLike, list_photos, name_files
from geomtx.views.pictures import read_picture
from geomtx.views.transform import MODES, Mode, place_photo
from geomtx.views.views import Views

__all__ = ["default_size", "load_views"]

logger = logging.getLogger(__name__)

_SIZE = 518
_MIN_REDUCTION = 4  # a photo reduced while it is decoded stays this many times larger than the model's image


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
    views = Views.assemble(images, transforms, name_files(paths), paths, patch_size)
    logger.info("loaded %d views of %dx%d pixels", len(views), views.image_hw[1], views.image_hw[0])
    return views


def default_size(patch_size: int, image_size: int = _SIZE) -> int:
    """Return the multiple of `patch_size` nearest to a model's image size, which defaults to the published 518."""
    return max(round(image_size / patch_size), 1) * patch_size
