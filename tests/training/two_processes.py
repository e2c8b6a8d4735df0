"""All processes of a run, started by `test_distributed`: `python two_processes.py FOLDER`.

They are WORLD_SIZE forks of one, in which everything is imported once; the rest of the environment is as torchrun
gives it: RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT.
"""

from __future__ import annotations

import copy
import os
import sys
from pathlib import Path
from typing import Any

import kornia  # noqa: F401 - here, the forks have it all
import roma  # noqa: F401
import torch
import torch.distributed.checkpoint.state_dict
from accelerate import Accelerator
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import geomtx
from geomtx.layers.block import TransformerBlock
from geomtx.losses.multitask import MultitaskLoss
from geomtx.training.checkpoint import load_into, training_state
from geomtx.training.data import split_batch
from geomtx.training.monitor import GradientMonitor
from geomtx.training.optim import WeightAverage, build_clip_groups
from geomtx.training.step import TrainingStep
from geomtx.types import SceneBatch
from processes import run_forks
from training import two_processes_around_vggt as around_vggt
from training.small_run import NUMBERS, random_scenes, small_config, small_trainer
from training.test_accumulation import Everywhere, changes, uneven_scenes

# Of all processes together.
IMAGES = 8


def run(folder: Path, num_processes: int) -> None:
    changes = {
        "data": {"image_hw": [28, 28], "images": IMAGES // num_processes, "views": {2: 1}},
        "optimiser": {"lr": 2e-3, "eps": 1e-3},
        "ema": 0.9,
        "schedule": {"steps": 3},
        "log": {"every": 1, "tensorboard": False},
        "monitor": {"every": 1},
        "validation": {"every": 3, "scenes": 1, "views": [2]},
    }
    # Where there is nothing but CPUs, the trainer has to see that by itself.
    cpu = torch.accelerator.is_available()
    trainer = small_trainer(folder, cpu=cpu, **changes)
    trainer.train(until=2)
    resumed = small_trainer(folder, resume=True, cpu=cpu, **changes)
    resumed.train()


def train_adapters(folder: Path, num_processes: int) -> None:
    """Low-rank adapters and the heads, stopped and resumed."""
    changes = {
        "data": {"image_hw": [28, 28], "images": IMAGES // num_processes, "views": {2: 1}},
        "optimiser": {"lr": 2e-3, "eps": 1e-3},
        "schedule": {"steps": 2},
        "freeze": ["encoder"],
        "lora": {"patterns": ["encoder.*.attention.*"], "rank": 2},
    }
    cpu = torch.accelerator.is_available()
    small_trainer(folder, cpu=cpu, **changes).train(until=1)
    small_trainer(folder, resume=True, cpu=cpu, **changes).train()


def train_without_tracks(folder: Path) -> None:
    """A head of tracks, and scenes that know of none: in one of the processes, then in both."""
    rank = int(os.environ["RANK"])
    calls = 0

    def draw(seeds: list[int], num_views: int, image_hw: tuple[int, int], **_: Any) -> SceneBatch:
        nonlocal calls
        calls += 1
        scenes = random_scenes(len(seeds), num_views, image_hw)
        return scenes._replace(tracks=None) if rank or calls > 1 else scenes

    model = {"preset": "tiny", "numbers": {**NUMBERS, "heads": ["camera", "tracks"]}}
    trainer = small_trainer(folder, draw, cpu=torch.accelerator.is_available(), model=model, schedule={"steps": 2})
    trainer.train()
    assert trainer.num_skipped == 0


def take_uneven_step(folder: Path, rank: int, num_processes: int) -> None:
    """A step on scenes that know very different things, shared out, into `uneven.pt`."""
    torch.manual_seed(0)
    model = geomtx.VGGT(geomtx.VGGTConfig.tiny(**NUMBERS)).double()
    loss = MultitaskLoss(consistency=Everywhere(geometry="gt"))
    scenes = split_batch(uneven_scenes(), num_processes)[rank]
    results = [changes(model, loss, scenes, num_chunks) for num_chunks in (1, 2)]
    if rank == 0:
        torch.save(results, folder / "uneven.pt")


def steps_of(model: geomtx.VGGT, accelerator: Accelerator) -> dict[str, Any]:
    """What training on the same random scenes in every process leads to."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2, eps=1e-3, fused=True)
    average = WeightAverage(model, 0.9)
    groups = build_clip_groups(model, {"*": 1.0})
    step = TrainingStep(model, MultitaskLoss(), optimiser, accelerator, groups)
    torch.manual_seed(1)
    report = step(random_scenes(2))
    average.update()
    state = training_state(model, optimiser)
    result = {"norm": report.scalars["norm/*"], **state, **average.state_dict()}
    # Only the first process has the values; all of them read what it wrote.
    results = [copy.deepcopy(result)]  # not the weights that go on changing
    torch.distributed.broadcast_object_list(results)
    load_into(model, optimiser, results[0])
    average.load_state_dict(results[0])
    step(random_scenes(2))
    return {**results[0], "next": training_state(model, optimiser)["model"]}


def shard(folder: Path) -> None:
    """Whole and sharded (FSDP2) training side by side, into `sharded.pt`."""
    accelerator = Accelerator(cpu=True)
    torch.manual_seed(0)
    whole = geomtx.VGGT(small_config().model.model_config())
    sharded = copy.deepcopy(whole)
    mesh = init_device_mesh("cpu", (accelerator.num_processes,))
    for module in sharded.modules():
        if isinstance(module, TransformerBlock):
            fully_shard(module, mesh=mesh)
    fully_shard(sharded, mesh=mesh)
    results = {name: steps_of(m, accelerator) for name, m in (("whole", whole), ("sharded", sharded))}
    try:
        GradientMonitor(list(sharded.parameters()))
    except ValueError as error:
        results["monitor"] = str(error)
    if accelerator.is_main_process:
        torch.save(results, folder / "sharded.pt")


def run_all(folder: Path) -> None:
    """All runs, and those of several processes only."""
    rank, num_processes = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    run(folder, num_processes)
    train_adapters(folder / "adapters", num_processes)
    take_uneven_step(folder, rank, num_processes)
    around_vggt.run_all(folder / "around_vggt")
    if num_processes > 1:
        train_without_tracks(folder / "no_tracks")
        shard(folder)


def run_one_of_several(rank: int, folder: Path) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    run_all(folder)
    # Whoever leaves first would cut the others' connections.
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    run_forks(run_one_of_several, int(os.environ["WORLD_SIZE"]), Path(sys.argv[1]))
