from typing import Any

import pytest
import torch
from torch import Tensor

import geomtx
from geomtx.inference import predict, predict_parallel
from geomtx.inference.keys import choose_views
from inference.several_processes import CASES, Case, arguments_of, build_nested, model_of
from reference import named_tensors

Results = dict[int, list[dict[str, Any]]]


def alone(case: Case) -> dict[str, Tensor]:
    """Return what one process gives, all at once; with the same approximation."""
    options = {name: value for name, value in case.options.items() if name in ("heads", "approximation", "cameras")}
    with torch.no_grad():
        return named_tensors(predict(model_of(case), *arguments_of(case), **options))


def views_of(rank: int, case: Case) -> Tensor:
    """Indices of contiguous pieces, the larger ones first."""
    return torch.arange(case.num_views).tensor_split(case.num_processes)[rank]


def axis_of_views(name: str) -> int:
    return 2 if name.endswith("pose_encodings") or name.endswith("iterations.coords_px") else 1


def check(got: dict[str, Tensor], expected: dict[str, Tensor], here: Tensor | None = None) -> None:
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        if here is not None and name != "metric_scale":  # one for all views of a scene
            value = value.index_select(axis_of_views(name), here)
        # Focal lengths are in pixels, and a narrow field of view makes them large; the tracker enlarges rounding.
        limits = {"rtol": 1e-9, "atol": 1e-7 if "track" in name else 1e-12}
        if value.dtype == torch.float32:
            limits = {"rtol": 1e-5, "atol": 1e-5}
        torch.testing.assert_close(got[name], value, **limits, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.dtype != torch.bfloat16])
def test_processes_give_what_one_gives(parallel_results: Results, name: str):
    case, expected = CASES[name], alone(CASES[name])
    for rank, results in enumerate(parallel_results[case.num_processes]):
        check(results[name], expected, None if case.options.get("gather", True) else views_of(rank, case))


def test_half_precision(parallel_results: Results):
    for results in parallel_results[2]:
        for name, value in alone(CASES["half precision"]).items():
            torch.testing.assert_close(results["half precision"][name], value, rtol=2e-2, atol=2e-2, msg=name)


@pytest.mark.parametrize("name", ["uneven", "uneven, three"])
def test_encoder(parallel_results: Results, name: str):
    case = CASES[name]
    images, _, mask = arguments_of(case)
    with torch.no_grad():
        whole = model_of(case).encoder(images, patch_mask=mask)
        first = model_of(case).encoder(images[:, :1], patch_mask=mask[:, :1])
    for rank, results in enumerate(parallel_results[case.num_processes]):
        here = views_of(rank, case)
        assert len(results["encoder"]) == len(whole.layers) == 2
        for index, layer in whole.layers.items():
            torch.testing.assert_close(results["encoder"][str(index)], layer[:, here], rtol=0, atol=1e-12)
    assert (whole.layers[1][:, :1] - first.layers[1]).abs().max() > 1e-3, "views matter to each other"


def test_some_of_the_processes(parallel_results: Results):
    for results in parallel_results[3][1:]:
        for name in ("uneven", "key views, masked"):
            check(results[f"group, {name}"], alone(CASES[name]))


def test_key_views_of_a_batch_are_in_different_processes():
    """Otherwise the cases would not show that each process has as many key views as the scene with the most."""
    held = set()
    for case in (case for case in CASES.values() if (case.options.get("approximation") or (None,))[0]):
        images, _, mask = arguments_of(case)
        encoder, num_views = model_of(case).encoder, case.options["approximation"].num_key_views
        views = encoder.embed(images, patch_mask=mask)
        tokens = None if views.mask is None else views.mask[:, :, views.num_special :]
        chosen = choose_views(views.x[:, :, views.num_special :], num_views, tokens)
        pieces = [set(views_of(rank, case).tolist()) for rank in range(case.num_processes)]
        held |= {tuple(len(piece & set(scene)) for piece in pieces) for scene in chosen.tolist()}
        held |= {"differ"} if len({tuple(sorted(scene)) for scene in chosen.tolist()}) > 1 else set()
    assert "differ" in held
    assert any(0 in counts for counts in held - {"differ"}), "some process has no key view"


def test_reconstruct(parallel_results: Results):
    case = Case(1, 4, dtype=torch.float32)
    expected = named_tensors(geomtx.reconstruct(model_of(case), arguments_of(case)[0][0]).predictions)
    for results in parallel_results[2] + parallel_results[3]:
        got, num_whole = results["reconstruct"]
        assert num_whole == 0, "all processes work in pieces where one has to"
        assert got.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(got[name], value, rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize("num_processes", [2, 3])
def test_attention_is_that_of_all_tokens(parallel_results: Results, num_processes: int):
    """Processes exchange heads; some keys are masked."""
    for results in parallel_results[num_processes]:
        here, expected = results["attention torch.float64"]
        assert here.shape == expected.shape
        torch.testing.assert_close(here, expected, rtol=0, atol=1e-14)


def test_half_precision_stays_what_it_is(parallel_results: Results):
    for results in parallel_results[2] + parallel_results[3]:
        here, expected = results["attention torch.bfloat16"]
        assert here.dtype == torch.bfloat16
        torch.testing.assert_close(here, expected)


@pytest.mark.parametrize("num", [2, 3])
def test_errors_come_in_all_processes(parallel_results: Results, num: int):
    for rank, results in enumerate(parallel_results[num]):
        mine = bool(rank)
        assert results["errors"] == {
            "few": f"ValueError: number of views must be at least that of processes, {num}, got {num - 1}",
            "views": differs("S of images", 3 - (not mine)),
            "heads": differs("head 'points'", not mine),
            "plan": differs("plan", mine),
            "approximation": differs("num_key_views of the approximation", 2 * mine),
            "mask": differs("patch_mask", mine),
            "mask's shape": "ValueError: patch_mask must have shape (2, 3, 2, 3), got (2, 3, 1, 3)",
            "cross": "ValueError: order must be without the scope 'cross' to be shared by processes, got one with it",
            "known": differs("known depth", mine),
            "group": "ValueError: group must have this process in it, got one without" if rank else "none",
            "foreign": "ValueError: heads must be of geomtx's classes in parallel, got Foreign for 'foreign'",
            "gradients": "RuntimeError: gradients don't flow between processes; use torch.no_grad()",
        }


def differs(name: str, here: object) -> str:
    return f"ValueError: {name} must be the same in every process, got {here} here and another one elsewhere"


@torch.no_grad()
def test_without_a_process_group(tiny_model: geomtx.VGGT, images: Tensor):
    message = r"^torch\.distributed has no process group; call init_process_group first$"
    with pytest.raises(RuntimeError, match=message):
        predict_parallel(tiny_model, images)


@pytest.mark.cuda
@torch.no_grad()
def test_on_gpus(tmp_path):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two NVIDIA GPUs")
    from inference import several_processes
    from processes import start, wait_for

    wait_for(start([several_processes.__file__, str(tmp_path), "cuda"], 2))
    for rank in range(2):
        results = torch.load(tmp_path / f"{rank}.pt", map_location="cpu")
        for name, got in results.items():
            for key, value in alone(CASES[name]).items():
                torch.testing.assert_close(got[key], value, rtol=1e-4, atol=1e-4, msg=f"{name} {key}")


def test_two_networks_in_one_model(parallel_results: Results):
    """Each in its turn, and the scale of the scene from the maps of all views."""
    model, images = build_nested()
    expected = named_tensors(geomtx.reconstruct(model, images).predictions)
    for results in parallel_results[2] + parallel_results[3]:
        assert results["nested"].keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(results["nested"][name], value, rtol=1e-4, atol=1e-5, msg=name)
