import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import geomtx
from geomtx import VGGT, Scene, VGGTOmega, VGGTOmegaConfig, list_models
from geomtx.cli import main
from geomtx.cli.checkpoint_summary import summarize_checkpoint
from geomtx.inference import MemoryPlan
from geomtx.models.published import state_licence
from geomtx.models.registry import find_family
from lean import build_lean, visible
from reference import without_gradient

TEXT = ("camera", "depth", "text")


def build(**changes) -> VGGTOmega:
    numbers = {"depth": 3, "taps": (0, 1, 1, 2), "vit_depth": 1, "heads": TEXT, **changes}
    return visible(VGGTOmega(VGGTOmegaConfig.tiny(**numbers))).eval()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(2, 3, 3, 32, 48, dtype=torch.float64)


@torch.no_grad()
def test_an_embedding_is_of_all_views_of_a_scene(images):
    model = build().double()
    found = model.scene_embedding(images)
    assert found.shape == (2, 24)
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(model(images).scene_embedding, found, rtol=0, atol=1e-12)
    torch.testing.assert_close(model.scene_embedding(images[1])[0], found[1], rtol=0, atol=1e-12)
    # The views after the first have no order.
    torch.testing.assert_close(model.scene_embedding(images[:, [0, 2, 1]]), found, rtol=0, atol=1e-12)
    torch.testing.assert_close(model.scene_embedding(images, plan=MemoryPlan(2, 7)), found, rtol=0, atol=1e-12)
    assert (model.scene_embedding(images[:, [1, 0, 2]]) - found).abs().max() > 1e-6
    assert (model.scene_embedding(images[:, :2]) - found).abs().max() > 1e-6
    assert model(images).take_views(slice(2)).scene_embedding is None
    with pytest.raises(ValueError, match=r"^head must be one of 'camera', 'depth', got 'text'"):
        build(heads=TEXT[:2]).scene_embedding(images.float())


def test_a_scene_is_in_its_first_camera_and_holds_no_embedding():
    model = build()
    scene = geomtx.reconstruct(model, torch.rand(2, 3, 32, 48))
    torch.testing.assert_close(scene.cameras.cam_from_world[0], torch.eye(3, 4), atol=1e-5, rtol=0)
    assert scene.predictions.scene_embedding is None
    assert scene.predictions.depth is not None
    with pytest.raises(ValueError, match=r"^head must be one of 'camera', 'depth', got 'text'"):
        geomtx.reconstruct(model, torch.rand(2, 3, 32, 48), heads=("text",))


def test_gradients_reach_every_parameter_but_masked_biases(images):
    model = build().train()
    predictions = model(images.float())
    tensors = [predictions.pose_encodings, *predictions.depth, predictions.scene_embedding]
    sum((tensor * torch.randn_like(tensor)).sum() for tensor in tensors).backward()
    missing = {name for name in without_gradient(model) if not name.endswith("qkv.bias")}
    assert missing == {"encoder.backbone.mask_token"}
    bias = model.encoder.frame_blocks[0].attention.qkv.bias
    assert not bias.grad[32:64].any()
    assert bias.grad[64:].any()


def test_tables_of_a_file_are_kept_as_they_are(tmp_path: Path):
    """Masks and periods of any pattern come back, periods in all their digits whatever the model's precision."""
    model = build()
    generator = torch.Generator().manual_seed(3)
    for name, buffer in model.named_buffers():
        values = torch.rand(buffer.shape, generator=generator)
        buffer.copy_((values < 0.5).float() if name.endswith("bias_mask") else 1 + values)
    tables = dict(model.named_buffers())
    assert len(tables) == 2 * (3 + 1) - 1 + 2 + 2
    for names in ("published", "geomtx"):
        model.save_pretrained(tmp_path, names=names, overwrite=True)
        half = VGGTOmega.from_pretrained(tmp_path, dtype=torch.bfloat16)
        assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
        for name, table in half.named_buffers():
            assert torch.equal(table.float(), tables[name])
        half.save_pretrained(tmp_path / "half", names=names, overwrite=True)
        again = VGGTOmega.from_pretrained(tmp_path / "half")
        assert all(torch.equal(table.float(), tables[name]) for name, table in again.named_buffers())
        assert again(torch.rand(2, 3, 32, 48)).depth.value.isfinite().all()


@pytest.mark.parametrize(
    ("table", "value", "message"),
    [
        ("encoder.frame_blocks.0.attention.qkv.bias_mask", torch.nan, "must be of zeros and ones, got other numbers$"),
        ("camera_head.trunk.0.attention.qkv.bias_mask", 0.5, "must be of zeros and ones, got other numbers$"),
        ("encoder.rope.periods", 0.0, "must be positive, got other numbers$"),
    ],
)
def test_tables_that_make_no_sense(table, value, message, tmp_path: Path):
    model = build()
    model.get_buffer(table).fill_(value)
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        VGGTOmega.from_pretrained(tmp_path)


def test_published_files(tmp_path: Path, caplog):
    """A pickle with the names that were published, as on the hub: tables belong to it."""
    build().save_pretrained(tmp_path / "folder", names="published")
    tensors = load_file(tmp_path / "folder" / "model.safetensors")
    file = tmp_path / "vggt_omega_1b_512.pt"
    torch.save(tensors, file)
    assert find_family(file).model is VGGTOmega
    summary = summarize_checkpoint(str(file))
    assert (summary.naming, summary.heads) == ("published", TEXT)
    assert summary.licence.startswith("the FAIR Noncommercial Research License")
    with pytest.raises(ValueError, match=r"^weights must be of a published VGGT-Omega, 1024 wide, got '.*' 32 wide$"):
        geomtx.load_model(file)
    state_licence.cache_clear()
    with caplog.at_level(logging.WARNING):
        loaded = VGGTOmega.from_pretrained(file, config=build().config)
    assert loaded.heads == TEXT
    (line,) = (record.getMessage() for record in caplog.records)
    assert line.startswith(
        "The weights facebook/VGGT-Omega/vggt_omega_1b_512.pt have a licence of their own, the FAIR "
    )
    assert line.endswith("and ask to use vggt_omega_1b_416_reproduce.pt where accuracy is measured.")
    assert VGGTOmega.from_pretrained(file, config=build(heads=TEXT[:2]).config).heads == TEXT[:2]
    del tensors["aggregator.rope_embed.periods"], tensors["camera_head.trunk.0.attn.qkv.bias_mask"]
    tensors["dense_head.proj.more"] = torch.zeros(1)
    torch.save(tensors, file)
    with pytest.raises(ValueError, match=r"dense_head.proj.more is unexpected, .*bias_mask is missing"):
        VGGTOmega.from_pretrained(file, config=build().config)


def test_weights_of_another_family_are_refused(tmp_path: Path):
    build_lean(heads=("camera",)).save_pretrained(tmp_path / "vggt", names="published")
    with pytest.raises(ValueError, match=r"^weights must be of a VGGTOmega, got '.*' of a VGGT; "):
        VGGTOmega.from_pretrained(tmp_path / "vggt")
    bare = tmp_path / "bare.safetensors"
    save_file(load_file(tmp_path / "vggt" / "model.safetensors"), bare)
    with pytest.raises(ValueError, match=r"^weights must be of a VGGTOmega, got '.*' of a VGGT; "):
        VGGTOmega.from_pretrained(bare)
    build().save_pretrained(tmp_path / "omega", names="published")
    for source in (tmp_path / "omega", tmp_path / "omega" / "model.safetensors"):
        with pytest.raises(ValueError, match=r"^weights must be of a VGGT, got '.*' of a VGGTOmega; VGGTOmega.from_p"):
            VGGT.from_pretrained(source)


def test_photos_through_the_command(tmp_path: Path, capsys):
    """Weights under published names; photos of two shapes, prepared as published."""
    build().save_pretrained(tmp_path / "weights", names="published")
    for index, size in enumerate([(80, 60), (300, 60)]):
        Image.fromarray(np.full((size[1], size[0], 3), 40 * index, dtype=np.uint8)).save(tmp_path / f"{index}.png")
    photos = [str(tmp_path / f"{index}.png") for index in range(2)]
    command = ["reconstruct", *photos, "--weights", str(tmp_path / "weights"), "-o"]
    assert main([*command, str(tmp_path / "out")]) == 0
    scene = Scene.load(tmp_path / "out")
    assert scene.provenance["mode"] == "balanced"
    assert scene.images.shape == (2, 3, 48, 96)  # of the first, 80 x 48 are the photo
    assert [each.value.shape for each in scene.depth] == [(60, 80), (60, 300)]
    assert scene.masks[0].sum() == 80 * 48
    for options, message in (
        (["--query", "0,3,4"], "--query must be left out for a model without tracks, got one with camera, depth"),
        (["--heads", "points"], "head must be one of 'camera', 'depth'"),
        (["--size", "40"], "size must be a multiple of 16, got 40"),
    ):
        capsys.readouterr()
        assert main([*command, str(tmp_path / "none"), *options]) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert message in lines[-1]
        assert not (tmp_path / "none").exists()


def test_names_on_the_hub():
    names = [weights.name for weights in list_models("*omega*")]
    assert names == [
        "facebook/VGGT-Omega/vggt_omega_1b_512.pt",
        "facebook/VGGT-Omega/vggt_omega_1b_416_reproduce.pt",
        "facebook/VGGT-Omega/vggt_omega_1b_256_text.pt",
    ]
    with pytest.raises(ValueError, match=r"^weights must be one of .*512.pt, .*, got 'facebook/VGGT-Omega', which has"):
        geomtx.load_model("facebook/VGGT-Omega")


@pytest.mark.usefixtures("unchecked")
def test_points_are_not_tracked(images):
    with pytest.raises(ValueError, match=r"^query_points must be None, as VGGT-Omega tracks no points, got some$"):
        build()(images[0].float(), torch.zeros(1, 2))
