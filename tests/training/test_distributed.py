import json
from pathlib import Path

import pytest
import torch

from processes import start, wait_for
from training import two_processes


def log_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same run, of one process and of two, stopped and resumed both times."""
    folder = tmp_path_factory.mktemp("processes")
    runs = (("two", 2), ("one", 1))
    wait_for(
        [
            process
            for name, num in runs
            for process in start([two_processes.__file__, str(folder / name)], num, ACCELERATE_USE_CPU="true")
        ]
    )
    return folder / "one", folder / "two"


def test_two_processes_have_the_losses_and_gradients_of_one(folders: tuple[Path, Path]):
    one, two = map(log_of, folders)
    assert [(line["step"], line["kind"]) for line in one] == [(line["step"], line["kind"]) for line in two]
    assert len(one) == 5
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys()
        for name in a.keys() - {"kind"}:
            if not name.startswith("auc"):  # counts errors below whole degrees: rounding may cross one
                assert b[name] == pytest.approx(a[name], rel=2e-3, abs=2e-4), (a["step"], name)


def test_two_processes_end_with_the_weights_of_one(folders: tuple[Path, Path]):
    one, two = (torch.load(folder / "checkpoint.pt", weights_only=True) for folder in folders)
    assert one["step"] == two["step"] == 3
    assert (len(one["processes"]), len(two["processes"])) == (1, 2)
    for name, value in one["model"].items():
        torch.testing.assert_close(two["model"][name], value, rtol=1e-3, atol=1e-5, msg=name)
    for name, value in one["average"]["averages"].items():
        torch.testing.assert_close(two["average"]["averages"][name], value, rtol=1e-3, atol=1e-5, msg=name)


def test_unevenly_labelled_scenes_in_two_processes_take_the_step_of_one(folders: tuple[Path, Path]):
    """In one chunk each, and in two, though a process is without what another one has."""
    one, two = (torch.load(folder / "uneven.pt", weights_only=True) for folder in folders)
    (whole, scalars), *_ = one
    for change, found in two:
        assert (change - whole).norm() < 1e-9 * whole.norm()
        assert found.keys() == scalars.keys()
        for name, value in scalars.items():
            torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-12, msg=name)


def test_two_processes_train_the_adapters_of_one(folders: tuple[Path, Path]):
    one, two = (torch.load(folder / "adapters" / "checkpoint.pt", weights_only=True) for folder in folders)
    assert (len(one["processes"]), len(two["processes"])) == (1, 2)
    adapters = [name for name in one["model"] if name.endswith(".up")]
    assert adapters
    assert all(one["model"][name].any() for name in adapters)
    for name, value in one["model"].items():
        torch.testing.assert_close(two["model"][name], value, rtol=1e-3, atol=1e-5, msg=name)


def test_scenes_without_tracks_stop_nobody(folders: tuple[Path, Path]):
    state = torch.load(folders[1] / "no_tracks" / "checkpoint.pt", weights_only=True)
    assert state["step"] == 3
    heads = [name for name in state["optimiser"]["state"] if name.startswith("track_head.")]
    assert heads


def test_sharded_parameters_train_as_whole_ones(folders: tuple[Path, Path]):
    """Norms, steps, averages, and all of it out of and into whole tensors."""
    results = torch.load(folders[1] / "sharded.pt", weights_only=True)
    whole, sharded = results["whole"], results["sharded"]
    torch.testing.assert_close(sharded["norm"], whole["norm"], rtol=1e-4, atol=0)
    for part in ("model", "averages", "next"):
        assert sharded[part].keys() == whole[part].keys()
        for name, value in whole[part].items():
            torch.testing.assert_close(sharded[part][name], value, rtol=1e-3, atol=1e-5, msg=f"{part} {name}")
    assert sharded["optimiser"]["state"].keys() == whole["optimiser"]["state"].keys()
    assert not all(torch.equal(whole["model"][name], value) for name, value in whole["next"].items())
    assert results["monitor"] == "parameters must be whole for a monitor, got some that are sharded"
