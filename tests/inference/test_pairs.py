import copy
import dataclasses

import pytest
import torch

from geomtx import DUSt3R, DUSt3RConfig, MASt3R, MASt3RConfig
from geomtx.inference import PairMemory, PairOptions, choose_pairs, pairs, predict_pairs, run_pairs
from geomtx.scene.pairs import PairFolder
from geomtx.types import Tokens

SIZES = [(32, 48), (48, 32), (32, 48), (32, 48)]


class Counted(DUSt3R):
    """A model that counts its runs."""

    def __init__(self, config: DUSt3RConfig) -> None:
        super().__init__(config)
        self.encoded, self.decoded = [], []

    def encode(self, images, hidden=None) -> Tokens:
        self.encoded.append(len(images))
        return super().encode(images, hidden)

    def decode(self, first, second):
        self.decoded.append(first.views[0])
        return super().decode(first, second)


@pytest.fixture
def model() -> Counted:
    torch.manual_seed(0)
    return Counted(DUSt3RConfig.tiny(depth=2, head="linear")).eval()


@pytest.fixture
def images() -> list[torch.Tensor]:
    return [torch.rand(3, *size) for size in SIZES]


@torch.no_grad()
@pytest.mark.parametrize("batch_size", [None, 1, 3, 100])
def test_every_pair_has_what_the_model_predicts_for_it(model, images, batch_size):
    graph = choose_pairs(4)
    shares = []
    options = PairOptions(batch_size, progress=shares.append)
    maps = run_pairs(model, images, graph, store=PairMemory(torch.float32), options=options)
    assert sum(model.encoded) == 4  # each image once
    assert sum(model.decoded) == len(graph) == 12
    assert max(model.decoded) <= (batch_size or 1)
    assert sum(shares) == pytest.approx(1)
    assert torch.equal(maps.pairs, graph)
    for index, (i, j) in enumerate(graph.tolist()):
        expected = model(images[i][None], images[j][None])
        for found, view in zip((maps.side(index, 0), maps.side(index, 1)), expected, strict=True):
            torch.testing.assert_close(found[0], view.points.value[0], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(found[1], view.points.confidence[0], rtol=1e-4, atol=1e-5)


def test_half_precision_halves_memory_and_stays_finite(model, images):
    graph = choose_pairs(4, "swin-1")
    exact = run_pairs(model, images, graph, store=PairMemory(torch.float32))
    half = run_pairs(model, images, graph)
    assert half.points1[0].dtype == torch.float16
    torch.testing.assert_close(half.points2[3].float(), exact.points2[3], rtol=1e-3, atol=1e-5)
    assert not exact.points1[0].requires_grad
    stored = sum(each.numel() * each.element_size() for field in half[1:] for each in field)
    assert stored == pairs.bytes_of_pairs(graph.tolist(), SIZES, torch.float16)
    with torch.no_grad():
        model.first_head.points.out.project.bias += 20.0  # exp(20) is beyond half precision
    large = run_pairs(model, images, graph)
    assert all(each.isfinite().all() for field in large[1:] for each in field)
    assert torch.cat([each.flatten() for each in large.confidence1]).max() == 65504


def test_autocast_and_gradients_of_the_caller(model, images):
    graph = choose_pairs(4, "swin-1")
    exact = run_pairs(model, images, graph)
    with torch.inference_mode():
        near = run_pairs(model, images, graph, options=PairOptions(dtype=torch.bfloat16))
    torch.testing.assert_close(near.points1[0].float(), exact.points1[0].float(), rtol=0.2, atol=0.1)
    assert not near.points1[0].is_inference()
    for batch in predict_pairs(model, images, [(0, 1)]):
        assert torch.is_grad_enabled()
        assert not batch.prediction.first.points.value.requires_grad
    with pytest.raises(
        ValueError, match=r"^dtype must be the model's own torch.float32, or half of a float32 model, g"
    ):
        run_pairs(model, images, graph, options=PairOptions(dtype=torch.float64))


def test_descriptors_come_batch_by_batch(images):
    model = MASt3R(MASt3RConfig.tiny(depth=2)).eval()
    seen = {}
    for batch in predict_pairs(model, images, [(0, 2), (0, 1), (2, 3)], options=PairOptions(2)):
        for row, index in enumerate(batch.indices):
            seen[index] = batch.prediction.second.descriptors.value[row].shape
    assert seen == {0: (32, 48, 24), 1: (48, 32, 24), 2: (32, 48, 24)}


def test_maps_in_memory_are_of_one_run(model, images, monkeypatch):
    graph, store = choose_pairs(4, "swin-1"), PairMemory()
    first = run_pairs(model, images, graph, store=store)
    model.decoded.clear()
    monkeypatch.setattr(pairs, "free_bytes", lambda device: 0)  # which takes none any more
    again = run_pairs(model, [each.clone() for each in images], graph, store=store)
    assert model.decoded == []
    assert torch.equal(first.points1[0], again.points1[0])
    other = Counted(model.config).eval()
    for name, arguments in {
        "model": (other, images, graph),
        "images": (model, images[::-1], graph),
        "pairs": (model, images, graph.flip(0)),
    }.items():
        with pytest.raises(ValueError, match=rf"^store must be of the same {name}, got a PairMemory of others; make a"):
            run_pairs(*arguments, store=store)


def test_one_image(model, images):
    maps = run_pairs(model, images[:1], choose_pairs(1))
    assert maps.points2[0].shape == (32, 48, 3)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_a_killed_run_goes_on_after_its_last_batch(model, images, tmp_path, batch_size):
    graph = choose_pairs(4)
    expected = run_pairs(model, images, graph)
    options = PairOptions(batch_size)

    def decode(first, second):
        if len(model.decoded) == 4:
            raise KeyboardInterrupt
        return Counted.decode(model, first, second)

    model.decoded.clear()
    model.decode = decode
    with pytest.raises(KeyboardInterrupt):
        run_pairs(model, images, graph, store=PairFolder(tmp_path, model, images, graph), options=options)
    del model.decode
    written = sum(model.decoded)
    assert written < len(graph)
    model.decoded.clear()
    folder = PairFolder(tmp_path, model, images, graph)
    assert len(folder.stored()) == written
    maps = run_pairs(model, images, graph, store=folder, options=options)
    assert sum(model.decoded) == len(graph) - written
    for field, other in zip(maps[1:], expected[1:], strict=True):
        for each, same in zip(field, other, strict=True):
            torch.testing.assert_close(each, same, rtol=2e-3, atol=1e-3)
    model.encoded.clear()
    run_pairs(model, images, graph, store=PairFolder(tmp_path, model, images, graph))
    assert model.encoded == []  # nothing is left to do


def test_a_folder_of_something_else_is_refused(model, images, tmp_path):
    graph = choose_pairs(4, "swin-1")
    run_pairs(model, images, graph, store=PairFolder(tmp_path, model, images, graph))
    other = Counted(model.config).eval()
    for name, arguments in {
        "model": (other, images, graph),
        "images": (model, images[::-1], graph),
        "pairs": (model, images, choose_pairs(4)),
    }.items():
        with pytest.raises(ValueError, match=rf"^folder must be of the same {name}, got '.*' of others; take another"):
            PairFolder(tmp_path, *arguments)
    tuned = copy.deepcopy(model)
    with torch.no_grad():
        [parameter for parameter in tuned.parameters() if parameter.numel() > 1000][-1].view(-1)[-200:] += 1
    with pytest.raises(ValueError, match=r"^folder must be of the same model"):
        PairFolder(tmp_path, tuned, images, graph)
    model.config, config = dataclasses.replace(model.config, rope_base=10.0), model.config
    with pytest.raises(ValueError, match=r"^folder must be of the same model"):
        PairFolder(tmp_path, model, images, graph)
    model.config = config
    with pytest.raises(ValueError, match=r"^folder must be of the same dtype"):
        PairFolder(tmp_path, model, images, graph, dtype="float32")
    file = sorted(tmp_path.glob("*.safetensors"))[0]
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(ValueError, match=r"is no whole file of maps \(.*\); remove it, and its pairs run again$"):
        PairFolder(tmp_path, model, images, graph).stored()
    file.unlink()
    with pytest.raises(ValueError, match=r"^folder must have the maps of all 8 pairs, got none of 1$"):
        PairFolder(tmp_path, model, images, graph).read(graph)
    index = tmp_path / "pairs.json"
    with pytest.raises(ValueError, match=r"^folder of pairs must be a folder, got the file '.*pairs.json'$"):
        PairFolder(index, model, images, graph)
    index.write_text("")
    with pytest.raises(
        ValueError, match=r"^'.*pairs.json' must be whole, got a damaged one \(.*\); take another folder$"
    ):
        PairFolder(tmp_path, model, images, graph)


def test_what_cannot_work_is_said_before_work(model, images, monkeypatch):
    for graph, message in (
        ([[0, 1], [1, 0]], "pairs must connect all images, got none between images 2, 3 and the others"),
        ([[0, 1], [1, 2], [2, 3], [1, 2]], r"pairs must be different ones, got \(1, 2\) twice"),
        ([[0, 4]], r"pairs must be of two of the images 0 to 3, got \(0, 4\)"),
    ):
        with pytest.raises(ValueError, match=f"^{message}$"):
            run_pairs(model, images, torch.tensor(graph))
    monkeypatch.setattr(pairs, "free_bytes", lambda device: 9 * 2 * 4 * 2 * 32 * 48)
    with pytest.raises(
        ValueError,
        match=r"^pairs must fit into memory, got 12 that need .* on cpu where .* enough for 9; 'swin-1' is a graph th",
    ):
        run_pairs(model, images, choose_pairs(4))
    assert model.encoded == []
