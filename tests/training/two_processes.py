"""One of several processes of a run, started by `test_processes`: `python two_processes.py FOLDER`.

Environment as torchrun gives it: RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

from training.small_run import small_trainer

# Of all processes together.
IMAGES = 8


def run(folder: Path, num_processes: int) -> None:
    torch.set_num_threads(1)
    changes = {
        "data": {"image_hw": [28, 28], "images": IMAGES // num_processes, "views": {2: 1}},
        "optimiser": {"lr": 2e-3, "eps": 1e-3},
        "ema": 0.9,
        "schedule": {"steps": 3},
        "log": {"every": 1, "tensorboard": False},
        "monitor": {"every": 1},
        "validation": {"every": 3, "scenes": 1, "views": [2]},
    }
    trainer = small_trainer(folder, **changes)
    trainer.train(until=2)
    resumed = small_trainer(folder, resume=True, **changes)
    resumed.train()


if __name__ == "__main__":
    run(Path(sys.argv[1]), int(os.environ["WORLD_SIZE"]))
