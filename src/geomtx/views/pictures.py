"""Reader of picture files: photos for `load_views`, and pictures and masks of datasets.

`load_views` applies the EXIF orientation, so that photos are upright as in a viewer. Cameras of datasets (COLMAP's, for
example) refer to pixels as they are stored, so datasets are read with `upright=False`. (HEIC and AVIF files hold the
orientation in their container, and decoders return upright pixels only.)
"""

from __future__ import annotations

import logging
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from geomtx.views.color import convert_to_mask, convert_to_rgb, reduce_to_rgb
from geomtx.views.listing import PhotoError, check_file
from geomtx.views.tiff import RAW_EXTENSIONS, find_photo_directory

__all__ = ["Picture", "open_picture", "read_mask", "read_picture"]

logger = logging.getLogger(__name__)

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_STORED = {**_UPRIGHT, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
# Errors that Pillow's decoders raise for damaged data.
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
_HEIF_EXTENSIONS = (".heic", ".heif", ".hif")
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")

_PILLOW_LIMIT = 1024**3 // 4 // 3  # the default of PIL.Image.MAX_IMAGE_PIXELS
_MOST_PIXELS = 1_000_000_000  # five times the largest photos of phones; against files that only claim to be large
_LARGE_PIXELS = 100_000_000  # a larger photo is reduced while it is decoded


class Picture(NamedTuple):
    """A decoded picture.

    Attributes:
        image: 8-bit RGB. It is smaller than `original_hw` if a very large picture was reduced, and covers the whole
            picture in any case.
        original_hw: Height and width of the picture in full resolution, in the orientation of `image`.
        orientation: EXIF orientation (1 … 8) of the file, which is applied if `upright` was True.
    """

    image: Image.Image
    original_hw: tuple[int, int]
    orientation: int


def read_picture(
    path: Path, *, kind: str = "photo", upright: bool = True, min_side: int | None = None, opaque: bool = False
) -> Picture:
    """Decode a picture file of any format and mode that Pillow knows.

    Of a TIFF file the first image that is not a preview is read, of an animation the first frame. HEIC needs the extra
    `heic`.

    Args:
        path: Picture file.
        kind: Noun for the file in error messages; defaults to "photo".
        upright: Whether to apply the EXIF orientation; False returns pixels as they are stored. Defaults to True.
        min_side: Smallest length of the longer side, in pixels, to which a picture over 100 megapixels may be reduced
            while it is decoded; defaults to no reduction.
        opaque: Whether transparent pixels have the colour that is stored with them; otherwise they are composed onto
            white. Defaults to False.

    Raises:
        PhotoError: If the file is missing, damaged, not a picture, a camera's raw file, or larger than 1000 megapixels
            (or `PIL.Image.MAX_IMAGE_PIXELS` if that is set).
    """
    path = Path(path)
    with open_picture(path, kind=kind) as file:
        turned = _turn_by_pillow(file, path, kind)
        image, (width, height) = _decode(file, str(path), kind, min_side, opaque)
        # Pillow has turned a TIFF image upright and has removed the tag.
        orientation = turned if turned != 1 else _read_orientation(file, path, kind)
    transpose = None
    if upright and turned == 1:
        transpose = _UPRIGHT.get(orientation)
    if not upright and turned != 1:
        transpose = _STORED[turned]
    if transpose is not None:
        image = image.transpose(transpose)
        if orientation >= 5:
            width, height = height, width
    return Picture(image, (height, width), orientation)


def read_mask(path: Path, *, kind: str = "mask") -> NDArray[np.bool_]:
    """Decode a mask as it is stored, (H, W) bool; see `convert_to_mask` for which pixels are True.

    Raises:
        PhotoError: As in `read_picture`, and for a picture that is not a mask.
    """
    path = Path(path)
    with open_picture(path, kind=kind) as file:
        turned = _turn_by_pillow(file, path, kind)
        file.load()
        return convert_to_mask(file if turned == 1 else file.transpose(_STORED[turned]), str(path), kind=kind)


@contextmanager
def open_picture(path: Path, *, kind: str = "photo") -> Iterator[Image.Image]:
    """Open a picture file without decoding it. Errors of Pillow while it is open are raised as `PhotoError`."""
    check_file(path, kind)
    try:
        with _pillow_settings() as most_pixels, path.open("rb") as stream, _identify(stream) as file:
            if file.format == "TIFF":
                directory = find_photo_directory(path, f"{kind} '{path}'")
                if directory:
                    file.seek(directory)
            if most_pixels is not None and file.width * file.height > most_pixels:
                raise Image.DecompressionBombError(f"{file.width}x{file.height}")
            yield file
    except PhotoError:
        raise
    except PermissionError as error:
        raise PhotoError(f"{kind} '{path}' must be readable, got no permission to read it") from error
    except UnidentifiedImageError as error:
        raise PhotoError(f"{kind} '{path}' must be {_name_unreadable(path)}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise PhotoError(
            f"{kind} '{path}' must have at most {most_pixels} pixels (PIL.Image.MAX_IMAGE_PIXELS), got more: {error}"
        ) from error
    except _DAMAGE as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise PhotoError(f"{kind} '{path}' must be a whole image, got a damaged one: {reason}") from error


def _decode(
    file: Image.Image, name: str, kind: str, min_side: int | None, opaque: bool
) -> tuple[Image.Image, tuple[int, int]]:
    """Decode to RGB, reduced if that is allowed, and return it with (width, height) in full resolution."""
    full_wh = file.size
    factor = _reduction(full_wh, min_side)
    drafted = None
    if factor > 1:  # JPEG files can be decoded 2, 4 or 8 times smaller; for other formats this does nothing
        drafted = file.draft(None, (max(full_wh[0] // factor, 1), max(full_wh[1] // factor, 1)))
    file.load()
    if drafted is None:
        full_wh = file.size
    if opaque and file.has_transparency_data:
        file = file.convert("RGB")
    factor = _reduction(file.size, min_side)
    image = reduce_to_rgb(file, name, factor, kind=kind) if factor > 1 else convert_to_rgb(file, name, kind=kind)
    # Sides were rounded up, so that the photo covers only a part of the last row and column.
    scale = factor if drafted is None else factor * full_wh[0] / drafted[1][2]
    covered = (full_wh[0] / scale, full_wh[1] / scale)
    if covered != image.size:
        wh = (max(round(covered[0]), 1), max(round(covered[1]), 1))
        image = image.resize(wh, Image.Resampling.BICUBIC, box=(0, 0, *covered))
    return image, full_wh


def _reduction(wh: tuple[int, int], min_side: int | None) -> int:
    """Return by which whole number a picture may be reduced."""
    if min_side is None or wh[0] * wh[1] <= _LARGE_PIXELS:
        return 1
    return max(max(wh) // min_side, 1)


def _turn_by_pillow(file: Image.Image, path: Path, kind: str) -> int:
    """Return the orientation that Pillow applies itself in `load`, which it does for TIFF files only."""
    return _read_orientation(file, path, kind) if file.format == "TIFF" else 1


def _read_orientation(file: Image.Image, path: Path, kind: str) -> int:
    """Read the EXIF orientation, 1 … 8; 1 (upright) if there is none or an unknown one."""
    try:
        orientation = file.getexif().get(ExifTags.Base.Orientation, 1)
    except _DAMAGE as error:
        logger.warning("%s '%s' has damaged EXIF data, taken as upright: %s", kind, path, error)
        return 1
    return int(orientation) if orientation in _UPRIGHT else 1


def _identify(stream: BinaryIO) -> Image.Image:
    # From a stream: Pillow maps files that it opens by name into memory, and then mixes up the rows of grey TIFF images
    # that are turned by 90° (seen in Pillow 13.0).
    try:
        return Image.open(stream)
    except UnidentifiedImageError:
        stream.seek(0)
        if not (_is_heif(stream.read(12)) and _register_heif()):
            raise
        stream.seek(0)
    return Image.open(stream)


def _is_heif(start: bytes) -> bool:
    """Recognise HEIF by the first 12 bytes of a file, as phones also use other extensions for it."""
    return start[4:8] == b"ftyp" and start[8:12] in _HEIF_BRANDS


def _register_heif() -> bool:
    """Let Pillow read HEIC and HEIF if the package pillow-heif is installed, and return whether it is."""
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    return True


def _name_unreadable(path: Path) -> str:
    """Complete the error message for a file that Pillow cannot read."""
    suffix = path.suffix.lower()
    if suffix in RAW_EXTENSIONS:
        return "a developed photo, got a camera's raw file: convert it to TIFF or JPEG first"
    with path.open("rb") as stream:
        is_heif = suffix in _HEIF_EXTENSIONS or _is_heif(stream.read(12))
    if is_heif and not _register_heif():
        return 'an image that Pillow can read, got HEIC, which needs an extra: pip install "geomtx[heic]"'
    return "an image that Pillow can read, got another format"


class _Settings:
    """Settings of Pillow for the whole process, which are changed while any thread reads a picture."""

    def __init__(self) -> None:
        self.lock, self.readers = threading.Lock(), 0
        self.before: tuple[bool, int | None] = (False, None)
        self.most_pixels: int | None = None


_settings = _Settings()


@contextmanager
def _pillow_settings() -> Iterator[int | None]:
    """Set Pillow's limit of pixels, unless the user has set one, and refuse truncated files; yield the limit."""
    with _settings.lock:
        _settings.readers += 1
        if _settings.readers == 1:
            before = (ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS)
            _settings.before = before
            _settings.most_pixels = _MOST_PIXELS if before[1] == _PILLOW_LIMIT else before[1]
            ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS = False, _settings.most_pixels
        most_pixels = _settings.most_pixels
    try:
        yield most_pixels
    finally:
        with _settings.lock:
            _settings.readers -= 1
            if _settings.readers == 0:
                ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS = _settings.before
