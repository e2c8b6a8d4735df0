"""The photos of a scene: where they are, and upright copies of them for trainers that know no EXIF orientation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from PIL import Image
from torch import Tensor

from geomtx.files import escape_name, user_path
from geomtx.scene.content import SceneContent
from geomtx.scene.files.sparse_model import Box
from geomtx.types import show_shapes
from geomtx.views.listing import PhotoError
from geomtx.views.pictures import open_picture, read_picture

__all__ = ["Photo", "copy_names", "file_names", "find_photos", "plan_copies", "write_copies"]

_KEPT = (".jpg", ".jpeg", ".png")  # every trainer reads these
_LOSSY = (".heic", ".heif", ".hif", ".avif", ".webp", ".jfif", ".mpo", ".jp2")
_SAME_BYTES = {"JPEG": (".jpg", ".jpeg"), "MPO": (".jpg", ".jpeg"), "PNG": (".png",)}
_ORIENTATION = 0x0112
_QUALITY = {"quality": 97, "subsampling": 0}


@show_shapes
class Photo(NamedTuple):
    """A photo that is copied.

    Attributes:
        name: Name of the copy.
        source: File of the photo, or the image (3, H, W) uint8 of a view that came from no file.
        size: Height and width that the upright photo must have.
        box: Part that is kept, or None for the whole photo.
    """

    name: str
    source: Path | Tensor
    size: tuple[int, int]
    box: Box | None = None


def find_photos(scene: SceneContent, folder: Path | None = None) -> tuple[Path | Tensor, ...]:
    """Find the file of each view; the image itself of a view from no file whose pixels are the original ones.

    Args:
        scene: Any scene.
        folder: Folder of the photos, searched for the names of the views, with and without the folders in them;
            defaults to `scene.paths`.

    Raises:
        PhotoError: With the number of photos that are missing, and the first of them.
    """
    paths = scene.paths or (None,) * len(scene)
    found: list[Path | Tensor | None] = []
    for index, (name, path) in enumerate(zip(scene.names, paths, strict=True)):
        place = path if folder is None else _find_in(user_path(folder), name)
        transform = scene.transforms[index]
        if place is not None and place.is_file():
            found.append(place)
        elif path is None and folder is None and _is_identity(transform.scale, transform.offset):
            found.append(scene.images[index, :, : transform.original_hw[0], : transform.original_hw[1]])
        else:
            found.append(None)
    missing = [str(path or name) for name, path, each in zip(scene.names, paths, found, strict=True) if each is None]
    if missing:
        where = "where they were" if folder is None else f"in '{folder}'"
        if scene.times and folder is None and not any(paths):
            raise PhotoError(
                "frames of a video must be files to be copied, got none: reconstruct from the folder that "
                "geomtx.views.extract_frames writes, or name it (--photos, photos=)"
            )
        raise PhotoError(
            f"photos must be found to be copied, got none {where} for {len(missing)} of {len(scene)}, the first "
            f"'{missing[0]}'; name their folder (--photos, photos=)"
        )
    return tuple(each for each in found if each is not None)


def file_names(scene: SceneContent) -> tuple[str, ...]:
    """Return the names of the views as the files have them: bytes that are not UTF-8 as `os.fsdecode` gives them."""
    names = []
    for name, path in zip(scene.names, scene.paths or (None,) * len(scene), strict=True):
        own = name
        if path is not None:
            tail = "/".join(path.parts[-len(PurePosixPath(name).parts) :])
            own = tail if escape_name(tail) == name else name
        names.append(own)
    return tuple(names)


def copy_names(names: Sequence[str]) -> tuple[str, ...]:
    """Return the names of copies: without folders, which trainers lose, and .png or .jpg for what few of them read.

    Raises:
        ValueError: If two copies would have one name.
    """
    copies = []
    for name in names:
        path = PurePosixPath(escape_name(name))
        suffix = path.suffix.lower()
        if suffix not in _KEPT:
            path = path.with_suffix(".jpg" if suffix in _LOSSY else ".png")
        copies.append(path.name)
    taken: dict[str, str] = {}
    for name, copy in zip(names, copies, strict=True):
        if copy.casefold() in taken:
            raise ValueError(
                f"photos must have different names without their folders to be copied into one, got "
                f"'{taken[copy.casefold()]}' and '{escape_name(name)}'"
            )
        taken[copy.casefold()] = escape_name(name)
    return tuple(copies)


def plan_copies(names: Sequence[str], factors: Sequence[int]) -> tuple[str, ...]:
    """Return the paths that `write_copies` writes for copies of these names."""
    folders = ["images", *(f"images_{factor}" for factor in factors)]
    return tuple(f"{folder}/{name}" for folder in folders for name in names)


def write_copies(folder: Path, photos: Sequence[Photo], factors: Sequence[int]) -> None:
    """Write photos upright in full size to `images`, and smaller by each factor N to `images_N`.

    The bytes of an 8-bit colour photo that is upright and whole are copied. Others are decoded, turned, cropped and
    written again: .png without loss, .jpg with quality 97.

    Args:
        folder: Folder, which exists.
        photos: Photos with names from `copy_names`.
        factors: Whole numbers by which sides are divided, rounded to pixels.

    Raises:
        PhotoError: If a photo can't be read, or has another size than when the scene was made.
    """
    for sub in ("images", *(f"images_{factor}" for factor in factors)):
        (folder / sub).mkdir()
    for photo in photos:
        target = folder / "images" / photo.name
        same = isinstance(photo.source, Path) and photo.box is None and _may_be_copied(photo.source, target.suffix)
        if same and not factors:
            _check_size(photo, _stored_size(photo.source))
            target.write_bytes(photo.source.read_bytes())  # type: ignore[union-attr]
            continue
        image = _decode(photo)
        if same:
            target.write_bytes(photo.source.read_bytes())  # type: ignore[union-attr]
        else:
            _save(image, target)
        for factor in factors:
            size = (max(round(image.width / factor), 1), max(round(image.height / factor), 1))
            smaller = image.resize(size, Image.Resampling.BICUBIC)
            _save(smaller, folder / f"images_{factor}" / photo.name)


def _find_in(folder: Path, name: str) -> Path | None:
    """The file of a view's name in a folder, with the folders of the name or without."""
    for wanted in (name, PurePosixPath(name).name):
        path = folder / wanted
        if path.is_file():
            return path
        if path.parent.is_dir():  # names of bytes that are not UTF-8 are escaped in scenes
            for each in sorted(path.parent.iterdir()):
                if escape_name(each.name) == path.name and each.is_file():
                    return each
    return None


def _is_identity(scale: tuple[float, float], offset: tuple[float, float]) -> bool:
    return scale == (1, 1) and offset == (0, 0)


def _may_be_copied(path: Path, suffix: str) -> bool:
    """Whether a file is an upright 8-bit colour picture of the kind that its copy's name says."""
    with open_picture(path) as file:
        upright = file.getexif().get(_ORIENTATION, 1) in (0, 1)
        return suffix.lower() in _SAME_BYTES.get(file.format or "", ()) and file.mode in ("RGB", "RGBA") and upright


def _stored_size(source: Path | Tensor) -> tuple[int, int]:
    assert isinstance(source, Path)
    with open_picture(source) as file:
        return file.height, file.width


def _decode(photo: Photo) -> Image.Image:
    if isinstance(photo.source, Path):
        image = read_picture(photo.source).image
    else:
        image = Image.fromarray(photo.source.movedim(0, -1).contiguous().numpy())
    _check_size(photo, (image.height, image.width))
    return image if photo.box is None else image.crop(photo.box)


def _check_size(photo: Photo, found: tuple[int, int]) -> None:
    if found != photo.size:
        (height, width), (now_height, now_width) = photo.size, found
        raise PhotoError(
            f"photo '{photo.source if isinstance(photo.source, Path) else photo.name}' must have the {width}x{height} "
            f"pixels that it had when the scene was made, got {now_width}x{now_height}"
        )


def _save(image: Image.Image, path: Path) -> None:
    if path.suffix.lower() == ".png":
        image.save(path, format="PNG")
    else:
        image.save(path, format="JPEG", **_QUALITY)
