"""`geomtx train CONFIG`: training and fine-tuning."""

from __future__ import annotations

import argparse
import signal
from typing import TYPE_CHECKING, Any

from geomtx.cli.parser import parse_name

if TYPE_CHECKING:
    from geomtx.training.loop import Trainer

__all__ = ["add_parser"]


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "train",
        help="train or fine-tune a model",
        description="Trains what a configuration describes. Ctrl-C stops after the current step and writes a "
        "checkpoint. Several processes or GPUs: accelerate launch -m geomtx train CONFIG …",
    )
    parser.set_defaults(run=run)
    parser.add_argument(
        "config", type=parse_name, metavar="CONFIG",
        help="a YAML file, or a recipe that ships: finetune, nano, nvs, video_tracker, …",
    )  # fmt: skip
    parser.add_argument(
        "-o", "--output", type=parse_name, default="geomtx-train", metavar="OUT",
        help="folder for log, checkpoints and weights (geomtx-train)",
    )  # fmt: skip
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides",
        help="replace a value of the configuration, like optimiser.lr=1e-4; can be given again",
    )  # fmt: skip
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in OUT")
    parser.add_argument("--cpu", action="store_true", help="train on the CPU, whatever else there is")


def run(arguments: argparse.Namespace) -> None:
    """Train, and say where the weights are."""
    from geomtx.training.config_file import load_config
    from geomtx.training.loop import Trainer

    config = load_config(arguments.config, arguments.overrides)
    trainer = Trainer(config, arguments.output, resume=arguments.resume, cpu=arguments.cpu)
    _stop_politely(trainer)
    if trainer.accelerator.is_main_process:
        count = sum(parameter.numel() for parameter in trainer.bare_model.parameters())
        print(f"{count:,} parameters on {trainer.device}, steps {trainer.step} to {config.schedule.steps}", flush=True)
    weights = trainer.train()
    if trainer.accelerator.is_main_process:
        skipped = f", {trainer.num_skipped} skipped" if trainer.num_skipped else ""
        left_out = f", {trainer.num_left_out} scenes left out" if trainer.num_left_out else ""
        print(f"wrote {weights} after step {trainer.step} of {config.schedule.steps}{skipped}{left_out}")
    trainer.accelerator.end_training()  # no process leaves while others talk to it


def _stop_politely(trainer: Trainer) -> None:
    """The first Ctrl-C or SIGTERM ends the run after the current step, the second at once."""

    def stop(number: int, frame: Any) -> None:
        trainer.stop_requested = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
