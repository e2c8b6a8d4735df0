"""Images of views in their own sizes: models that see pairs need no padding."""

from __future__ import annotations

from torch import Tensor

from geomtx.views.views import Views

__all__ = ["Box", "unpad_images"]

Box = tuple[int, int, int, int]
"""Top, bottom, left and right of a part of an image, in pixels."""


def unpad_images(views: Views, patch_size: int) -> tuple[list[Tensor], list[Box]]:
    """Return the images of views without the padding that brings them to one size, and where in these they lie.

    Args:
        views: Views of a scene.
        patch_size: Side of a patch in pixels; an image that would not be whole patches keeps its padding.

    Returns:
        Images (3, H, W), and top, bottom, left and right of each, in pixels.
    """
    images, boxes = [], []
    for image, transform in zip(views.images, views.transforms, strict=True):
        rows, columns = (transform.mask.any(axis).nonzero()[:, 0] for axis in (1, 0))
        box = (int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1)
        if (box[1] - box[0]) % patch_size or (box[3] - box[2]) % patch_size:
            box = (0, image.shape[-2], 0, image.shape[-1])
        images.append(image[:, box[0] : box[1], box[2] : box[3]])
        boxes.append(box)
    return images, boxes
