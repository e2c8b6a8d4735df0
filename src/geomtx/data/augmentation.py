"""Colours of photos, changed at random (VGGT paper, appendix; released data pipeline)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from geomtx.checks import check_floating, check_shape
from geomtx.types import Float

__all__ = ["ColorAugmentation"]


@dataclass(frozen=True)
class ColorAugmentation:
    """Jitter colours, take them away, blur: the same for all views of a scene, or each view its own.

    The defaults are those of the released fine-tuning; `paper` is what the paper describes.

    Args:
        brightness: Factors are drawn from 1 ± this.
        contrast: As brightness; 0 is the picture's mean grey.
        saturation: As brightness; 0 is grey.
        hue: Shifts are drawn from ± this share of the colour circle, at most 0.5.
        jitter_prob: That the four above are applied, in random order.
        gray_prob: That a view becomes grey.
        blur_prob: That a view is blurred, by a Gaussian of 5x5 pixels with a sigma of 0.1 to 1.
        shared_prob: That all views of a scene share what is drawn.

    Raises:
        ValueError: For a number out of its range.
    """

    brightness: float = 0.5
    contrast: float = 0.5
    saturation: float = 0.5
    hue: float = 0.1
    jitter_prob: float = 0.9
    gray_prob: float = 0.05
    blur_prob: float = 0.0
    shared_prob: float = 0.7

    def __post_init__(self) -> None:
        limits = {"hue": 0.5}
        for name in self.__dataclass_fields__:
            value, limit = getattr(self, name), limits.get(name, 1.0)
            if not 0 <= value <= limit:
                raise ValueError(f"{name} must be in 0 … {limit:g}, got {value}")

    @classmethod
    def paper(cls) -> ColorAugmentation:
        """Each view its own colours, and blur."""
        return cls(blur_prob=0.05, shared_prob=0.0)

    @classmethod
    def video(cls) -> ColorAugmentation:
        """Little, as CoTracker is trained with; all frames share a draw more often than not."""
        return cls(0.2, 0.2, 0.2, 0.08, jitter_prob=0.25, gray_prob=0.0, blur_prob=0.25)

    def __call__(
        self, images: Float[Tensor, "b s 3 h w"], *, generator: torch.Generator | None = None
    ) -> Float[Tensor, "b s 3 h w"]:
        """Change the colours.

        Args:
            images: (B, S, 3, H, W) in [0, 1].
            generator: For the draws, on any device; None = the global one of the images' device.

        Returns:
            New images in [0, 1], in the dtype of `images`.

        Raises:
            ValueError: For another shape, a dtype that is not floating point, or values that are not in [0, 1].
        """
        check_shape("images", images, ("B", "S", 3, "H", "W"))
        check_floating("images", images)
        if not ((images >= 0) & (images <= 1)).all():  # NaN is neither
            raise ValueError("images must be in [0, 1], got values outside or NaN")
        num_scenes, num_views = images.shape[:2]
        draws = self._draw(num_scenes, num_views, images.device, generator)
        with torch.autocast(images.device.type, enabled=False):
            wide = images.flatten(0, 1).to(torch.promote_types(images.dtype, torch.float32), copy=True)
            self._jitter(wide, draws)
            self._gray(wide, draws)
            self._blur(wide, draws)
        return wide.to(images.dtype).unflatten(0, (num_scenes, num_views))

    def _draw(self, num_scenes: int, num_views: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
        """Uniform numbers in [0, 1), (B·S, 12), one row a view; a scene that shares has the same row for all views.

        Columns: what decides on jitter, grey, blur; sigma; the four factors; the order of the four.
        """
        source = device if generator is None else generator.device
        draws = torch.rand(num_scenes, num_views, 12, generator=generator, device=source)
        shared = torch.rand(num_scenes, 1, 1, generator=generator, device=source) < self.shared_prob
        return torch.where(shared, draws[:, :1], draws).flatten(0, 1).to(device)

    def _jitter(self, images: Tensor, draws: Tensor) -> None:
        from kornia import enhance

        steps = (
            (enhance.adjust_brightness_accumulative, self.brightness, 1.0, 1.0),
            (enhance.adjust_contrast_with_mean_subtraction, self.contrast, 1.0, 1.0),
            (enhance.adjust_saturation_with_gray_subtraction, self.saturation, 1.0, 1.0),
            (enhance.adjust_hue, self.hue, 0.0, 2 * math.pi),
        )
        chosen = draws[:, 0] < self.jitter_prob
        order = draws[:, 8:].argsort(dim=-1)
        for position in range(len(steps)):
            for index, (adjust, strength, neutral, unit) in enumerate(steps):
                views = (chosen & (order[:, position] == index)).nonzero()[:, 0]
                if strength > 0 and len(views):
                    factor = (neutral + strength * (2 * draws[views, 4 + index] - 1)) * unit
                    images[views] = adjust(images[views], factor.to(images.dtype)).clamp(0, 1)

    def _gray(self, images: Tensor, draws: Tensor) -> None:
        from kornia.color import rgb_to_grayscale

        views = (draws[:, 1] < self.gray_prob).nonzero()[:, 0]
        if len(views):
            images[views] = rgb_to_grayscale(images[views]).clamp(0, 1).expand(-1, 3, -1, -1)

    def _blur(self, images: Tensor, draws: Tensor) -> None:
        from kornia.filters import gaussian_blur2d

        views = (draws[:, 2] < self.blur_prob).nonzero()[:, 0]
        if len(views):
            sigma = (0.1 + 0.9 * draws[views, 3:4]).expand(-1, 2).to(images.dtype)
            images[views] = gaussian_blur2d(images[views], (5, 5), sigma).clamp(0, 1)
