"""Training of `VGGTForNVS` and `VideoTracker` by several processes."""

from pathlib import Path

import pytest
import torch

from processes import start, wait_for
from training import two_processes_around_vggt
from training.small_run import is_equal

KINDS = ("nvs", "video_tracker")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """What one process made, and what two did."""
    folder = tmp_path_factory.mktemp("around_vggt")
    script = two_processes_around_vggt.__file__
    runs = (("two", 2), ("one", 1))
    wait_for([p for name, num in runs for p in start([script, str(folder / name)], num, ACCELERATE_USE_CPU="true")])
    return folder / "one", folder / "two"


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize("run", ["nvs", "nvs_frozen", "video", "video_frozen"])
def test_two_processes_end_with_the_weights_of_one(run: str, folders: tuple[Path, Path]):
    one, two = (weights(folder / run / "checkpoint.pt") for folder in folders)
    assert one["step"] == two["step"] == 2
    assert (len(one["processes"]), len(two["processes"])) == (1, 2)
    for name, value in one["model"].items():
        torch.testing.assert_close(two["model"][name], value, rtol=1e-3, atol=1e-5, msg=name)
    trained = {name for name in one["optimiser"]["state"] if "_head." in name}
    # With rehearsal the heads of the VGGT inside are trained; else they are frozen, and the RGB head is none of them.
    assert any("vggt." in name for name in trained) == (not run.endswith("_frozen"))


@pytest.mark.parametrize("kind", KINDS)
def test_processes_that_draw_for_themselves_have_the_same_weights(kind: str, folders: tuple[Path, Path]):
    ranks = [weights(folders[1] / f"{kind}_whole_{rank}.pt") for rank in range(2)]
    assert is_equal(*ranks)


@pytest.mark.parametrize("kind", KINDS)
def test_stopped_and_resumed_is_as_if_never_stopped(kind: str, folders: tuple[Path, Path]):
    for rank in range(2):
        whole, parts = (weights(folders[1] / f"{kind}_{name}_{rank}.pt") for name in ("whole", "parts"))
        assert is_equal(whole, parts)


@pytest.mark.parametrize(("kind", "inside"), [("nvs", "vggt"), ("video_tracker", "features.vggt")])
def test_heads_that_never_run_are_refused_in_every_process(kind: str, inside: str, folders: tuple[Path, Path]):
    for rank in range(2):
        assert (folders[1] / f"{kind}_{rank}.txt").read_text() == (
            "task.rehearsal must be on where several processes train heads of the VGGT inside, got none for "
            f"{inside}.camera_head, {inside}.depth_head; else freeze these"
        )
    assert not (folders[1] / f"{kind}_refused").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_sharded_parameters_train_as_whole_ones_of_ddp(kind: str, folders: tuple[Path, Path]):
    results = weights(folders[1] / "sharded.pt")[kind]
    assert results["sharded"].keys() == results["whole"].keys()
    assert any(not torch.equal(value, results["start"][name]) for name, value in results["whole"].items())
    for name, value in results["whole"].items():
        torch.testing.assert_close(results["sharded"][name], value, rtol=1e-3, atol=1e-5, msg=name)
