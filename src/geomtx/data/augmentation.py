"""Random augmentation of training data: colours of photos (VGGT paper, appendix), and videos with their tracks
(CoTracker, Karaev et al., 2024).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from geomtx.checks import check_floating, check_range, check_shape
from geomtx.layers.precision import at_least_float32
from geomtx.types import Float, SceneBatch, TrackLabels

__all__ = [
    "ColorAugmentation",
    "VideoAugmentation",
]


@dataclass(frozen=True)
class ColorAugmentation:
    """Random colour jitter, conversion to grey and blur, with the same random numbers for all views or not.

    The defaults are those of VGGT's released fine-tuning; `paper` returns the settings of the paper.

    Args:
        brightness: Largest deviation of the brightness factor from 1, in 0 … 1; defaults to 0.5.
        contrast: Largest deviation from 1 of the factor about the picture's mean grey, in 0 … 1; defaults to 0.5.
        saturation: Largest deviation from 1 of the factor about grey, in 0 … 1; defaults to 0.5.
        hue: Largest shift of the hue to either side as a share of the colour circle, in 0 … 0.5; defaults to 0.1.
        jitter_prob: Probability that the four changes above are applied to a view, in random order; defaults to 0.9.
        gray_prob: Probability that a view is converted to grey; defaults to 0.05.
        blur_prob: Probability that a view is blurred by a Gaussian of 5x5 pixels with a sigma of 0.1 to 1 pixels;
            defaults to 0.
        shared_prob: Probability that all views of a scene share their random numbers; defaults to 0.7.

    Raises:
        ValueError: If a number is out of range.
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
        for field in fields(self):
            check_range(field.name, getattr(self, field.name), 0, 0.5 if field.name == "hue" else 1)

    @classmethod
    def paper(cls) -> ColorAugmentation:
        """Return the settings of VGGT's paper: independent colours for each view, and blur."""
        return cls(blur_prob=0.05, shared_prob=0.0)

    @classmethod
    def video(cls) -> ColorAugmentation:
        """Return weak settings as in CoTracker's training; most videos share the random numbers among all frames."""
        return cls(0.2, 0.2, 0.2, 0.08, jitter_prob=0.25, gray_prob=0.0, blur_prob=0.25)

    def __call__(
        self, images: Float[Tensor, "b s 3 h w"], *, generator: torch.Generator | None = None
    ) -> Float[Tensor, "b s 3 h w"]:
        """Augment the colours of images.

        Args:
            images: Images (B, S, 3, H, W) in [0, 1].
            generator: Source of random numbers on any device; defaults to the global one of the images' device.

        Returns:
            New images in [0, 1], in the dtype of `images`.

        Raises:
            ValueError: For another shape, a dtype that is not floating point, or values outside of [0, 1].
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
        """Draw uniform numbers in [0, 1), (B·S, 12): a row for each view, or the same row for all views of a scene.

        The columns decide on jitter, grey and blur, then give sigma, the four factors and the order of the changes.
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


@dataclass(frozen=True)
class VideoAugmentation:
    """Random resize and crop of videos with a smooth drift, mirroring, and boxes that cover parts of frames.

    Frames keep their size; where the resized picture is smaller, they are black. Points of tracks that leave the frame
    or are covered become invisible, and tracks that are never visible become invalid. Sizes of boxes and drifts are
    relative to the frame's sides, so that they suit any frame size. Colours are augmented by `ColorAugmentation`.

    Args:
        resize: Range of the factor by which a video is resized, drawn once per video; defaults to (0.75, 1.25).
        resize_drift: Amplitude of the factor's smooth change over the frames, relative to the factor, in 0 … 1
            (exclusive); defaults to 0.1.
        shift_drift: Amplitude of the window's smooth shift over the frames, relative to the frame, in 0 … 1; defaults
            to 0.05.
        period: Range of the periods of these oscillations in frames; defaults to (20, 60).
        resize_prob: Probability that a video is resized and cropped with drift; defaults to 1.
        flip_x_prob: Probability that a video is mirrored left to right; defaults to 0.5.
        flip_y_prob: Probability that a video is mirrored top to bottom; defaults to 0.5.
        erase_prob: Probability that a frame has boxes, each of one colour; defaults to 0.5.
        erase_count: Range of the number of boxes in such a frame; defaults to (1, 10).
        erase_size: Range of the boxes' sides relative to the frame's longer side; defaults to (0.005, 0.2).

    Raises:
        ValueError: If a number is out of range.
    """

    resize: tuple[float, float] = (0.75, 1.25)
    resize_drift: float = 0.1
    shift_drift: float = 0.05
    period: tuple[float, float] = (20.0, 60.0)
    resize_prob: float = 1.0
    flip_x_prob: float = 0.5
    flip_y_prob: float = 0.5
    erase_prob: float = 0.5
    erase_count: tuple[int, int] = (1, 10)
    erase_size: tuple[float, float] = (0.005, 0.2)

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(field.default, tuple):
                object.__setattr__(self, field.name, tuple(value))
                if len(value) != 2 or not 0 < value[0] <= value[1] < math.inf:
                    raise ValueError(f"{field.name} must be (least, most), both positive, got {value}")
            else:
                check_range(field.name, value, 0, 1)
        if self.resize_drift >= 1:
            raise ValueError(f"resize_drift must be below 1, got {self.resize_drift}")

    @property
    def moves_pixels(self) -> bool:
        """Whether pixels may move, so that cameras and depth are not kept."""
        return max(self.resize_prob, self.flip_x_prob, self.flip_y_prob) > 0

    def __call__(self, videos: SceneBatch, *, generator: torch.Generator | None = None) -> SceneBatch:
        """Augment videos and their tracks.

        Args:
            videos: Videos with frames (B, S, 3, H, W) in `images`; tracks are optional.
            generator: Source of random numbers on any device; defaults to the global one of the images' device.

        Returns:
            New frames, in the dtype of the given ones, and tracks. Cameras, depth and points are None if pixels may
            have moved (`moves_pixels`); otherwise the mask marks depth and points under boxes as unknown.

        Raises:
            ValueError: For another shape, or a dtype that is not floating point.
        """
        check_shape("images", videos.images, ("B", "S", 3, "H", "W"))
        check_floating("images", videos.images)
        # Half precision can't count the pixels of a row.
        images = at_least_float32(videos.images)
        tracks, mask = videos.tracks, videos.mask
        if self.moves_pixels:
            scale, offset = self._draw_windows(images, generator)
            images, tracks = _resample(images, scale, offset), _move_tracks(tracks, scale, offset, images)
        low, high, color = self._draw_boxes(images, generator)
        images, covered = _cover(images, low, high, color)
        tracks = _hide_tracks(tracks, low, high)
        images = images.to(videos.images.dtype)
        if self.moves_pixels:
            return SceneBatch(images, tracks=tracks)
        if mask is None and videos.depth is not None:
            mask = videos.depth > 1e-8
        return videos._replace(images=images, tracks=tracks, mask=None if mask is None else mask & ~covered)

    def _draw_windows(self, images: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Draw the map of pixels, coordinates · scale + offset: (B, S, 2) each."""
        num_videos, num_frames, _, height, width = images.shape
        draws = _draw((num_videos, 14), images, generator)
        size = images.new_tensor([width, height])
        low, high = (math.log(value) for value in self.resize)
        factor = (low + (high - low) * draws[:, :1]).exp()
        frames = torch.arange(num_frames, device=images.device, dtype=images.dtype)[:, None]
        period = self.period[0] + (self.period[1] - self.period[0]) * draws[:, 1:4]
        path = (2 * math.pi * (frames / period[:, None] + draws[:, None, 4:7])).sin()
        resized = draws[:, 7:8, None] < self.resize_prob
        scale = factor[:, None] * (1 + self.resize_drift * path[..., :1])
        # Without drift, the window lies within the picture, or the picture within the window.
        start = (size - factor * size) * draws[:, 8:10]
        middle = start + factor * (size - 1) / 2
        offset = middle[:, None] - scale * (size - 1) / 2 + self.shift_drift * size * path[..., 1:]
        scale = torch.where(resized, scale, 1).expand(-1, -1, 2)
        offset = torch.where(resized, offset, 0)
        flips = draws[:, None, 10:12] < images.new_tensor([self.flip_x_prob, self.flip_y_prob])
        return torch.where(flips, -scale, scale), torch.where(flips, size - 1 - offset, offset)

    def _draw_boxes(self, images: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor, Tensor]:
        """Draw the first pixel of each box and the one after its last, (B, S, K, 2), and its colour, (B, S, K, 3)."""
        num_videos, num_frames, _, height, width = images.shape
        most = self.erase_count[1]
        size = images.new_tensor([width, height])
        draws = _draw((num_videos, num_frames, most, 8), images, generator)
        decide = _draw((num_videos, num_frames, 2), images, generator)
        sides = self.erase_size[0] + (self.erase_size[1] - self.erase_size[0]) * draws[..., :2]
        sides = (sides * max(height, width)).round().clamp(min=1)
        low = (draws[..., 2:4] * size - sides / 2).round()
        count = (self.erase_count[0] + decide[..., 1] * (most + 1 - self.erase_count[0])).floor()
        exists = (decide[..., :1] < self.erase_prob) & (torch.arange(most, device=images.device) < count[..., None])
        return low, torch.where(exists[..., None], low + sides, low), draws[..., 4:7]


def _draw(shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw uniform numbers in [0, 1), the same in float32 and float64."""
    device = like.device if generator is None else generator.device
    return torch.rand(shape, generator=generator, device=device).to(like)


def _resample(images: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
    """Resample frames bilinearly by the map of their pixels; pixels from outside of the picture are black."""
    height, width = images.shape[-2:]
    rows = torch.arange(height, device=images.device, dtype=images.dtype)
    columns = torch.arange(width, device=images.device, dtype=images.dtype)
    x = (columns - offset[..., :1]) / scale[..., :1]
    y = (rows - offset[..., 1:]) / scale[..., 1:]
    # grid_sample counts from -1 at the outer edge of the first pixel to 1 at that of the last.
    x, y = (2 * x + 1) / width - 1, (2 * y + 1) / height - 1
    grid = torch.stack([x[:, :, None].expand(-1, -1, height, -1), y[..., None].expand(-1, -1, -1, width)], dim=-1)
    sampled = torch.nn.functional.grid_sample(images.flatten(0, 1), grid.flatten(0, 1), align_corners=False)
    return sampled.view_as(images)


def _move_tracks(tracks: TrackLabels | None, scale: Tensor, offset: Tensor, images: Tensor) -> TrackLabels | None:
    if tracks is None:
        return None
    coords = tracks.coords_px * scale[:, :, None].to(tracks.coords_px) + offset[:, :, None].to(tracks.coords_px)
    limit = coords.new_tensor([images.shape[-1] - 0.5, images.shape[-2] - 0.5])
    inside = ((coords >= -0.5) & (coords < limit)).all(-1)
    return _restrict_visibility(tracks._replace(coords_px=coords), inside)


def _cover(images: Tensor, low: Tensor, high: Tensor, color: Tensor) -> tuple[Tensor, Tensor]:
    """Draw boxes over frames, later ones over earlier ones; returns the frames and the covered pixels (B, S, H, W)."""
    height, width = images.shape[-2:]
    x = torch.arange(width, device=images.device)
    y = torch.arange(height, device=images.device)[:, None]
    covered = torch.zeros_like(images[:, :, 0], dtype=torch.bool)
    for index in range(low.shape[2]):
        (left, top), (right, bottom) = (t[:, :, index, :, None, None].unbind(2) for t in (low, high))
        box = (x >= left) & (x < right) & (y >= top) & (y < bottom)
        images = torch.where(box[:, :, None], color[:, :, index, :, None, None], images)
        covered = covered | box
    return images, covered


def _hide_tracks(tracks: TrackLabels | None, low: Tensor, high: Tensor) -> TrackLabels | None:
    """Mark points whose pixel a box covers as invisible."""
    if tracks is None:
        return None
    pixel = (tracks.coords_px + 0.5).floor()[:, :, None]
    covered = ((pixel >= low[:, :, :, None]) & (pixel < high[:, :, :, None])).all(-1).any(2)
    return _restrict_visibility(tracks, ~covered)


def _restrict_visibility(tracks: TrackLabels, seen: Tensor) -> TrackLabels:
    """Make points invisible that are not `seen` (B, S, N), and tracks invalid that are never visible."""
    visible = tracks.visible & seen
    return TrackLabels(tracks.coords_px, visible, tracks.valid & visible.any(1))
