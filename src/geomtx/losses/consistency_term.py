"""Losses across views as one term of `MultitaskLoss`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from geomtx.checks import check_option
from geomtx.geometry.projection import unproject
from geomtx.losses.depth_consistency import depth_consistency_loss
from geomtx.losses.epipolar import epipolar_loss
from geomtx.losses.pairs import ViewPairs, choose_cameras, draw_pairs
from geomtx.losses.photometric import photometric_loss
from geomtx.losses.term import CountSource, TermLoss
from geomtx.losses.track_points import track_point_loss
from geomtx.types import Cameras, Predictions, SceneBatch

__all__ = ["ConsistencyTerm"]


@dataclass(frozen=True)
class ConsistencyTerm:
    """Predictions of different views agree with each other; a weight of 0 turns a part off.

    Every view is compared with a few others, drawn anew at each call from torch's generator. What a part needs and
    isn't there leaves it out. The images are compared as they are in the batch: give them before any change of colour.

    Attributes:
        weight: Of the term.
        photometric: Weight of `photometric_loss`, of predicted depth and cameras.
        epipolar: Weight of `epipolar_loss`, of predicted cameras and true tracks.
        depth: Weight of `depth_consistency_loss`, of predicted depth and cameras.
        track_points: Weight of `track_point_loss`, of predicted points (without a point head: of unprojected depth)
            and true ones.
        num_sources: Views that each is compared with.
        geometry: Whose cameras: "pred", predicted; "mixed", predicted poses and true intrinsics; "gt", true.
    """

    counts_from: ClassVar[CountSource] = "predictions"

    weight: float = 1.0
    photometric: float = 0.1
    epipolar: float = 0.01
    depth: float = 0.1
    track_points: float = 5.0
    num_sources: int = 2
    geometry: Literal["pred", "mixed", "gt"] = "pred"

    def __post_init__(self) -> None:
        check_option("geometry", self.geometry, ("pred", "mixed", "gt"))

    def __call__(self, predictions: Predictions, batch: SceneBatch) -> TermLoss | None:
        """Logs `loss_photometric`, `loss_epipolar`, `loss_depth_consistency`, `loss_track_points`, before weights."""
        cameras = self._cameras(predictions, batch)
        pairs = draw_pairs(batch.images.shape[1], self.num_sources)
        parts = {
            **self._of_depth(predictions, batch, cameras, pairs),
            **self._of_tracks(predictions, batch, cameras, pairs),
        }
        if not parts:
            return None
        total = torch.stack([weight * loss for weight, loss in parts.values()]).sum()
        return TermLoss(total, {name: loss for name, (_, loss) in parts.items()})

    def _cameras(self, predictions: Predictions, batch: SceneBatch) -> Cameras | None:
        if self.geometry == "gt":
            return batch.cameras
        if self.geometry == "pred" or predictions.cameras is None or batch.cameras is None:
            return predictions.cameras if self.geometry == "pred" else None
        return choose_cameras(predictions.cameras, batch.cameras, geometry=self.geometry)

    def _camera_mask(self, batch: SceneBatch) -> Tensor | None:
        """Predicted cameras are always known."""
        return None if self.geometry == "pred" else batch.camera_mask

    def _of_depth(
        self, predictions: Predictions, batch: SceneBatch, cameras: Cameras | None, pairs: ViewPairs
    ) -> dict[str, tuple[float, Tensor]]:
        parts: dict[str, tuple[float, Tensor]] = {}
        if predictions.depth is None or cameras is None:
            return parts
        depth, mask, camera_mask = predictions.depth.value, batch.mask, self._camera_mask(batch)
        if self.photometric:
            loss = photometric_loss(batch.images, depth, cameras, pairs, mask=mask, camera_mask=camera_mask)
            parts["loss_photometric"] = self.photometric, loss
        if self.depth:
            loss = depth_consistency_loss(depth, cameras, pairs, mask=mask, camera_mask=camera_mask)
            parts["loss_depth_consistency"] = self.depth, loss
        return parts

    def _of_tracks(
        self, predictions: Predictions, batch: SceneBatch, cameras: Cameras | None, pairs: ViewPairs
    ) -> dict[str, tuple[float, Tensor]]:
        parts: dict[str, tuple[float, Tensor]] = {}
        if batch.tracks is None:
            return parts
        # True cameras have nothing to learn of true tracks.
        if self.epipolar and cameras is not None and self.geometry != "gt":
            coords, visible, valid = batch.tracks
            visible = visible & valid[:, None]
            mask = self._camera_mask(batch)
            loss = epipolar_loss(coords, cameras, pairs, visible=visible, camera_mask=mask)
            parts["loss_epipolar"] = self.epipolar, loss
        if self.track_points and batch.points is not None:
            points = None if predictions.points is None else predictions.points.value
            if points is None and predictions.depth is not None and cameras is not None:
                points = unproject(predictions.depth.value, cameras.intrinsics, cameras.cam_from_world)
            if points is not None:
                loss = track_point_loss(points, batch.points, batch.tracks, batch.mask)
                parts["loss_track_points"] = self.track_points, loss
        return parts
