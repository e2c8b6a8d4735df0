"""A step in chunks is the step of the whole batch, however unevenly scenes are labelled."""

import copy
import dataclasses
from typing import Any

import pytest
import torch
from accelerate import Accelerator

import geomtx
from geomtx.data import render_scenes
from geomtx.data.synthetic.render import render_videos
from geomtx.losses import CameraTerm, ConsistencyTerm, DenseTerm, LossReport, MultitaskLoss, TrackTerm
from geomtx.losses.terms import HeadTerm
from geomtx.training.config import LossSection
from geomtx.training.optim import ClipGroup
from geomtx.training.step import VGGT_TASK, TrainingStep
from geomtx.training.tasks.nvs import NvsTask
from geomtx.training.tasks.pairs import MASt3RTask
from geomtx.training.tasks.rehearsal import Rehearsal
from geomtx.training.tasks.task import Task
from geomtx.training.tasks.video_tracker import VideoTask
from geomtx.types import DenseMap, Predictions, SceneBatch
from training.small_run import NUMBERS

ROOMS = {"num_solids": [1, 1], "shadows": False}
OFF: dict[str, Any] = {"camera": None, "depth": None, "points": None, "tracks": None}


def uneven_scenes(num_views: int = 3) -> SceneBatch:
    """Four scenes: with depth, cameras and tracks in different parts, one with nothing but its first camera."""
    batch = render_scenes([1, 2, 3, 4], num_views, (28, 28), num_tracks=12)
    mask = torch.ones_like(batch.depth, dtype=torch.bool)
    mask[1, :, 3:], mask[2], mask[3, 1:] = False, False, False
    cameras = torch.ones(4, num_views, dtype=torch.bool)
    cameras[1, 1:], cameras[2, 1:] = False, False
    tracks = batch.tracks
    valid, visible = tracks.valid.clone(), tracks.visible.clone()
    valid[1, 1:], valid[2], visible[3, 1:] = False, False, False
    tracks = tracks._replace(valid=valid, visible=visible)
    return double(batch._replace(mask=mask, camera_mask=cameras, tracks=tracks))


def double(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.double() if value.is_floating_point() else value
    return value if value is None else type(value)(*map(double, value))


def changes(
    model: torch.nn.Module, loss: Any, batch: SceneBatch, num_chunks: int, task: Task = VGGT_TASK
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """What a step of gradient descent changes, and its scalars."""
    accelerator = Accelerator(cpu=True)
    model = copy.deepcopy(model).train()
    parameters = list(model.parameters())
    before = torch.cat([p.detach().flatten().clone() for p in parameters])
    model, optimiser = accelerator.prepare(model, torch.optim.SGD(parameters, lr=1.0))
    groups = [ClipGroup("*", parameters, 1e9)]
    step = TrainingStep(model, loss, optimiser, accelerator, groups, num_chunks=num_chunks, task=task)
    torch.manual_seed(5)
    report = step(batch)
    assert report.applied
    return torch.cat([p.detach().flatten() for p in parameters]) - before, report.scalars


def check_chunks(
    model: torch.nn.Module, loss: Any, batch: SceneBatch, task: Task = VGGT_TASK, *, num_chunks: int = 3
) -> None:
    """Chunks of unequal size have the step of the whole batch; of equal size they are in `two_processes.py`."""
    change, scalars = changes(model, loss, batch, 1, task)
    assert change.any()
    found, found_scalars = changes(model, loss, batch, num_chunks, task)
    assert (found - change).norm() < 1e-9 * change.norm()
    assert found_scalars.keys() == scalars.keys()
    for name in scalars.keys() - {"psnr"}:
        torch.testing.assert_close(found_scalars[name], scalars[name], rtol=1e-9, atol=1e-12, msg=name)


@dataclasses.dataclass(frozen=True)
class Everywhere(ConsistencyTerm):
    """Compares depth maps that fit well enough for pixels to be compared, in an untrained model too."""

    def __call__(self, predictions: Predictions, batch: SceneBatch) -> Any:
        depth = batch.depth + 0.01 * predictions.depth.value
        return super().__call__(predictions._replace(depth=DenseMap(depth, predictions.depth.confidence)), batch)


def known_depth(depth: DenseMap, batch: SceneBatch) -> torch.Tensor:
    """A user's mean over known pixels."""
    return torch.where(batch.mask, (depth.value - batch.depth).square(), 0).sum() / count_pixels(batch).clamp(min=1)


def count_pixels(batch: SceneBatch) -> torch.Tensor:
    return batch.mask.sum()


# Name → term of the loss, and the heads that it reads.
TERMS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "camera": ({"camera": CameraTerm()}, ("camera",)),
    "camera with depth": ({"camera": CameraTerm(min_depth_pixels=100)}, ("camera",)),
    "depth": ({"depth": DenseTerm("depth", gradient_confidence=True, min_pixels=900)}, ("depth",)),
    "log of hidden pixels": (
        {"depth": DenseTerm("depth", gradient_confidence=True, legacy_unmasked_log=True)},
        ("depth",),
    ),
    "normals": ({"points": DenseTerm("points", gradient="normal", bearing=0.5)}, ("points",)),
    "weighted normals": ({"points": DenseTerm("points", gradient="normal", gradient_confidence=True)}, ("points",)),
    "tracks": ({"tracks": TrackTerm(min_points=20)}, ("tracks",)),
    "tracks where hidden": ({"tracks": TrackTerm(visible_boost=0.1)}, ("tracks",)),
    "consistency": ({"consistency": Everywhere(geometry="gt")}, ("depth",)),
    "predicted cameras": ({"consistency": ConsistencyTerm(photometric=0, depth=0)}, ("camera", "depth", "points")),
}


def build_model(*heads: str, **changes: Any) -> geomtx.VGGT:
    torch.manual_seed(0)
    return geomtx.VGGT(geomtx.VGGTConfig.tiny(**{**NUMBERS, **changes}, heads=heads)).double()


@pytest.fixture(scope="module")
def scenes() -> SceneBatch:
    return uneven_scenes()


@pytest.mark.parametrize("name", TERMS)
def test_every_term_divides_by_the_count_of_the_whole_batch(name: str, scenes: SceneBatch):
    term, heads = TERMS[name]
    if name == "camera with depth":
        mask = scenes.mask.clone()
        mask[3, 0] = False  # two of the scenes
        scenes = scenes._replace(mask=mask)
    check_chunks(build_model(*heads), MultitaskLoss(**{**OFF, **term}), scenes)


def test_a_loss_of_ones_own_counts_what_it_says(scenes: SceneBatch):
    class OwnHead(HeadTerm):
        def __call__(self, predictions: Predictions, batch: SceneBatch) -> Any:
            return super().__call__(predictions._replace(extra={"own": predictions.depth}), batch)

    term = OwnHead("own", known_depth, num_values=count_pixels)
    check_chunks(build_model("depth"), MultitaskLoss(**OFF, others={"own": term}), scenes)


def test_a_plain_loss_counts_by_scenes(scenes: SceneBatch):
    def loss(predictions: Predictions, batch: SceneBatch) -> LossReport:
        error = (predictions.depth.value - batch.depth).square().mean()
        return LossReport(error, {"error": error}, {"loss_error": error})

    check_chunks(build_model("depth"), loss, scenes._replace(mask=None))


def test_a_quantile_is_that_of_each_chunk(scenes: SceneBatch):
    """What is dropped differs, what it is divided by doesn't."""
    loss = MultitaskLoss(**{**OFF, "depth": DenseTerm("depth", quantile=0.98, gradient=None)})
    model = build_model("camera", "depth", depth=2, taps=(0, 0, 1, 1))
    whole, parts = (changes(model, loss, scenes, num_chunks)[0] for num_chunks in (1, 2))
    assert 1e-9 < (whole - parts).norm() / whole.norm() < 0.05


@pytest.mark.parametrize("rehearsal", [None, Rehearsal(0.5, share=0.5), Rehearsal(scenes=2, views=(2,), style=ROOMS)])
def test_pictures_of_known_cameras_count(rehearsal: Rehearsal | None):
    vggt = build_model("camera", "depth").config
    model = geomtx.VGGTForNVS(geomtx.NVSConfig(vggt=vggt)).double()
    task = NvsTask(num_inputs=2, rehearsal=rehearsal)
    batch = uneven_scenes(4)
    batch.camera_mask[0, 3:] = False
    batch.camera_mask[3] = True
    check_chunks(model, task.build_loss(LossSection()), batch, task)


@pytest.mark.parametrize("loss", ["cotracker2", "cotracker3"])
def test_tracks_of_videos(loss: str):
    config = geomtx.VideoTrackerConfig.tiny(vggt=build_model("camera").config, iterations=2)
    model = geomtx.VideoTracker(config).double()
    task = VideoTask(loss=loss)
    batch = double(render_videos([1, 2, 3], 6, (28, 28), num_tracks=4))
    valid = batch.tracks.valid.clone()
    valid[0, 1:], valid[1] = False, False
    batch = batch._replace(tracks=batch.tracks._replace(valid=valid))
    check_chunks(model, task.build_loss(LossSection()), batch, task, num_chunks=2)


def test_points_and_matches_of_pairs():
    task = MASt3RTask(num_matches=50)
    model = geomtx.MASt3R(geomtx.MASt3RConfig.tiny(encoder_depth=1, depth=2, patch_size=14)).double()
    batch = uneven_scenes(2)
    matches = task.prepare(batch).matches.valid.sum(1)
    assert len(matches.unique()) > 1, "as uneven as the scenes"
    assert matches.any()
    check_chunks(model, task.build_loss(LossSection()), batch, task)
