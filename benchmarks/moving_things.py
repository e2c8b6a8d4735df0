"""Videos in which things move, with known truth in place of a network: `benchmarks/moving_things.py [--rooms N]`.

Ten frames of rendered rooms, each third of thirty, 48x64 pixels; point maps of the pairs of "swinstride-5-noncyclic"
with noise, outliers, wrong scales and wrong rotations of 2 degrees; and the true optical flow, NaN where a point is
hidden, with and without noise of half a pixel. Aligned without MonST3R's terms, with them after least squares, and
so without the term of smooth cameras: angular errors of the poses of all pairs, intersection over union of the moving
pixels found and the true ones, and seconds. The weight of the flow is the published one times 512/64, as errors are
in pixels. In rooms in which nothing moves, the share of pixels that is taken to move.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from common import mean_and_error, write_result
from geomtx.data import MotionStyle, VideoFlow, VideoStyle, held_out_seed, render_videos, trace_flow
from geomtx.data.synthetic.render import HELD_OUT_SCENES
from geomtx.inference import PairMaps, choose_pairs
from geomtx.metrics.pose import exact_pose_auc, pairwise_pose_errors
from geomtx.scene.pairs import AlignmentOptions, MotionTerms, VideoAlignment, align_video, find_moving
from geomtx.types import SceneBatch
from pair_rooms import noisy_maps

FRAMES, STEP, IMAGE_HW, SWAY = 10, 3, (48, 64), (0.4, 0.8)
TURN, FLOW_NOISE = 2.0, 0.5
GRAPH = "swinstride-5-noncyclic"
FLOW_WEIGHT = 0.01 * 512 / max(IMAGE_HW)


def render(index: int, pairs: Tensor, **motion: float) -> tuple[SceneBatch, VideoFlow]:
    """The frames of a room with their truth, and the flow of pairs of them."""
    seed = held_out_seed(HELD_OUT_SCENES["moving things"][index])
    style = VideoStyle(motion=MotionStyle(sway=SWAY, **motion))
    video = render_videos([seed], FRAMES * STEP, IMAGE_HW, style=style)
    flow = trace_flow(seed, FRAMES * STEP, IMAGE_HW, STEP * pairs, style=style)
    every = slice(None, None, STEP)
    assert video.cameras is not None
    assert video.points is not None
    cameras = type(video.cameras)(*(each[:, every] for each in video.cameras))
    video = video._replace(images=video.images[:, every], cameras=cameras, points=video.points[:, every])
    return video, flow._replace(moving=flow.moving[every])


def measure(align: Callable[[], VideoAlignment], video: SceneBatch, true_moving: Tensor) -> dict[str, Any]:
    """Align once."""
    assert video.cameras is not None
    start = time.perf_counter()
    found = align()
    seconds = time.perf_counter() - start
    errors = pairwise_pose_errors(found.alignment.cameras.cam_from_world, video.cameras.cam_from_world[0]).larger_deg()
    result = {
        "auc_5": 100 * exact_pose_auc(errors, (5,)).item(),
        "median_degrees": errors.median().item(),
        "seconds": seconds,
    }
    return result if found.moving is None else result | {"iou": overlap(found.moving, true_moving)}


def overlap(found: Tensor, wanted: Tensor) -> float:
    """Intersection over union; 1 where neither has a pixel."""
    union = int((found | wanted).sum())
    return int((found & wanted).sum()) / union if union else 1.0


def ways(maps: PairMaps, flow: Tensor) -> dict[str, Callable[[], VideoAlignment]]:
    """What is compared."""
    terms = MotionTerms(flow, flow_weight=FLOW_WEIGHT)
    still = MotionTerms(smoothness_weight=0)
    plain = AlignmentOptions("fast", shared_focal=True, steps=0)
    return {
        "without terms": lambda: align_video(maps, still, plain),
        "terms": lambda: align_video(maps, terms),
        "terms, not smooth": lambda: align_video(maps, terms._replace(smoothness_weight=0)),
    }


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rooms", type=int, default=3)
    arguments = parser.parse_args()
    pairs = choose_pairs(FRAMES, GRAPH)
    rows: dict[str, list[dict[str, Any]]] = {}
    for index in range(arguments.rooms):
        video, truth = render(index, pairs)
        still_video, still_truth = render(index, pairs, moving=0.0)
        assert video.cameras is not None
        assert video.points is not None
        assert still_video.points is not None
        known = torch.where(truth.visible[:, None], truth.flow, torch.nan)
        dice = torch.Generator().manual_seed(index)
        rough = known + FLOW_NOISE * torch.randn(known.shape, generator=dice)
        maps = noisy_maps(video.cameras.cam_from_world[0], video.points[0], pairs, index, turn=TURN)
        for key, flow in (("exact flow", known), (f"flow with noise of {FLOW_NOISE} px", rough)):
            before = {"iou": overlap(find_moving(maps, flow), truth.moving)}
            rows.setdefault(f"{key}, masks of pairs", []).append(before)
            for name, align in ways(maps, flow).items():
                found = measure(align, video, truth.moving)
                rows.setdefault(f"{key}, {name}", []).append(found)
                print(index, key, name, found, flush=True)
        maps = noisy_maps(video.cameras.cam_from_world[0], still_video.points[0], pairs, index, turn=TURN)
        flow = torch.where(still_truth.visible[:, None], still_truth.flow, torch.nan)
        terms = MotionTerms(flow, flow_weight=FLOW_WEIGHT)
        moving = align_video(maps, terms).moving
        assert moving is not None
        shares = {"of pairs": find_moving(maps, flow).double().mean().item(), "after": moving.double().mean().item()}
        rows.setdefault("nothing moves", []).append(shares)
        print(index, "nothing moves", shares, "true share", truth.moving.double().mean().item(), flush=True)
    results = {
        name: {each: mean_and_error([row[each] for row in found]) for each in found[0]} for name, found in rows.items()
    }
    settings = {
        "rooms": arguments.rooms,
        "frames": FRAMES,
        "image_hw": IMAGE_HW,
        "graph": GRAPH,
        "pairs": len(pairs),
        "flow_weight": FLOW_WEIGHT,
        "threads": torch.get_num_threads(),
    }
    write_result("moving_things", settings, results)


if __name__ == "__main__":
    main()
