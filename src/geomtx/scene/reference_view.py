"""The view that a model takes for its first: which it is, and how results come back in the order of the photos."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal, get_args

import torch
from torch import Tensor

from geomtx.checks import check_option, check_range
from geomtx.geometry.similarity import Similarity
from geomtx.scene.align import move_scene
from geomtx.scene.checks import queries_to_model
from geomtx.scene.filters import most_shared_view
from geomtx.scene.scene import Scene
from geomtx.views import Views

__all__ = ["Reference", "check_reference", "move_to_first_camera", "run_with_reference"]

Reference = Literal["first", "middle", "shared"]
"""The first view, the middle one, or the one that shares most with the others."""

Run = Callable[[Views, Tensor | None], Scene]


def check_reference(reference: Reference | int, num_views: int, heads: Sequence[str]) -> None:
    """Require a view that exists, and heads that tell what views share.

    Raises:
        ValueError: Otherwise.
    """
    if isinstance(reference, int) and not isinstance(reference, bool):
        check_range("reference", reference, 0, num_views - 1)
    else:
        check_option("reference", reference, get_args(Reference))
    if reference == "shared" and not {"camera", "depth"} <= set(heads):
        raise ValueError(f"heads must hold camera and depth to find what views share, got {', '.join(heads)}")


def run_with_reference(run: Run, views: Views, queries: Tensor | None, reference: Reference | int) -> Scene:
    """Run a model with another view in the first place, and bring the results into the order of the views.

    The world becomes the first view's camera, where cameras are predicted.

    Args:
        run: Function of views and queries (N, 3) as (view, x, y), or None, that returns their scene.
        views: Views of the scene.
        queries: Query points in original pixels, (N, 3); None for none.
        reference: A view, or the rule for one, see `check_reference`.
    """
    if reference == "shared":
        scene = run(views, queries)
        best = most_shared_view(scene)
        return scene if best == 0 else _run(run, views, queries, best)
    if isinstance(reference, str):
        reference = (len(views) - 1) // 2 if reference == "middle" else 0
    return run(views, queries) if reference == 0 else _run(run, views, queries, reference)


def _run(run: Run, views: Views, queries: Tensor | None, reference: int) -> Scene:
    order = [reference, *(view for view in range(len(views)) if view != reference)]
    places = sorted(range(len(views)), key=order.__getitem__)
    moved = queries
    if queries is not None:
        queries_to_model(queries, views.transforms, views.names)  # its errors name views by their place in the scene
        moved = torch.cat([torch.tensor(places, dtype=queries.dtype)[queries[:, :1].long()], queries[:, 1:]], dim=1)
    scene = run(views[order], moved)
    # Predictions of a scene have no batch axis, which comes before that of the views.
    predictions = scene.predictions.map(lambda values: values[None]).take_views(places).map(lambda values: values[0])
    scene = replace(
        scene,
        names=views.names,
        transforms=views.transforms,
        images=scene.images[places],
        masks=scene.masks[places],
        predictions=predictions,
        query_points=queries,
        paths=views.paths,
        times=views.times,
        provenance={**scene.provenance, "reference": views.names[reference]},
    )
    return move_to_first_camera(scene, f"the camera of {scene.names[reference]}, as the model predicts it")


def move_to_first_camera(scene: Scene, world: str) -> Scene:
    """Return a scene in the frame of its first camera; without cameras as it is, with a record of its world.

    Args:
        scene: Scene in another frame.
        world: Description of that frame.
    """
    cameras = scene.predictions.cameras
    if cameras is None or not cameras.cam_from_world[0].isfinite().all():
        return replace(scene, provenance={**scene.provenance, "world": world})
    pose = cameras.cam_from_world[0].double()
    return move_scene(scene, Similarity(torch.ones((), dtype=pose.dtype), pose[:, :3], pose[:, 3]))
