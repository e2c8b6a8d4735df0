"""`Views`: the images of one scene, and the transforms to the original pixels of each."""

from __future__ import annotations

import logging
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, SupportsIndex

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from geomtx.checks import check_divisible, check_positive, check_shape
from geomtx.types import Bool
from geomtx.views.color import convert_to_rgb
from geomtx.views.transform import ViewTransform, stack_padded

__all__ = ["Preparation", "Views", "warn_of_range"]

logger = logging.getLogger(__name__)


class Preparation(NamedTuple):
    """How `load_views` made images of photos.

    Attributes:
        mode: Way in which photos were fitted into the images, see `load_views`.
        size: Side of the images in pixels; for "area" their number of pixels, at most.
        asked: Whether the caller chose the size; otherwise it is that of a model, or the default.
        cut: Whether images of different sizes were cut to the smallest instead of padded.
    """

    mode: str
    size: int
    asked: bool
    cut: bool = False


@dataclass(frozen=True, eq=False)
class Views:
    """The S views of one scene, ready for a model; the first one is the reference view.

    Methods that end in `_original` apply each view's own transform to tensors with an axis of S views.

    Attributes:
        images: (S, 3, H, W) float32 in [0, 1], RGB, both sides multiples of `patch_size`.
        transforms: S transforms between original pixels and the pixels of `images`.
        masks: (S, H, W) bool, True for a pixel of the photo, False for padding.
        names: S different names, those of the files, with their folders if files of several folders share a name.
        paths: S files; None for a view without a file.
        patch_size: Side of a patch in pixels.
        times: S times in seconds from the first frame of the video that the views are frames of; () for photos.
    """

    images: Tensor
    transforms: tuple[ViewTransform, ...]
    masks: Tensor
    names: tuple[str, ...]
    paths: tuple[Path | None, ...]
    patch_size: int = 14
    times: tuple[float, ...] = ()
    # With the version of the images that it made; not an argument, so that dataclasses.replace drops it.
    _prepared: tuple[Preparation | None, int] = field(default=(None, 0), init=False, repr=False)

    def __post_init__(self) -> None:
        check_shape("images", self.images, ("S", 3, "H", "W"))
        num_views, _, height, width = self.images.shape
        check_shape("masks", self.masks, (num_views, height, width))
        for name in ("transforms", "names", "paths"):
            if len(getattr(self, name)) != num_views:
                raise ValueError(f"{name} must have one entry per view ({num_views}), got {len(getattr(self, name))}")
        if len(self.times) not in (0, num_views):
            raise ValueError(f"times must have one entry per view ({num_views}), or none, got {len(self.times)}")
        if len(set(self.names)) != num_views:
            raise ValueError(f"names must differ from one another, got {self.names}")

    @classmethod
    def from_images(cls, images: Any, *, names: Sequence[str] | None = None, patch_size: int = 14) -> Views:
        """Build views from images of the model's size; nothing is resized, which `load_views` does.

        Images of different sizes are padded with white to the largest, centred, as in `load_views`.

        Args:
            images: Tensor (S, 3, H, W) in [0, 1], or a sequence of S images: tensors (3, H, W), Pillow pictures, or
                arrays (H, W, 3) of uint8 or of floats in [0, 1]. Both sides are multiples of `patch_size`.
            names: S different names; defaults to "view_000.png", "view_001.png", …
            patch_size: Side of a patch in pixels; defaults to 14.

        Raises:
            ValueError: For images without three channels, integer tensors, sides that are not multiples of
                `patch_size`, or values that are not finite.
        """
        check_positive("patch_size", patch_size)
        if isinstance(images, Tensor):
            check_shape("images", images, ("S", 3, "H", "W"))
        tensors = [_to_tensor(image, index) for index, image in enumerate(images)]
        if not tensors:
            raise ValueError("images must hold at least one view, got none")
        for index, tensor in enumerate(tensors):
            _check_image(f"images[{index}]", tensor, patch_size)
        transforms = [ViewTransform.identity((image.shape[1], image.shape[2])) for image in tensors]
        names = tuple(names) if names is not None else tuple(f"view_{index:03}.png" for index in range(len(tensors)))
        views = cls.assemble(tensors, transforms, names, [None] * len(tensors), patch_size)
        warn_of_range(views.images)
        return views

    @classmethod
    def assemble(
        cls,
        images: Sequence[Tensor],
        transforms: Sequence[ViewTransform],
        names: Sequence[str],
        paths: Sequence[Path | None],
        patch_size: int,
    ) -> Views:
        """Build views from images (3, H, W) and their transforms: pads them to one size and makes the masks."""
        stacked, padded = stack_padded(images, transforms)
        masks = torch.stack([transform.mask for transform in padded]).to(stacked.device)
        return cls(stacked, padded, masks, tuple(names), tuple(paths), patch_size)

    def __len__(self) -> int:
        return len(self.transforms)

    def __getitem__(self, index: SupportsIndex | slice | Iterable[SupportsIndex]) -> Views:
        """Select views by an index, a slice or a list of indices, in that order. The padding stays.

        Raises:
            ValueError: If no view is selected, or for booleans, which would be taken as the indices 0 and 1.
        """
        chosen: list[Any] = list(index) if isinstance(index, Iterable) and getattr(index, "ndim", 1) != 0 else [index]
        if any(_is_bool(each) for each in chosen):
            raise ValueError(f"index must hold whole numbers, got booleans: {index}")
        indices = range(len(self))
        if isinstance(index, slice):
            picked = list(indices[index])
        else:  # integers, also numpy's or tensors of no axes
            picked = [indices[operator.index(each)] for each in chosen]
        if not picked:
            raise ValueError(f"index must pick at least one of {len(self)} views, got {index}")
        views = Views(
            images=self.images[picked],
            transforms=tuple(self.transforms[i] for i in picked),
            masks=self.masks[picked],
            names=tuple(self.names[i] for i in picked),
            paths=tuple(self.paths[i] for i in picked),
            patch_size=self.patch_size,
            times=tuple(self.times[i] for i in picked) if self.times else (),
        )
        return views.prepared_by(self.preparation)

    @property
    def preparation(self) -> Preparation | None:
        """How the images were made of the photos in `paths`; None where they were replaced or changed in place since.

        With it, `geomtx.reconstruct` can prepare them again for a model of another patch.
        """
        made, version = self._prepared
        return made if version == _version(self.images) else None

    def prepared_by(self, preparation: Preparation | None) -> Views:
        """Return these views with a note of how their images were made of the photos."""
        views = replace(self)
        object.__setattr__(views, "_prepared", (preparation, _version(views.images)))
        return views

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_prepared": (self.preparation, 0)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # A copy counts the changes of its images anew.
        self.__dict__.update(state, _prepared=(state["_prepared"][0], _version(state["images"])))

    def __repr__(self) -> str:
        height, width = self.image_hw
        return f"Views({len(self)} of {width}x{height}: {', '.join(self.names[:3])}{', …' if len(self) > 3 else ''})"

    def __iter__(self) -> Iterator[Views]:
        return (self[index] for index in range(len(self)))

    @property
    def image_hw(self) -> tuple[int, int]:
        """Height and width of the images, padding included."""
        return self.images.shape[2], self.images.shape[3]

    @property
    def patch_mask(self) -> Bool[Tensor, "s rows columns"] | None:
        """Mask of patches (S, H/patch, W/patch) bool, True where at least half is photo; None if all are.

        Passed to a model, it keeps padding out of attention. With None the model does not mask at all.
        """
        patch = self.patch_size
        pixels = rearrange(self.masks, "s (rows p) (columns q) -> s rows columns (p q)", p=patch, q=patch)
        mask: Tensor = pixels.sum(-1) * 2 >= patch * patch
        return None if mask.all() else mask

    def with_masks(self, masks: Sequence[Tensor]) -> Views:
        """Mask parts of the photos, such as sky, people or moving objects.

        Masked patches take no part in attention, and masked pixels give no points.

        Args:
            masks: S masks (h, w) bool, each of the size of its original photo, True for pixels to use.

        Raises:
            ValueError: For another number of masks, another size or dtype.
        """
        if len(masks) != len(self):
            raise ValueError(f"masks must have one entry per view ({len(self)}), got {len(masks)}")
        mapped = []
        for index, (mask, transform) in enumerate(zip(masks, self.transforms, strict=True)):
            check_shape(f"masks[{index}]", mask, transform.original_hw)
            if mask.dtype != torch.bool:
                raise ValueError(f"masks[{index}] must be bool, got {mask.dtype}")
            mapped.append(transform.depth_from_original(mask, mode="nearest"))
        visible = self.masks & torch.stack(mapped).to(self.masks.device)
        return replace(self, masks=visible).prepared_by(self.preparation)

    def tracks_to_original(self, coords_px: Tensor) -> Tensor:
        """Map tracks (..., S, N, 2) from the model's pixels to each view's original pixels."""
        return self._stack("coords_px", coords_px, -3, ViewTransform.to_original)

    def tracks_from_original(self, coords_px: Tensor) -> Tensor:
        """Map tracks (..., S, N, 2) from each view's original pixels to the model's pixels."""
        return self._stack("coords_px", coords_px, -3, ViewTransform.from_original)

    def intrinsics_to_original(self, intrinsics: Tensor) -> Tensor:
        """Map intrinsics (..., S, 3, 3) of the model's images to those of the photos."""
        return self._stack("intrinsics", intrinsics, -3, ViewTransform.intrinsics_to_original)

    def intrinsics_from_original(self, intrinsics: Tensor) -> Tensor:
        """Map intrinsics (..., S, 3, 3) of the photos to those of the model's images."""
        return self._stack("intrinsics", intrinsics, -3, ViewTransform.intrinsics_from_original)

    def depth_to_original(self, depth: Tensor, *, mode: str = "bilinear", fill: float = 0.0) -> list[Tensor]:
        """Resample maps (..., S, H, W) to S maps (..., h, w) of the photos' sizes, see `ViewTransform`."""
        self._check_views("depth", depth, -3)
        pairs = zip(self.transforms, depth.unbind(-3), strict=True)
        return [transform.depth_to_original(view, mode=mode, fill=fill) for transform, view in pairs]

    def _stack(self, name: str, values: Tensor, dim: int, apply: Callable[[ViewTransform, Tensor], Tensor]) -> Tensor:
        self._check_views(name, values, dim)
        pairs = zip(self.transforms, values.unbind(dim), strict=True)
        return torch.stack([apply(transform, view) for transform, view in pairs], dim=dim)

    def _check_views(self, name: str, values: Tensor, dim: int) -> None:
        if values.ndim < -dim or values.shape[dim] != len(self):
            raise ValueError(f"{name} must have {len(self)} views on axis {dim}, got shape {tuple(values.shape)}")


def _version(images: Tensor) -> int:
    """Return the number of changes in place; tensors of `torch.inference_mode` don't count them."""
    return 0 if images.is_inference() else images._version


def warn_of_range(images: Tensor) -> None:
    """Log a warning for images that are far outside [0, 1], such as those in 0 … 255."""
    low, high = (value.item() for value in images.detach().aminmax())
    if low < -0.1 or high > 1.1:
        logger.warning("images should be in [0, 1], got %.3g to %.3g", low, high)


def _to_tensor(image: Any, index: int) -> Tensor:
    """Convert an image to a tensor (3, H, W), uint8 or floating point."""
    if isinstance(image, Tensor):
        if not image.is_floating_point():
            raise ValueError(f"images[{index}] must be floating point in [0, 1], got {image.dtype}")
        return image
    if isinstance(image, Image.Image):
        image = np.array(convert_to_rgb(image, f"images[{index}]"))
    if not isinstance(image, np.ndarray):
        raise ValueError(f"images[{index}] must be a tensor, an array or a Pillow picture, got {type(image).__name__}")
    if image.dtype != np.uint8 and image.dtype.kind != "f":
        raise ValueError(f"images[{index}] must be uint8, or floating point in [0, 1], got {image.dtype}")
    if image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"images[{index}] must have shape (H, W, 3), got {image.shape}")
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)


def _is_bool(index: object) -> bool:
    return isinstance(index, bool | np.bool_) or getattr(index, "dtype", None) == torch.bool


def _check_image(name: str, image: Tensor, patch_size: int) -> None:
    check_shape(name, image, (3, "H", "W"))
    check_divisible(f"height of {name}", image.shape[1], patch_size)
    check_divisible(f"width of {name}", image.shape[2], patch_size)
    if min(image.shape) == 0:
        raise ValueError(f"{name} must not be empty, got shape {tuple(image.shape)}")
    if not image.isfinite().all():
        raise ValueError(f"{name} must be finite, got NaN or infinity")
