"""Some of the scenes of `make fuzz`."""

from pathlib import Path

from fuzz_exports import try_exports
from geomtx.scene.files.save import FORMATS


def test_random_scenes_give_valid_files_or_a_clear_error(tmp_path: Path) -> None:
    valid = set()
    for seed in range(200):
        results = try_exports(seed, tmp_path / str(seed))
        valid |= {name for name, result in results.items() if result == "valid"}
    assert valid == set(FORMATS)
