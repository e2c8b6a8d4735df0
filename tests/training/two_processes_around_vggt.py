"""What `two_processes` trains of models around a VGGT, and of models of pairs."""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from geomtx.data.synthetic.render import render_scenes
from geomtx.geometry.scene_frame import normalize_scene
from geomtx.layers.block import TransformerBlock
from geomtx.training.config import LossSection, ModelSection
from geomtx.training.config_file import parse_config
from geomtx.training.optim import build_clip_groups
from geomtx.training.step import TrainingStep
from geomtx.training.tasks.croco import CroCoTask
from geomtx.training.tasks.nvs import NvsTask
from geomtx.training.tasks.pairs import DUSt3RTask, MASt3RTask
from geomtx.training.tasks.rehearsal import Rehearsal
from geomtx.training.tasks.running import TrainedModel
from geomtx.training.tasks.task import Task
from geomtx.training.tasks.video_tracker import VideoTask
from geomtx.training.trainer import Trainer
from geomtx.types import SceneBatch, TrackLabels
from training.small_run import NUMBERS

ROOMS = {"num_solids": [1, 1], "shadows": False}
TRACKER = {"window": 4, "window_stride": 2, "stride": 2, "num_virtual": 2}
PAIRS = ("dust3r", "mast3r", "croco")
PAIR_NUMBERS = {"encoder_depth": 1, "depth": 2, "patch_size": 14, "image_size": 28}


def this_rank() -> int:
    return int(os.environ.get("RANK", 0))


def count_processes() -> int:
    return int(os.environ.get("WORLD_SIZE", 1))


@dataclasses.dataclass(frozen=True)
class SharedRehearsal(Rehearsal):
    """Of the same rooms at every step, of which each process has its part."""

    def draw_rooms(self, images: torch.Tensor) -> SceneBatch:
        seeds = range(this_rank(), self.scenes * count_processes(), count_processes())
        rooms = render_scenes(list(seeds), 2, (images.shape[-2], images.shape[-1]), style=self.room_style())
        return normalize_scene(rooms)[0]


def draw_videos(seeds: list[int], num_views: int, image_hw: tuple[int, int], **_: Any) -> SceneBatch:
    """Noise, and tracks that are seen throughout: averages over processes are those over all videos."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    images = torch.stack([torch.rand(num_views, 3, *image_hw, generator=g) for g in generators])
    coords = torch.stack([torch.rand(num_views, 3, 2, generator=g) * (min(image_hw) - 1) for g in generators])
    seen = torch.ones(coords.shape[:-1], dtype=torch.bool)
    return SceneBatch(images, tracks=TrackLabels(coords, seen, seen[:, 0]))


def trainer_of(kind: str, folder: Path, task: Task, *, resume: bool = False, **changes: Any) -> Trainer:
    """Scenes of as many images in all processes together, for two steps."""
    is_video = kind == "video_tracker"
    numbers = PAIR_NUMBERS if kind in PAIRS else {**NUMBERS, "heads": changes.pop("heads", ["camera", "depth"])}
    views = changes.pop("views", {5: 1} if is_video else {2: 1})
    values: dict[str, Any] = {
        "model": {"kind": kind, "preset": "tiny", "numbers": numbers},
        "data": {"image_hw": [28, 28], "images": (20 if is_video else 8) // count_processes(), "views": views},
        "optimiser": {"lr": 2e-3, "eps": 1e-3},
        "schedule": {"steps": 2},
        "log": {"every": 1, "tensorboard": False},
        **changes,
    }
    draw = draw_videos if is_video else None
    # Where there is nothing but CPUs, the trainer has to see that by itself.
    cpu = torch.accelerator.is_available()
    return Trainer(parse_config(values), folder, draw=draw, task=task, resume=resume, cpu=cpu, progress=False)


def train_on_the_same(folder: Path) -> None:
    """Where nothing is drawn, two processes have the scenes of one: of two views, one of which is the target."""
    nvs = NvsTask(num_inputs=1, rehearsal=Rehearsal(0.5, share=0.5))
    video = VideoTask(TRACKER, query_first=1.0, rehearsal=SharedRehearsal(scenes=4 // count_processes(), style=ROOMS))
    runs = {
        "nvs": ("nvs", nvs, []),
        "nvs_frozen": ("nvs", dataclasses.replace(nvs, rehearsal=None), ["vggt.*_head"]),
        "video": ("video_tracker", video, []),
        "video_frozen": ("video_tracker", dataclasses.replace(video, rehearsal=None), ["features.vggt.*_head"]),
        "pairs": ("dust3r", DUSt3RTask(), []),
    }
    for name, (kind, task, frozen) in runs.items():
        trainer = trainer_of(kind, folder / name, task, freeze=frozen)
        trainer.train()
        assert trainer.num_skipped == 0


def drawing_tasks() -> Iterator[tuple[str, Task, dict[str, Any]]]:
    """Every process draws its own numbers: of views, of targets, of rooms, of matches, of hidden patches."""
    heads = ["camera", "tracks"]
    yield "nvs", NvsTask(num_inputs=1, redraw=0.5, rehearsal=Rehearsal(0.5)), {"heads": heads, "views": {2: 1, 3: 1}}
    rehearsal = Rehearsal(scenes=1, views=(2, 3), num_tracks=2, style=ROOMS)
    yield "video_tracker", VideoTask(TRACKER, rehearsal=rehearsal), {"heads": heads, "views": {3: 1, 5: 1}}
    yield "mast3r", MASt3RTask(num_matches=50), {}
    yield "croco", CroCoTask(ratio=0.5), {}


def resume(folder: Path) -> None:
    """The same run at once and from its checkpoint of the first step; every process's own weights."""
    for kind, task, changes in drawing_tasks():
        run = folder / f"{kind}_drawing"
        changes["checkpoint"] = {"every": 1, "keep_every": 1}
        for name in ("whole", "parts"):
            trainer = trainer_of(kind, run, task, resume=name == "parts", **changes)
            trainer.train()
            assert trainer.step == 2
            torch.save(trainer.bare_model.state_dict(), folder / f"{kind}_{name}_{this_rank()}.pt")
            if name == "whole" and this_rank() == 0:
                (run / "checkpoint-0000001.pt").replace(run / "checkpoint.pt")
            torch.distributed.barrier()


def refuse(folder: Path) -> None:
    """Heads that never run, in one file a kind: what is said of them."""
    for kind, task in (("nvs", NvsTask()), ("video_tracker", VideoTask(TRACKER))):
        try:
            trainer_of(kind, folder / f"{kind}_refused", task)
        except ValueError as error:
            (folder / f"{kind}_{this_rank()}.txt").write_text(str(error))


def steps_of(model: nn.Module, task: Task, accelerator: Accelerator) -> dict[str, torch.Tensor]:
    """Whole weights after a step on scenes of every process's own; AdamW's is in `two_processes`."""
    bare = accelerator.unwrap_model(model).model
    optimiser = torch.optim.SGD(bare.parameters(), lr=1e-2, foreach=False)
    loss = task.build_loss(LossSection())
    step = TrainingStep(model, loss, optimiser, accelerator, build_clip_groups(bare, {"*": 1.0}), task=task)
    torch.manual_seed(this_rank())
    assert step(render_scenes([this_rank()], 2, (28, 28), num_tracks=3)).applied
    weights = bare.state_dict()
    return {name: value.full_tensor() if isinstance(value, DTensor) else value for name, value in weights.items()}


def shard(folder: Path) -> None:
    """DDP and FSDP2 side by side, into `sharded.pt`; what has run is sharded again, as accelerate has it by itself."""
    accelerator = Accelerator(cpu=True)
    mesh = init_device_mesh("cpu", (accelerator.num_processes,))
    results = {}
    for kind, task, _ in drawing_tasks():
        numbers = PAIR_NUMBERS if kind in PAIRS else {**NUMBERS, "heads": ["camera"]}
        torch.manual_seed(0)
        whole = TrainedModel(task.build_model(ModelSection(kind=kind, preset="tiny", numbers=numbers)), task)
        sharded = copy.deepcopy(whole)
        for module in [*sharded.modules()][::-1]:
            if isinstance(module, TransformerBlock) or module is sharded:
                fully_shard(module, mesh=mesh, reshard_after_forward=True)
        models = {"whole": accelerator.prepare_model(whole), "sharded": sharded}
        results[kind] = {"start": copy.deepcopy(whole.model.state_dict())}
        results[kind] |= {name: steps_of(model, task, accelerator) for name, model in models.items()}
    if accelerator.is_main_process:
        torch.save(results, folder / "sharded.pt")


def run_all(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    train_on_the_same(folder)
    if count_processes() > 1:
        resume(folder)
        refuse(folder)
        shard(folder)
