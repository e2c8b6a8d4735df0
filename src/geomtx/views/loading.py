"""Files → `Views`: which files, in which order, decoded and upright."""

from __future__ import annotations

import logging
import os
import re
import struct
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from geomtx.checks import check_divisible, check_option, check_positive
from geomtx.files import is_own_picture, unique_names, user_path
from geomtx.views.color import convert_to_rgb
from geomtx.views.error import PhotoError
from geomtx.views.placement import MODES, Mode, place_photo
from geomtx.views.views import Views

__all__ = ["EXTENSIONS", "default_size", "list_photos", "load_views"]

logger = logging.getLogger(__name__)

EXTENSIONS = (
    *(".avif", ".bmp", ".gif", ".heic", ".heif", ".jfif", ".jp2", ".jpeg", ".jpg", ".mpo"),
    *(".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp"),
)
"""What counts as an image in a folder. A file that Pillow cannot decode is an error, never left out silently."""

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# What Pillow's decoders raise on damaged data.
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    EOFError,
    LookupError,
    ArithmeticError,
    RuntimeError,
    struct.error,
)

_SIZE = 518
PathLike = str | os.PathLike[str]


def load_views(
    source: PathLike | Iterable[PathLike],
    *,
    mode: Mode | str = "fit",
    size: int | None = None,
    patch_size: int = 14,
) -> Views:
    """Load photos for a model, with the way back to their original pixels.

    The EXIF orientation is applied; transparency is composed onto white; of an animation the first frame is taken;
    16-bit grey keeps its range. Resizing is Pillow's bicubic. Photos that come out in different sizes are padded with
    white to the largest height and width, centred, the smaller half first; `Views.masks` says where.

    | mode | image | what is lost |
    |---|---|---|
    | "fit" | longer side `size`, the other rounded to whole patches | nothing |
    | "crop" | width `size`, height rounded to whole patches, centre-cropped to `size` | rows of tall photos |
    | "pad" | as "fit", then padded with white to a square | nothing |
    | "square" | padded with black to a square, then resized | nothing |

    Args:
        source: A folder (its images in natural order: img2 before img10; hidden files, subfolders and pictures that
            geomtx made of results are not read), a file, or several files in the order of the views. The first is the
            reference view.
        mode: See the table.
        size: Side in pixels, a multiple of `patch_size`. None = the multiple nearest to 518, for models of the
            published size; a smaller one has `config.image_size`.
        patch_size: Side of the model's patches.

    Raises:
        PhotoError: A ValueError of one line that names the folder without images, or the file that is missing, damaged,
            no image, too thin, or over Pillow's limit `PIL.Image.MAX_IMAGE_PIXELS`.
        ValueError: An unknown mode, or a size that is no multiple of `patch_size`.
    """
    check_option("mode", mode, MODES)
    check_positive("patch_size", patch_size)
    size = default_size(patch_size) if size is None else size
    check_positive("size", size)
    check_divisible("size", size, patch_size)
    paths = list_photos(source)
    images, transforms = [], []
    for path in paths:  # one photo in full resolution at a time
        photo, orientation = _read_photo(path)
        image, transform = place_photo(photo, mode, size, patch_size, name=str(path), orientation=orientation)
        images.append(image)
        transforms.append(transform)
    views = Views.assemble(images, transforms, _name_files(paths), paths, patch_size)
    logger.info("loaded %d views of %dx%d pixels", len(views), views.image_hw[1], views.image_hw[0])
    return views


def default_size(patch_size: int, image_size: int = _SIZE) -> int:
    """The multiple of `patch_size` nearest to a model's image size, by default 518, that of the published results."""
    return max(round(image_size / patch_size), 1) * patch_size


def list_photos(source: PathLike | Iterable[PathLike]) -> list[Path]:
    """The files that `load_views` would read, in its order.

    Raises:
        PhotoError: If there are none, or one of them doesn't exist.
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
            if not path.is_file():
                found = "a folder" if path.is_dir() else "none"
                raise PhotoError(f"photo '{path}' must be an existing file, got {found}")
        return paths
    path = user_path(source)
    if path.is_dir():
        files = [file for file in path.iterdir() if file.suffix.lower() in EXTENSIONS and file.name[0] != "."]
        files = _without_own(sorted((file for file in files if file.is_file()), key=_natural_key))
        if not files:
            raise PhotoError(f"folder '{path}' must hold images (.jpg, .png, …), got none")
        return files
    if not path.exists():
        raise PhotoError(f"source must be an existing folder or image, got '{path}'")
    return [path]


def _without_own(files: list[Path]) -> list[Path]:
    """Without reports and other pictures that geomtx made, which are no photos; a warning in the log names them."""
    own = [file for file in files if is_own_picture(file)]
    if own:
        names = ", ".join(f"'{file}'" for file in own)
        logger.warning("left out %s: made by geomtx, no photo; to use such a picture, name it", names)
    return [file for file in files if file not in own]


def _natural_key(path: Path) -> tuple[list[str | int], str]:
    """Runs of digits compare as numbers; text and digits alternate, so that like meets like."""
    parts = re.split(r"(\d+)", path.name.casefold())
    return [int(part) if index % 2 else part for index, part in enumerate(parts)], path.name


def _name_files(paths: Sequence[Path]) -> tuple[str, ...]:
    """File names, with as many parent folders as it takes to tell them apart; a file listed again gets a number."""
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


def _read_photo(path: Path) -> tuple[Image.Image, int]:
    """An upright RGB picture, and the EXIF orientation that was applied."""
    try:
        with _refuse_truncated(), Image.open(path) as file:
            tiff_orientation = _read_orientation(file, path) if file.format == "TIFF" else 1
            file.load()
            orientation = _read_orientation(file, path)
            photo = convert_to_rgb(file, str(path))
    except PhotoError:
        raise
    except PermissionError as error:
        raise PhotoError(f"photo '{path}' must be readable, got no permission to read it") from error
    except UnidentifiedImageError as error:
        hint = " (HEIC needs the package pillow-heif)" if path.suffix.lower() in (".heic", ".heif") else ""
        raise PhotoError(f"photo '{path}' must be an image that Pillow can read, got another format{hint}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise PhotoError(f"photo '{path}' must be under PIL.Image.MAX_IMAGE_PIXELS, got more: {error}") from error
    except _DAMAGE as error:
        reason = " ".join(str(error).split())
        raise PhotoError(f"photo '{path}' must be a whole image, got a damaged one: {reason}") from error
    if orientation == 1:
        return photo, tiff_orientation  # Pillow turns a TIFF upright itself in load()
    return photo.transpose(_UPRIGHT[orientation]), orientation


def _read_orientation(file: Image.Image, path: Path) -> int:
    """1 … 8; 1 where the photo states none, or something else."""
    try:
        orientation = file.getexif().get(ExifTags.Base.Orientation, 1)
    except _DAMAGE as error:
        logger.warning("photo '%s' has damaged EXIF data, taken as upright: %s", path, error)
        return 1
    return int(orientation) if orientation in _UPRIGHT else 1


@contextmanager
def _refuse_truncated() -> Iterator[None]:
    """Half a photo is an error, also where another library told Pillow to let it pass."""
    before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before
