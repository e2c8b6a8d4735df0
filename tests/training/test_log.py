import json
import math
from pathlib import Path

import pytest
import torch

from geomtx.training.config import LogSection
from geomtx.training.log import LOG_FILE, ScalarMeans, TrainingLog, compare_validations


def test_means_over_steps_and_processes():
    one, two = ScalarMeans(), ScalarMeans()
    one.add({"a": torch.tensor(1.0), "b": torch.tensor(5.0)})
    one.add({"a": torch.tensor(3.0)})
    two.add({"a": torch.tensor(8.0)})
    assert one.peek() == {"a": (4.0, 2), "b": (5.0, 1)}
    assert ScalarMeans.merge([one.sums(), two.sums()]) == {"a": 4.0, "b": 5.0}
    assert one.sums() == {}


def test_means_go_on_from_where_they_were():
    one, two = ScalarMeans(), ScalarMeans()
    one.add({"a": torch.tensor(1.0)})
    two.load(one.peek())
    two.add({"a": torch.tensor(2.0)})
    assert two.sums() == {"a": (3.0, 2)}


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / LOG_FILE).read_text().splitlines()]


def write(folder: Path, steps: list[int], *, start: int = 0, tensorboard: bool = False) -> None:
    section = LogSection(tensorboard=tensorboard)
    log = TrainingLog(folder, section, start=start, total=10, progress=False)
    for step in steps:
        log.write(step, {"objective": step / 2, "bad": math.nan})
    log.close()


def test_lines_are_json_whatever_the_numbers(tmp_path: Path):
    write(tmp_path, [2, 4])
    assert lines(tmp_path) == [{"step": s, "kind": "train", "objective": s / 2, "bad": None} for s in (2, 4)]


def test_what_was_logged_after_the_checkpoint_is_dropped(tmp_path: Path):
    write(tmp_path, [2, 4, 6])
    with (tmp_path / LOG_FILE).open("a") as file:
        file.write('{"step": 8, "ki')  # killed while writing
    write(tmp_path, [6, 8], start=4)
    assert [line["step"] for line in lines(tmp_path)] == [2, 4, 6, 8]


def test_tensorboard_has_the_scalars(tmp_path: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    write(tmp_path, [2, 4], tensorboard=True)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/objective")] == [(2, 1.0), (4, 2.0)]


def test_the_bar_shows_losses_and_poses(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    log = TrainingLog(tmp_path, LogSection(tensorboard=False), start=0, total=10, progress=True)
    log.write(1, {"objective": 1.234, "loss_camera": 0.5, "auc@30": 0.75})
    log.bar.update()
    log.bar.refresh()
    log.close()
    assert "loss=1.23, camera=0.5, auc=0.75" in capsys.readouterr().err


def test_without_a_terminal_each_line_of_the_log_is_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    log = TrainingLog(tmp_path, LogSection(tensorboard=False), start=0, total=10)
    log.write(2, {"objective": 1.234, "loss_camera": 0.5})
    log.write(4, {"objective": 0.5, "loss_video_total": 0.25})
    log.close()
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("step 2/10: loss 1.23, camera 0.5; ")
    assert second.startswith("step 4/10: loss 0.5, video_total 0.25; ")


def test_the_first_and_the_last_validation_are_compared(tmp_path: Path):
    log = TrainingLog(tmp_path, LogSection(tensorboard=False), start=0, total=10, progress=False)
    assert compare_validations(tmp_path) is None
    for step, error in ((0, 2.0), (5, 1.5), (10, math.nan)):
        log.write(step, {"objective/2v": 3.0 - error, "error/2v": error}, kind="validation")
    log.close()
    rows = [line.split() for line in compare_validations(tmp_path).splitlines()]
    assert rows == [["validation", "step", "0", "step", "10"], ["objective/2v", "1", "none"], ["error/2v", "2", "none"]]
