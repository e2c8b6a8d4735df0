import math
from pathlib import Path

import pytest

from geomtx.training.config import OptimiserSection, TrainingConfig
from geomtx.training.config_file import load_config, parse_config, save_config, shipped_configs
from geomtx.training.prepare import build_loss
from training.small_run import small_config


def test_plain_values_and_back():
    for config in (TrainingConfig(), small_config(freeze=["encoder"], seed=7)):
        assert parse_config(config.to_dict()) == config


@pytest.mark.parametrize("name", shipped_configs())
def test_what_ships_is_valid_and_survives_a_file(name: str, tmp_path: Path):
    config = load_config(name)
    save_config(config, tmp_path / "copy.yaml")
    assert load_config(tmp_path / "copy.yaml") == config


def test_the_released_recipe():
    config = load_config("finetune")
    assert (config.optimiser.lr, config.optimiser.weight_decay, config.optimiser.decay) == (5e-5, 0.05, "all")
    assert (config.schedule.warmup, config.schedule.initial_lr, config.schedule.final_lr) == (0.05, 1e-8, 1e-8)
    assert config.schedule.steps == 20 * 800
    assert (config.data.images, config.accumulation, config.precision) == (48, 2, "bfloat16")
    assert sorted(config.data.views) == list(range(2, 25))
    assert config.freeze == ("encoder",)
    assert config.tf32
    assert config.gradient_checkpointing
    assert config.model.heads == ("camera", "depth")


def test_overrides_are_yaml_and_make_what_is_missing(tmp_path: Path):
    path = tmp_path / "run.yaml"
    path.write_text("optimiser:\n  lr: 1e-4\n")
    overrides = ["optimiser.lr=3e-5", "data.views={2: 1, 8: 0.5}", "freeze=[encoder]", "model.preset=tiny"]
    config = load_config(path, overrides)
    assert config.optimiser.lr == 3e-5
    assert config.data.views == {2: 1.0, 8: 0.5}
    assert config.freeze == ("encoder",)
    assert load_config(path).optimiser.lr == 1e-4  # a string, to YAML 1.1


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_file_with_a_byte_order_mark(tmp_path: Path, encoding: str):
    (tmp_path / "run.yaml").write_text("seed: 7\n", encoding=encoding)
    assert load_config(tmp_path / "run.yaml").seed == 7


def test_an_empty_file_is_the_defaults(tmp_path: Path):
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert load_config(tmp_path / "empty.yaml") == TrainingConfig()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"optimizer": {}}, r"^config key must be one of seed, .*, got 'optimizer'; did you mean 'optimiser'\?$"),
        ({"data": {"image": 3}}, r"got 'data\.image'; did you mean 'images' or"),
        ({"optimiser": {"groups": {"*": {"lrr": 1}}}}, r"got 'optimiser\.groups\.\*\.lrr'; did you mean 'lr'\?"),
        ({"model": {"numbers": {"dims": 3}}}, r"got 'model\.numbers\.dims'; did you mean 'dim'\?"),
        ({"data": 3}, r"^data must be a mapping of keys, got 3$"),
        ({"data": {"views": [2]}}, r"^data\.views must be a mapping, got \[2\]$"),
        ({"data": {"image_hw": [28]}}, r"^data\.image_hw must have 2 values, got \[28\]$"),
        ({"freeze": "encoder"}, r"^freeze must be a list, got 'encoder'$"),
        ({"seed": "x"}, r"^seed must be a whole number, got 'x'$"),
        ({"seed": True}, r"^seed must be a whole number, got True$"),
        ({"ema": "often"}, r"^ema must be a number, got 'often'$"),
        ({"compile": 1}, r"^compile must be true or false, got 1$"),
        ({"model": {"preset": 3}}, r"^model\.preset must be a string, got 3$"),
        ({"precision": "float16"}, r"^precision must be one of 'float32', 'bfloat16', got 'float16'$"),
        ({"model": {"preset": "huge"}}, r"^model\.preset must be one of 'vggt_1b'.*, got 'huge'$"),
        ({"model": {"weights": "w", "numbers": {"dim": 8}}}, r"^model\.numbers must be empty where model\.weights"),
        ({"model": {"heads": ["camera"]}}, r"^model\.heads must go with model\.weights"),
        ({"detach": ["normals"]}, r"^detach must be one of 'camera', .*, got 'normals'$"),
        ({"data": {"views": {}}}, r"^data\.views must give weights"),
        ({"data": {"views": {0: 1}}}, r"^data\.views must give weights"),
        ({"data": {"views": {2: 0}}}, r"^data\.views must give weights"),
        ({"data": {"images": 0}}, r"^data\.images must be positive, got 0$"),
        ({"data": {"workers": -1}}, r"^data\.workers must be at least 0, got -1$"),
        ({"data": {"aspect": [1.0, 0.5]}}, r"^data\.aspect must be a range above 0"),
        ({"data": {"kind": "dataset"}}, r"^data\.datasets must go with kind 'dataset', got 0"),
        ({"data": {"datasets": {"a": {"root": "x"}}}}, r"^data\.datasets\.a\.kind must be given, got none$"),
        ({"schedule": {"warmup": 2}}, r"^schedule\.warmup must be in 0 … 1, got 2\.0$"),
        ({"optimiser": {"clip": {"*": 0}}}, r"^optimiser\.clip\.\* must be positive, got 0\.0$"),
        ({"optimiser": {"groups": {"*": {"lr": -1}}}}, r"^optimiser\.groups\.\*\.lr must be at least 0, got -1\.0$"),
        ({"validation": {"views": [2, 30]}}, r"^validation\.views must be up to 24 of rendered scenes, got 30$"),
        ({"optimiser": {"lr": math.inf}}, r"^optimiser\.lr must be a finite number, got inf$"),
        ({"optimiser": {"betas": [0.9, math.nan]}}, r"^optimiser\.betas must be a finite number, got nan$"),
        ({"optimiser": {"lr": 10**400}}, r"^optimiser\.lr must be a number, got 10000"),
        ({"validation": {"views": []}}, r"^validation\.views must be at least 1, got 0$"),
    ],
)
def test_what_is_wrong_is_named(values: dict, message: str):
    with pytest.raises(ValueError, match=message):
        parse_config(values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lr": math.inf}, r"^lr must be finite, got inf$"),
        ({"lr": math.nan}, r"^lr must be positive, got nan$"),
        ({"weight_decay": math.inf}, r"^weight_decay must be finite, got inf$"),
    ],
)
def test_numbers_that_are_not_finite_without_a_file(values: dict, message: str):
    with pytest.raises(ValueError, match=message):
        OptimiserSection(**values)


def test_files_may_have_more_views_to_validate_on_than_rendered_scenes():
    data = {"kind": "dataset", "datasets": {"a": {"kind": "co3d", "root": "x"}}}
    assert parse_config({"data": data, "validation": {"views": [30]}}).validation.views == (30,)


def test_files_and_overrides_that_are_wrong(tmp_path: Path):
    broken, listed = tmp_path / "broken.yaml", tmp_path / "list.yaml"
    broken.write_text("data: [1, 2\n")
    listed.write_text("- 1\n")
    with pytest.raises(ValueError, match=r"^config must be YAML, got '.*broken\.yaml' with while parsing"):
        load_config(broken)
    with pytest.raises(ValueError, match=r"^config must be a mapping of keys, got '.*' with list$"):
        load_config(listed)
    names = "dust3r_nano, finetune, nano, nano_gpu, nvs, nvs_nano, video_tracker, video_tracker_nano"
    with pytest.raises(FileNotFoundError, match=rf"^config must be a YAML file or one of {names}, got 'nanoo'$"):
        load_config("nanoo")
    with pytest.raises(ValueError, match=r"^--set must be like optimiser\.lr=1e-4, got 'ema'$"):
        load_config("nano", ["ema"])
    with pytest.raises(ValueError, match=r"^--set must name a key, got 'ema\.x=1', where ema holds no keys$"):
        load_config("nano", ["ema.x=1"])


@pytest.mark.parametrize("nothing", ["null", "", "~"])
def test_null_switches_off(nothing: str):
    config = load_config("nano", [f"loss.terms.camera={nothing}", f"loss.terms.points.gradient={nothing}"])
    tasks = build_loss(config.loss).tasks
    assert "camera" not in tasks
    assert tasks["points"].gradient is None
