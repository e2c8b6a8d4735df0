"""Views in the form that a model takes: photos, tensors and views that were prepared for another one."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from typing import Any

from torch import Tensor

from geomtx.checks import check_divisible
from geomtx.views.loading import default_size, load_views, prepare_again
from geomtx.views.views import Views, warn_of_range

__all__ = ["load_for_model"]

logger = logging.getLogger(__name__)


def load_for_model(source: Any, patch_size: int, image_size: int | None, mode: str = "fit") -> Views:
    """Return views as a model takes them.

    Args:
        source: Views, which are prepared again from their photos where they are for another patch, or of a size that
            nobody chose; a tensor (S, 3, H, W) in [0, 1]; or a folder, a photo or a list of photos.
        patch_size: Side of the model's patches in pixels.
        image_size: Side in pixels of the images that the model is made for; None where it is made for none.
        mode: Mode in which photos are loaded, see `load_views`.

    Raises:
        ValueError: For anything else, views for another patch whose photos are gone, images that are not finite, and
            as `load_views`.
    """
    if isinstance(source, Views):
        views = _fit_views(source, patch_size, image_size)
        _check_views(views, patch_size)
        return views
    if isinstance(source, Tensor):
        return Views.from_images(source, patch_size=patch_size)
    if not isinstance(source, Iterable | os.PathLike):
        raise ValueError(f"views must be Views, a tensor, a folder or photos, got {type(source).__name__}")
    size = None if image_size is None else default_size(patch_size, image_size)
    return load_views(source, mode=mode, size=size, patch_size=patch_size)


def _fit_views(views: Views, patch_size: int, image_size: int | None) -> Views:
    """Prepare views again from their photos where they are for another patch, or a size that nobody chose."""
    made = views.preparation
    if made is None or not all(path is not None and path.is_file() for path in views.paths):
        return views
    chosen = made.asked or made.mode == "area"
    own_size = image_size is None or chosen or made.size == default_size(patch_size, image_size)
    if views.patch_size == patch_size and own_size:
        return views
    again = prepare_again(views, patch_size, image_size)
    before, after = (f"{each.image_hw[1]}x{each.image_hw[0]}" for each in (views, again))
    logger.info("views of %s pixels are prepared again from their photos, %s pixels, for this model", before, after)
    return again


def _check_views(views: Views, patch_size: int) -> None:
    """What `Views.from_images` checks of a tensor, for views that may have been changed since they were loaded."""
    if views.patch_size != patch_size:
        raise ValueError(
            f"patch_size of views must be the model's {patch_size}, got {views.patch_size}; "
            f"load them with load_views(…, patch_size={patch_size}), or give the photos themselves"
        )
    check_divisible("image height", views.images.shape[-2], patch_size)
    check_divisible("image width", views.images.shape[-1], patch_size)
    for image, name in zip(views.images, views.names, strict=True):
        if not image.isfinite().all():
            raise ValueError(f"images must be finite, got NaN or infinity in {name}")
    warn_of_range(views.images)
