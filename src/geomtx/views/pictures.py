"""The one reader of picture files: photos for `load_views`, and pictures and masks of datasets.

Pixels are upright for people and for `load_views`, which applies the EXIF orientation. Cameras of datasets (COLMAP's,
for example) refer to pixels as they are stored, so datasets read with `upright=False`. (HEIC and AVIF photos have their
turn in the container, and decoders give upright pixels alone.)
"""

from __future__ import annotations

import logging
import stat
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
from geomtx.views.error import PhotoError
from geomtx.views.tiff import RAW_EXTENSIONS, find_photo_directory

__all__ = ["Picture", "check_file", "open_picture", "read_mask", "read_picture"]

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
_HEIF_EXTENSIONS = (".heic", ".heif", ".hif")
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")

_PILLOW_LIMIT = 1024**3 // 4 // 3  # the default of PIL.Image.MAX_IMAGE_PIXELS
_MOST_PIXELS = 1_000_000_000  # five times the largest photos of phones; against files that only claim to be large
_LARGE_PIXELS = 100_000_000  # above, a photo is made smaller while it is decoded


class Picture(NamedTuple):
    """A decoded picture.

    Attributes:
        image: 8-bit RGB. Smaller than `original_hw` where the reader was allowed to reduce a very large one; it covers
            the whole picture then, too.
        original_hw: Height and width of the picture in full resolution, turned as `image` is.
        orientation: The EXIF orientation (1 … 8) of the file; it is applied if the picture was asked for upright.
    """

    image: Image.Image
    original_hw: tuple[int, int]
    orientation: int


def read_picture(path: Path, *, kind: str = "photo", upright: bool = True, min_side: int | None = None) -> Picture:
    """Decode a picture file of any format and mode that Pillow knows.

    Of a TIFF file the first image is taken that is no preview, of an animation the first frame. HEIC needs the extra
    `heic`.

    Args:
        path: The file.
        kind: What error messages call it: "photo", "picture", …
        upright: Apply the EXIF orientation; False = pixels as they are stored.
        min_side: A picture over 100 megapixels may be reduced while it is decoded, as long as its longer side keeps as
            many pixels; by default it is not.

    Raises:
        PhotoError: A ValueError of one line that names the file, for one that is missing, damaged, no picture, a
            camera's raw file, or larger than 1000 megapixels (`PIL.Image.MAX_IMAGE_PIXELS` if you set that).
    """
    path = Path(path)
    with open_picture(path, kind=kind) as file:
        turned = _turn_by_pillow(file, path, kind)
        image, (width, height) = _decode(file, str(path), kind, min_side)
        # Pillow has turned a TIFF upright and says so.
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
    """Decode a mask, as stored: (H, W) bool; `convert_to_mask` says what counts as True.

    Raises:
        PhotoError: As `read_picture`, and for a file that is no mask.
    """
    path = Path(path)
    with open_picture(path, kind=kind) as file:
        turned = _turn_by_pillow(file, path, kind)
        file.load()
        return convert_to_mask(file if turned == 1 else file.transpose(_STORED[turned]), str(path), kind=kind)


@contextmanager
def open_picture(path: Path, *, kind: str = "photo") -> Iterator[Image.Image]:
    """A picture file, open but not decoded; whatever goes wrong while it is open becomes a `PhotoError`."""
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


def check_file(path: Path, kind: str = "photo") -> None:
    """Require an existing file: what a broken link names is none.

    Raises:
        PhotoError: For anything else.
    """
    try:
        mode = path.stat().st_mode
    except PermissionError as error:
        raise PhotoError(f"{kind} '{path}' must be readable, got no permission to read it") from error
    except (OSError, ValueError) as error:
        found = "a link to nothing" if path.is_symlink() else "none"
        raise PhotoError(f"{kind} '{path}' must be an existing file, got {found}") from error
    if not stat.S_ISREG(mode):
        found = "a folder" if stat.S_ISDIR(mode) else "none"
        raise PhotoError(f"{kind} '{path}' must be an existing file, got {found}")


def _decode(file: Image.Image, name: str, kind: str, min_side: int | None) -> tuple[Image.Image, tuple[int, int]]:
    """RGB, and (width, height) in full resolution."""
    full_wh = file.size
    factor = _reduction(full_wh, min_side)
    drafted = None
    if factor > 1:  # JPEG files can be decoded 2, 4 or 8 times smaller; for other formats this does nothing
        drafted = file.draft(None, (max(full_wh[0] // factor, 1), max(full_wh[1] // factor, 1)))
    file.load()
    if drafted is None:
        full_wh = file.size
    factor = _reduction(file.size, min_side)
    image = reduce_to_rgb(file, name, factor, kind=kind) if factor > 1 else convert_to_rgb(file, name, kind=kind)
    # Sides were rounded up: what of the smaller picture is the photo.
    scale = factor if drafted is None else factor * full_wh[0] / drafted[1][2]
    covered = (full_wh[0] / scale, full_wh[1] / scale)
    if covered != image.size:
        wh = (max(round(covered[0]), 1), max(round(covered[1]), 1))
        image = image.resize(wh, Image.Resampling.BICUBIC, box=(0, 0, *covered))
    return image, full_wh


def _reduction(wh: tuple[int, int], min_side: int | None) -> int:
    """How many times smaller a picture may be decoded."""
    if min_side is None or wh[0] * wh[1] <= _LARGE_PIXELS:
        return 1
    return max(max(wh) // min_side, 1)


def _turn_by_pillow(file: Image.Image, path: Path, kind: str) -> int:
    """The orientation that Pillow itself applies in load(), which it does for TIFF files only."""
    return _read_orientation(file, path, kind) if file.format == "TIFF" else 1


def _read_orientation(file: Image.Image, path: Path, kind: str) -> int:
    """1 … 8; 1 where the photo states none, or something else."""
    try:
        orientation = file.getexif().get(ExifTags.Base.Orientation, 1)
    except _DAMAGE as error:
        logger.warning("%s '%s' has damaged EXIF data, taken as upright: %s", kind, path, error)
        return 1
    return int(orientation) if orientation in _UPRIGHT else 1


def _identify(stream: BinaryIO) -> Image.Image:
    # Of a stream: Pillow maps files that it opens by name into memory, and mixes up rows of grey TIFFs that lie on
    # their side (seen in 13.0).
    try:
        return Image.open(stream)
    except UnidentifiedImageError:
        stream.seek(0)
        if not (_is_heif(stream.read(12)) and _register_heif()):
            raise
        stream.seek(0)
    return Image.open(stream)


def _is_heif(start: bytes) -> bool:
    """By the first 12 bytes of a file, for phones' photos come under other names, too."""
    return start[4:8] == b"ftyp" and start[8:12] in _HEIF_BRANDS


def _register_heif() -> bool:
    """Let Pillow read HEIC and HEIF, if the package for it is there."""
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    return True


def _name_unreadable(path: Path) -> str:
    """What a file that Pillow can't read must be, and what it is."""
    suffix = path.suffix.lower()
    if suffix in RAW_EXTENSIONS:
        return "a developed photo, got a camera's raw file: convert it to TIFF or JPEG first"
    with path.open("rb") as stream:
        is_heif = suffix in _HEIF_EXTENSIONS or _is_heif(stream.read(12))
    if is_heif and not _register_heif():
        return 'an image that Pillow can read, got HEIC, which needs an extra: pip install "geomtx[heic]"'
    return "an image that Pillow can read, got another format"


class _Settings:
    """Pillow's settings for the whole process, changed as long as any thread reads a picture."""

    def __init__(self) -> None:
        self.lock, self.readers = threading.Lock(), 0
        self.before: tuple[bool, int | None] = (False, None)
        self.most_pixels: int | None = None


_settings = _Settings()


@contextmanager
def _pillow_settings() -> Iterator[int | None]:
    """The limit of pixels, our own unless the user set Pillow's; half a photo is an error whatever Pillow is set to."""
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
