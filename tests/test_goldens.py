import json
import os
import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import check_goldens
from check_goldens import Golden, errors_of, main
from reference import gelu, normalize, rotate, self_attention

GOLDENS = Path(__file__).parent / "goldens"
FILES = sorted(path.stem for path in GOLDENS.glob("*.safetensors"))
FULL_SIZE = "vggt_1b"
SLOW = (FULL_SIZE, "da3_mono_large", "vggt_omega_1b_text")
# Checked with larger files alone: the parts of these models have files here.
NOT_HERE = {"da3_small", "da3_base", "dust3r_512", "mast3r_512"}
BOUNDS = {torch.float32: 2e-6, torch.float64: 1e-10}  # by the precision that a file is computed in
# What the published code computes or stores in float32.
FILE_BOUNDS = {
    "alignment_init": 5e-6,
    "alignment_init_queue": 5e-6,
    "monst3r_flow_limit": 1e-7,
    # Whole networks in float32: processors sum in different orders.
    "pi3": 5e-6,
    "pi3x": 5e-6,
    "sparse_alignment": 1e-7,
    "sparse_alignment_edges": 1e-7,
} | dict.fromkeys(
    (
        *("croco_encoder", "croco_decoder_pair", "croco_completion"),
        *("dust3r_dpt", "dust3r_mixed_orientation", "mast3r", "pairwise_losses", "pairwise_losses_edges"),
    ),
    1e-7,
)
# The tracker of random weights enlarges rounding errors at every iteration; `tracker` compares it in float64.
FULL_SIZE_BOUNDS = {"track": 1e-3, "vis": 2e-2, "conf": 5e-2}
FULL_SIZE_GIB = 7


def available_gib() -> float:
    """Memory that can be had without swapping; where the system doesn't say, what is free."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")) / 2**20
    except (OSError, StopIteration):
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30


def test_there_is_a_file_for_every_component():
    known = {max((n for n in check_goldens.CHECKS if stem.startswith(n)), key=len) for stem in FILES}
    assert known == set(check_goldens.CHECKS) - NOT_HERE


@pytest.mark.parametrize("stem", [stem for stem in FILES if stem not in SLOW])
def test_component(stem):
    path = GOLDENS / f"{stem}.safetensors"
    errors = errors_of(path)
    assert errors
    bound = FILE_BOUNDS.get(stem, BOUNDS[Golden.load(path).dtype])
    assert {name: error for name, error in errors.items() if not error <= bound} == {}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_full_size_model():
    """In float32: 5.2 GiB; `python tests/check_goldens.py tests/goldens` has it in float64, with errors below 1e-7."""
    if available_gib() < FULL_SIZE_GIB:
        pytest.skip(f"needs {FULL_SIZE_GIB} GiB of free memory, {available_gib():.1f} are available")
    errors = errors_of(GOLDENS / f"{FULL_SIZE}.safetensors", torch.float32)
    assert len(errors) == 12
    assert {name: error for name, error in errors.items() if not error <= FULL_SIZE_BOUNDS.get(name, 5e-6)} == {}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_full_size_model_of_single_views():
    """Depth Anything 3's large one, 1.3 GiB in float32."""
    if available_gib() < 3:
        pytest.skip(f"needs 3 GiB of free memory, {available_gib():.1f} are available")
    errors = errors_of(GOLDENS / "da3_mono_large.safetensors")
    assert {name: error for name, error in errors.items() if not error <= 5e-6} == {}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_full_size_vggt_omega():
    """With its head for texts, 5.4 GiB in float32."""
    if available_gib() < FULL_SIZE_GIB:
        pytest.skip(f"needs {FULL_SIZE_GIB} GiB of free memory, {available_gib():.1f} are available")
    errors = errors_of(GOLDENS / "vggt_omega_1b_text.safetensors")
    assert len(errors) == 7
    assert {name: error for name, error in errors.items() if not error <= 5e-6} == {}


# The script itself


@pytest.fixture
def folder(tmp_path) -> Path:
    for stem in ("rope2d", "pose_encoding", "correlation"):
        shutil.copy(GOLDENS / f"{stem}.safetensors", tmp_path)
    return tmp_path


def rewrite(path: Path, name: str, change) -> None:
    golden = load_file(path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    golden[name] = change(golden[name]).contiguous()
    save_file(golden, path, metadata)


def test_main_prints_the_worst_error_of_every_file(folder, capsys):
    assert main([str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["correlation", "pose_encoding", "rope2d"]
    assert all(line.endswith(" ok") for line in lines)


@pytest.mark.parametrize(
    ("stem", "name", "change"),
    [
        ("correlation", "out", lambda t: t * (1 + 3e-4)),
        ("correlation", "features", lambda t: t + 1e-2 * torch.randn_like(t)),
        ("pose_encoding", "raw_extrinsics", lambda t: t.flip(0)),
        ("rope2d", "out", lambda t: t[..., :-1]),
        ("rope2d", "out", lambda t: t * torch.nan),
        ("rope2d", "positions", lambda t: t.flip(-1)),
    ],
)
def test_main_tells_of_a_tensor_that_differs(folder, capsys, stem, name, change):
    rewrite(folder / f"{stem}.safetensors", name, change)
    assert main([str(folder)]) == 1
    failed = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.endswith("FAIL")]
    assert failed == [stem]


def test_main_tells_of_a_file_it_does_not_know(folder, capsys):
    (folder / "rope2d.safetensors").rename(folder / "nonsense.safetensors")
    assert main([str(folder)]) == 1
    assert "nonsense                         not covered" in capsys.readouterr().out


def add(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    with safe_open(path, framework="pt") as file:
        metadata = {**file.metadata(), **metadata}
    save_file({**load_file(path), **tensors}, path, metadata)


def test_main_tells_of_an_output_that_nothing_checks(folder, capsys):
    add(folder / "rope2d.safetensors", {"out_of_something_else": torch.zeros(3)}, {})
    assert main([str(folder)]) == 1
    assert "rope2d                           inf  out_of_something_else    FAIL" in capsys.readouterr().out


def test_main_goes_on_after_an_error(folder, capsys):
    shutil.copy(GOLDENS / "dpt_depth.safetensors", folder)
    add(folder / "dpt_depth.safetensors", {}, {"conf_activation": '"sigmoid"'})
    (folder / "correlation.safetensors").write_bytes(b"garbage")
    assert main([str(folder)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] == "FAIL" for line in lines] == [True, True, False, False]
    assert lines[1].endswith("FAIL     ValueError: conf_activation sigmoid is not supported, only expp1")


@pytest.mark.parametrize("arguments", [[], ["a", "b"], ["/no/such/folder"]])
def test_main_wants_a_folder(arguments, capsys):
    assert main(arguments) == 2
    assert "usage" in capsys.readouterr().err


def test_main_wants_files(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert "no .safetensors files" in capsys.readouterr().err


def test_other_shapes_of_weights_are_refused(tmp_path):
    write_block(tmp_path / "attention_block.safetensors", 16, 2, 4, True, "p.", {"norm1.weight": [17]})
    with pytest.raises(ValueError, match=r"^attention_block.safetensors: parameters differ from the file's: .*norm1"):
        errors_of(tmp_path / "attention_block.safetensors")


# Files of other sizes, from formulas


def made_up(name: str, shape: list[int]) -> Tensor:
    """The rule for weights, a second time."""
    x = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape, dtype=np.float32)
    last = name.split(".")[-1]
    if last.endswith("weight") and len(shape) >= 2:
        x = x / np.float32(np.sqrt(np.prod(shape[1:])))
    elif last.endswith("weight"):
        x = 1 + np.float32(0.1) * x
    elif last == "gamma":
        x = np.float32(0.3) + np.float32(0.05) * x
    else:
        x = np.float32(0.05 if last.endswith("bias") else 0.2) * x
    return torch.from_numpy(x).double()


def write_block(
    path: Path, dim: int, num_heads: int, mlp_ratio: int, qk_norm: bool, prefix: str, other_shapes: dict | None = None
) -> None:
    """A golden file of a transformer block under published names."""
    head_dim, hidden = dim // num_heads, dim * mlp_ratio
    sizes = {"attn.qkv": (3 * dim, dim), "attn.proj": (dim, dim), "mlp.fc1": (hidden, dim), "mlp.fc2": (dim, hidden)}
    shapes = {f"{name}.weight": list(size) for name, size in sizes.items()}
    shapes |= {f"{name}.bias": [size[0]] for name, size in sizes.items()}
    shapes |= {f"{name}.{leaf}": [dim] for name in ("norm1", "norm2") for leaf in ("weight", "bias")}
    shapes |= {"ls1.gamma": [dim], "ls2.gamma": [dim]}
    if qk_norm:
        shapes |= {f"attn.{x}_norm.{leaf}": [head_dim] for x in "qk" for leaf in ("weight", "bias")}
    w = {name: made_up(prefix + name, shape) for name, shape in shapes.items()}

    tokens, grid = torch.randn(2, 13, dim), torch.randint(0, 30, (13, 2))

    def change(heads: Tensor, name: str) -> Tensor:
        if qk_norm:
            heads = normalize(heads, w[f"attn.{name}_norm.weight"], w[f"attn.{name}_norm.bias"])
        return rotate(heads, grid, 30.0)

    packed = [(w[f"attn.{name}.weight"], w[f"attn.{name}.bias"]) for name in ("qkv", "proj")]
    x = tokens.double()
    normed = normalize(x, w["norm1.weight"], w["norm1.bias"])
    x = x + w["ls1.gamma"] * self_attention(normed, *packed, num_heads, change=change)
    normed = normalize(x, w["norm2.weight"], w["norm2.bias"])
    activated = gelu(normed @ w["mlp.fc1.weight"].T + w["mlp.fc1.bias"])
    x = x + w["ls2.gamma"] * (activated @ w["mlp.fc2.weight"].T + w["mlp.fc2.bias"])

    meta = {"dim": dim, "num_heads": num_heads, "mlp_ratio": mlp_ratio, "qk_norm": qk_norm, "rope_frequency": 30}
    meta |= {"dtype": "float64", "weights": {"prefix": prefix, "shapes": shapes | (other_shapes or {})}}
    positions = grid.expand(2, -1, -1).contiguous()
    tensors = {"tokens": tokens, "positions": positions, "out": x}
    save_file(tensors, path, {key: json.dumps(value) for key, value in meta.items()})


@pytest.mark.parametrize(
    ("dim", "num_heads", "mlp_ratio", "qk_norm", "prefix"),
    [(16, 2, 4, True, "somewhere.else."), (48, 3, 2, False, ""), (40, 5, 3, True, "other.")],
)
def test_a_block_of_another_size_and_prefix(tmp_path, dim, num_heads, mlp_ratio, qk_norm, prefix):
    path = tmp_path / "attention_block_of_another_size.safetensors"
    write_block(path, dim, num_heads, mlp_ratio, qk_norm, prefix)
    assert errors_of(path)["out"] < 1e-12
    assert main([str(tmp_path)]) == 0


def test_the_wrong_prefix_shows(tmp_path):
    path = tmp_path / "attention_block.safetensors"
    write_block(path, 16, 2, 4, True, "a.")
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    metadata["weights"] = metadata["weights"].replace('"a."', '"b."')
    save_file(load_file(path), path, metadata)
    assert errors_of(path)["out"] > 1e-2


def test_rotary_positions_of_another_size(tmp_path):
    tokens, grid = torch.randn(1, 3, 17, 32), torch.randint(0, 50, (17, 2))
    out = rotate(tokens.double(), grid, 77.0)
    tensors = {"tokens": tokens, "positions": grid[None].contiguous(), "out": out}
    save_file(tensors, tmp_path / "rope2d.safetensors", {"frequency": "77", "dtype": '"float64"'})
    # The table of this file is float32, as its default is.
    assert errors_of(tmp_path / "rope2d.safetensors")["out"] < 2e-6
