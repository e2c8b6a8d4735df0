"""Training by several processes, each compared with what one process makes."""

import json
from pathlib import Path

import pytest
import torch

from processes import start, wait_for
from training import two_processes
from training.small_run import is_equal

DRAWING = ("nvs", "video_tracker", "mast3r", "croco")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """What one process made, this one, and what two did in the meantime."""
    folder = tmp_path_factory.mktemp("processes")
    running = start([two_processes.__file__, str(folder / "two")], 1, WORLD_SIZE=2, ACCELERATE_USE_CPU="true")
    try:
        two_processes.run_all(folder / "one")
    except BaseException:
        for process in running:
            process.kill()
        raise
    wait_for(running)
    return folder / "one", folder / "two"


def read(path: Path) -> dict:
    return torch.load(path, weights_only=True)


def assert_close(found: dict[str, torch.Tensor], want: dict[str, torch.Tensor]) -> None:
    assert found.keys() == want.keys()
    for name, value in want.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-5, msg=name)


def test_two_processes_have_the_losses_and_gradients_of_one(folders: tuple[Path, Path]):
    one, two = ([json.loads(line) for line in (f / "log.jsonl").read_text().splitlines()] for f in folders)
    assert [(line["step"], line["kind"]) for line in one] == [(line["step"], line["kind"]) for line in two]
    assert len(one) == 5
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys()
        for name in a.keys() - {"kind"}:
            if not name.startswith("auc"):  # counts errors below whole degrees: rounding may cross one
                assert b[name] == pytest.approx(a[name], rel=2e-3, abs=2e-4), (a["step"], name)


def test_two_processes_end_with_the_weights_of_one(folders: tuple[Path, Path]):
    one, two = (read(folder / "checkpoint.pt") for folder in folders)
    assert one["step"] == two["step"] == 3
    assert (len(one["processes"]), len(two["processes"])) == (1, 2)
    assert_close(two["model"], one["model"])
    assert_close(two["average"]["averages"], one["average"]["averages"])


def test_unevenly_labelled_scenes_in_two_processes_take_the_step_of_one(folders: tuple[Path, Path]):
    """In one chunk each, and in two, though a process is without what another one has."""
    one, two = (read(folder / "uneven.pt") for folder in folders)
    (whole, scalars), *_ = one
    for change, found in (*one, *two):
        assert (change - whole).norm() < 1e-9 * whole.norm()
        assert found.keys() == scalars.keys()
        for name, value in scalars.items():
            torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-12, msg=name)


def test_two_processes_train_the_adapters_of_one(folders: tuple[Path, Path]):
    one, two = (read(folder / "adapters" / "checkpoint.pt") for folder in folders)
    assert (len(one["processes"]), len(two["processes"])) == (1, 2)
    adapters = [name for name in one["model"] if name.endswith(".up")]
    assert adapters
    assert all(one["model"][name].any() for name in adapters)
    assert_close(two["model"], one["model"])


def test_scenes_without_tracks_stop_nobody(folders: tuple[Path, Path]):
    state = read(folders[1] / "no_tracks" / "checkpoint.pt")
    assert state["step"] == 2
    heads = [name for name in state["optimiser"]["state"] if name.startswith("track_head.")]
    assert heads


def test_sharded_parameters_train_as_whole_ones(folders: tuple[Path, Path]):
    """Norms, steps, averages, and all of it out of and into whole tensors."""
    results = read(folders[1] / "sharded.pt")
    whole, sharded = results["whole"], results["sharded"]
    torch.testing.assert_close(sharded["norm"], whole["norm"], rtol=1e-4, atol=0)
    for part in ("model", "averages", "next"):
        assert_close(sharded[part], whole[part])
    assert sharded["optimiser"]["state"].keys() == whole["optimiser"]["state"].keys()
    assert not all(torch.equal(whole["model"][name], value) for name, value in whole["next"].items())
    assert results["monitor"] == "parameters must be whole for a monitor, got some that are sharded"


# `VGGTForNVS`, `VideoTracker` and models of pairs


@pytest.mark.parametrize("run", ["nvs", "nvs_frozen", "video", "video_frozen", "pairs"])
def test_two_processes_end_with_the_weights_of_one_of_other_kinds(run: str, folders: tuple[Path, Path]):
    one, two = (read(folder / "around_vggt" / run / "checkpoint.pt") for folder in folders)
    assert one["step"] == two["step"] == 2
    assert (len(one["processes"]), len(two["processes"])) == (1, 2)
    assert_close(two["model"], one["model"])
    trained = {name for name in one["optimiser"]["state"] if "_head." in name}
    # With rehearsal the heads of the VGGT inside are trained; else they are frozen, and the RGB head is none of them.
    inside = "second_head." if run == "pairs" else "vggt."
    assert any(inside in name for name in trained) == (not run.endswith("_frozen"))


@pytest.mark.parametrize("kind", DRAWING)
def test_processes_that_draw_for_themselves_have_the_same_weights_also_when_resumed(
    kind: str, folders: tuple[Path, Path]
):
    folder = folders[1] / "around_vggt"
    whole = [read(folder / f"{kind}_whole_{rank}.pt") for rank in range(2)]
    assert is_equal(*whole)
    for rank in range(2):
        assert is_equal(whole[rank], read(folder / f"{kind}_parts_{rank}.pt"))


@pytest.mark.parametrize(("kind", "inside"), [("nvs", "vggt"), ("video_tracker", "features.vggt")])
def test_heads_that_never_run_are_refused_in_every_process(kind: str, inside: str, folders: tuple[Path, Path]):
    folder = folders[1] / "around_vggt"
    for rank in range(2):
        assert (folder / f"{kind}_{rank}.txt").read_text() == (
            "task.rehearsal must be on where several processes train heads of the VGGT inside, got none for "
            f"{inside}.camera_head, {inside}.depth_head; else freeze these"
        )
    assert not (folder / f"{kind}_refused").exists()


@pytest.mark.parametrize("kind", DRAWING)
def test_sharded_parameters_train_as_whole_ones_of_ddp(kind: str, folders: tuple[Path, Path]):
    results = read(folders[1] / "around_vggt" / "sharded.pt")[kind]
    assert any(not torch.equal(value, results["start"][name]) for name, value in results["whole"].items())
    assert_close(results["sharded"], results["whole"])
