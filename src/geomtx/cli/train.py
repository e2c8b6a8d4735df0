"""`geomtx train CONFIG`: training and fine-tuning."""

from __future__ import annotations

import argparse
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geomtx.checks import close_matches
from geomtx.cli.parser import add_output, parse_name
from geomtx.files import check_inputs, is_own, list_inputs, user_path

if TYPE_CHECKING:
    from geomtx.training.trainer import Trainer

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
    add_output(parser, "folder for log, checkpoints and weights", "geomtx-train")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides",
        help="replace a value of the configuration, like optimiser.lr=1e-4; can be given again",
    )  # fmt: skip
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in OUT")
    parser.add_argument("--cpu", action="store_true", help="train on the CPU, whatever else there is")


def run(arguments: argparse.Namespace) -> None:
    """Train, and say where the weights are."""
    _check_config_name(arguments.config)
    from geomtx.training.config_file import load_config
    from geomtx.training.log import compare_validations
    from geomtx.training.trainer import Trainer

    config = load_config(arguments.config, arguments.overrides)
    _check_config_stays(arguments)
    trainer = Trainer(
        config, arguments.output, resume=arguments.resume, overwrite=arguments.overwrite, cpu=arguments.cpu
    )
    _stop_politely(trainer)
    if trainer.accelerator.is_main_process:
        count = sum(parameter.numel() for parameter in trainer.bare_model.parameters())
        print(f"{count:,} parameters on {trainer.device}, steps {trainer.step} to {config.schedule.steps}", flush=True)
    weights = trainer.train()
    if trainer.accelerator.is_main_process:
        skipped = f", {trainer.num_skipped} skipped" if trainer.num_skipped else ""
        left_out = f", {trainer.num_left_out} scenes left out" if trainer.num_left_out else ""
        table = compare_validations(weights.parent)
        if table is not None:
            print(table)
        print(f"wrote {weights} after step {trainer.step} of {config.schedule.steps}{skipped}{left_out}")
    trainer.accelerator.end_training()  # no process leaves while others talk to it


def _check_config_name(name: str) -> None:
    """Require a file or the name of a shipped configuration; imports no torch."""
    shipped = sorted(path.stem for path in Path(__file__).parents[1].glob("training/configs/*.yaml"))
    if name not in shipped and not user_path(name).is_file():
        hint = close_matches(name, shipped)
        raise FileNotFoundError(f"config must be a YAML file or one of {', '.join(shipped)}, got '{name}'{hint}")


def _check_config_stays(arguments: argparse.Namespace) -> None:
    """Refuse to write the run's configuration over the one that was given; a resumed run writes the same again."""
    from geomtx.training.config_file import CONFIG_FILE

    if arguments.resume and not arguments.overrides and is_own(arguments.output / CONFIG_FILE):
        return
    check_inputs(arguments.output, [CONFIG_FILE], list_inputs(arguments.config))


def _stop_politely(trainer: Trainer) -> None:
    """The first Ctrl-C or SIGTERM ends the run after the current step, the second at once, as any other command."""

    def stop(number: int, frame: Any) -> None:
        trainer.stop_requested = True
        for each, handler in before.items():
            signal.signal(each, handler)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
