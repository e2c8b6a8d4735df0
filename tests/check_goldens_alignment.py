"""Golden files of global alignment, for `check_goldens.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from geomtx.geometry import invert_rigid
from geomtx.geometry.camera_fit import fit_focal
from geomtx.inference import PairMaps
from geomtx.scene.pairs import AlignmentOptions, align_pairs
from geomtx.scene.pairs.confidence import clean_confidence, image_confidence
from geomtx.scene.pairs.matches.alignment import PairMatches, SparseOptions, dense_depth, sparse_problem
from geomtx.scene.pairs.matches.canonical import anchor_pixels, canonical_images
from geomtx.scene.pairs.matches.objective import (
    SparseState,
    block_depth,
    coarse_loss,
    fine_loss,
    sparse_cameras,
    sparse_points,
)
from geomtx.scene.pairs.motion import (
    MotionTerms,
    camera_flow,
    consistent_flow,
    depth_term,
    motion_loss,
    smoothness_terms,
)
from geomtx.scene.pairs.objective import (
    AlignmentState,
    alignment_loss,
    camera_parameters,
    image_points,
    pack_pairs,
    pair_transforms,
)
from geomtx.scene.pairs.pair_graph import check_pairs, score_pairs
from geomtx.scene.pairs.start import place_images, start_alignment, start_from_cameras, start_of_tree
from geomtx.scene.pairs.two_views import intrinsics_of
from geomtx.tracking.matching import (
    DescriptorMaps,
    Matches,
    find_reciprocal,
    follow_pixels,
    match_descriptors,
    mutual_neighbours,
)
from geomtx.types import Cameras
from golden_files import Check, Golden

PARAMETERS = ("im_poses", "im_focals", "im_pp", "log_depth", "pw_poses", "pw_adaptors")


def read_maps(golden: Golden, stem: str = "") -> PairMaps:
    """The point maps of a file, stacked or numbered."""
    maps = []
    for name in ("points1", "points2", "confidence1", "confidence2"):
        whole = f"{stem}{name}"
        each = golden.tensors[whole].unbind() if whole in golden.tensors else golden.numbered(whole).values()
        maps.append(tuple(each))
    pairs = golden.tensors["edges"] if "edges" in golden.tensors else torch.tensor([[0, 1], [1, 0]])
    return PairMaps(pairs, *maps)


def numbered(golden: Golden, stem: str) -> tuple[Tensor, ...]:
    """Tensors `STEM.i`, or the parts of `STEM`, in order."""
    return golden.tensors[stem].unbind() if stem in golden.tensors else tuple(golden.numbered(stem).values())


def read_state(golden: Golden) -> AlignmentState:
    """The state of a file, as leaves that have gradients."""
    tensors, depth = golden.tensors, numbered(golden, "state.log_depth")
    poses, pairs = tensors["state.im_poses"], tensors["state.pw_poses"]
    state = AlignmentState(
        poses,
        tensors["state.im_focals"],
        tensors["state.im_pp"] if "state.im_pp" in tensors else poses.new_zeros(len(poses), 2),
        depth,
        pairs,
        tensors["state.pw_adaptors"] if "state.pw_adaptors" in tensors else pairs.new_zeros(len(pairs), 2),
    )
    leaves = [tuple(d.clone().requires_grad_() for d in v) if isinstance(v, tuple) else v.clone() for v in state]
    return AlignmentState(*(v if isinstance(v, tuple) else v.requires_grad_() for v in leaves))


def check_gradients(golden: Golden, stem: str, state: AlignmentState, loss: Tensor) -> Iterator[Check]:
    """Gradients of a loss by each parameter that the file has."""
    leaves = [each for value in state for each in (value if isinstance(value, tuple) else (value,))]
    found = dict(zip(map(id, leaves), torch.autograd.grad(loss, leaves, allow_unused=True), strict=True))
    for name, value in zip(PARAMETERS, state, strict=True):
        each = value if isinstance(value, tuple) else (value,)
        keys = [f"{stem}.{name}.{index}" for index in range(len(each))] if isinstance(value, tuple) else []
        if f"{stem}.{name}" in golden.tensors:
            ours = torch.stack([found[id(leaf)] for leaf in each]) if isinstance(value, tuple) else found[id(value)]
            yield Check(f"{stem}.{name}", ours, golden.tensors[f"{stem}.{name}"])
        for key, leaf in zip(keys, each, strict=False):
            if key in golden.tensors:
                yield Check(key, found[id(leaf)], golden.tensors[key])


def check_objective(golden: Golden) -> Iterator[Check]:
    golden.require(base_scale=0.5, focal_break=20, pair_break=20)
    tensors, maps, state = golden.tensors, read_maps(golden), read_state(golden)
    sizes = check_pairs(maps, len(state.poses))
    for name in [name for name in tensors if name.startswith("loss.")]:
        _, *kind = name.split(".")
        free = kind == ["free_scale"]
        reduction, confidence, distance = ("pixels", "log", "l1") if free else kind
        data = pack_pairs(maps, sizes, confidence=confidence, by_pair=reduction == "pairs")
        with torch.enable_grad():
            loss = alignment_loss(data, state, squared=distance == "l2", free_scale=free)
        yield Check(name, loss, tensors[name])
        yield from check_gradients(golden, name.replace("loss", "grad", 1), state, loss)
    poses, focals, principal = camera_parameters(state)
    intrinsics = intrinsics_of(focals, principal, sizes)
    yield Check("cam_to_world", poses, tensors["cam_to_world"][:, :3])
    yield Check("intrinsics", intrinsics, tensors["intrinsics"])
    plain = state._replace(adaptors=torch.zeros_like(state.adaptors))
    yield Check("pair_to_world", pair_transforms(plain), tensors["pair_to_world"][:, :3])
    stretch = pair_transforms(state)[..., :3].norm(dim=1) / pair_transforms(plain)[..., :3].norm(dim=1)
    yield Check("adaptors", stretch, tensors["adaptors"])
    confidence = image_confidence(maps, len(sizes))
    cameras = Cameras(invert_rigid(poses), intrinsics)
    cleaned = clean_confidence(cameras, [each.exp() for each in state.log_depth], confidence)
    world = image_points(data, state)
    for index, (height, width) in enumerate(sizes):
        yield Check(f"image_confidence.{index}", confidence[index], tensors[f"image_confidence.{index}"])
        yield Check(f"cleaned_confidence.{index}", cleaned[index], tensors[f"cleaned_confidence.{index}"])
        points = world[index, : height * width].view(height, width, 3)
        yield Check(f"world_points.{index}", points, tensors[f"world_points.{index}"])


def check_cleaning(golden: Golden) -> Iterator[Check]:
    tensors = golden.tensors
    cameras = Cameras(invert_rigid(tensors["cam_to_world"][:, :3]), tensors["intrinsics"])
    depth, confidence = (tuple(golden.numbered(name).values()) for name in ("depth", "confidence"))
    for index in range(len(depth)):
        tensors[f"world_points.{index}"]  # they follow from the depth
    cleaned = clean_confidence(cameras, depth, confidence, tolerance=golden.meta["tolerance"])
    for index, each in enumerate(cleaned):
        yield Check(f"cleaned_confidence.{index}", each, tensors[f"cleaned_confidence.{index}"])


def check_start(golden: Golden) -> Iterator[Check]:
    """With the file's focal lengths: one of them is a slip of the published code."""
    tensors, maps = golden.tensors, read_maps(golden)
    num = len(tensors["init.im_poses"])
    sizes = check_pairs(maps, num)
    scores = score_pairs(maps)
    yield Check("edge_scores", scores, tensors["edge_scores"])
    if "focal.weiszfeld" in tensors:
        points = tensors["points1"]
        yield Check("focal.weiszfeld", fit_focal(points), tensors["focal.weiszfeld"])
        yield Check("focal.median", fit_focal(points, method="median"), tensors["focal.median"])
    order = start_of_tree(maps, scores.tolist())
    yield Check("tree", maps.pairs[order], tensors["tree"])
    focals = (tensors["init.im_focals"][:, 0] / 20).exp()
    if "tree_focals" in tensors:
        yield Check("tree_focals", focals, tensors["tree_focals"])
    confidence = image_confidence(maps, num)
    placed = place_images(maps, scores.tolist(), confidence, focals, golden.meta["min_confidence"])
    yield Check("tree_points", torch.stack(placed.points), tensors["tree_points"])
    yield Check("tree_cam_to_world", placed.world_from_cam, tensors["tree_cam_to_world"][:, :3])
    yield Check("camera_from_tree", torch.tensor(placed.from_tree), tensors["camera_from_tree"])
    data, state = pack_pairs(maps, sizes), start_alignment(maps, placed)
    yield from check_state(golden, "init", state)
    yield Check("init.loss", alignment_loss(data, state), tensors["init.loss"])
    if "known.focal" in tensors:
        poses = tensors["true_cam_to_world"][:, :3]
        state = start_from_cameras(maps, scores.tolist(), poses, tensors["known.focal"].expand(num))
        yield from check_state(golden, "known", state)
        yield Check("known.loss", alignment_loss(data, state, free_scale=True), tensors["known.loss"])


def check_state(golden: Golden, stem: str, state: AlignmentState) -> Iterator[Check]:
    for name, value in zip(PARAMETERS, state, strict=True):
        if f"{stem}.{name}" in golden.tensors:
            ours = torch.stack(value) if isinstance(value, tuple) else value
            yield Check(f"{stem}.{name}", ours, golden.tensors[f"{stem}.{name}"])


def check_two_images(golden: Golden) -> Iterator[Check]:
    tensors = golden.tensors
    for scene in sorted({name.split(".")[0] for name in tensors}):
        maps = read_maps(golden, f"{scene}.")
        yield Check(f"{scene}.scores", score_pairs(maps).to(golden.dtype), tensors[f"{scene}.scores"])
        found = align_pairs(maps, options=AlignmentOptions("published"))
        world_from_cam = invert_rigid(found.cameras.cam_from_world)
        yield Check(f"{scene}.cam_to_world", world_from_cam, tensors[f"{scene}.cam_to_world"][:, :3])
        yield Check(f"{scene}.intrinsics", found.cameras.intrinsics, tensors[f"{scene}.intrinsics"])
        for index in range(2):
            mask = found.confidence[index] > golden.meta["min_confidence"]
            yield Check(f"{scene}.mask.{index}", mask, tensors[f"{scene}.mask.{index}"])
            yield Check(f"{scene}.depth.{index}", found.depth[index], tensors[f"{scene}.depth.{index}"])
            points = found.points[index]
            yield Check(f"{scene}.world_points.{index}", points, tensors[f"{scene}.world_points.{index}"])


def sorted_matches(*columns: Tensor) -> Tensor:
    """Rows of numbers in an order of their own, to compare as sets."""
    rows = torch.cat([each.double().view(len(each), -1) for each in columns], dim=1)
    return torch.tensor(sorted(rows.tolist()), dtype=torch.float64)


def check_matching(golden: Golden) -> Iterator[Check]:
    golden.require(similarity="dot")
    tensors, meta = golden.tensors, golden.meta
    settings = {"subsample": meta["subsample"], "max_rounds": meta["max_iterations"]}
    maps, swapped = (
        DescriptorMaps(*(tensors[f"{name}{side}{end}"] for name in ("descriptors", "confidence") for side in (1, 2)))
        for end in ("", "_swapped")
    )
    (height, width), last = maps.first.shape[:2], maps.second.shape[1]
    flat = maps.first.flatten(0, 1), maps.second.flatten(0, 1)
    step = meta["subsample"]
    grid = torch.arange(height * width).view(height, width)[step // 2 :: step, step // 2 :: step].flatten()
    one, two = find_reciprocal(*flat, grid, max_rounds=meta["max_iterations"])
    found = {
        "full": mutual_neighbours(*flat),
        "fast": (torch.stack([one % width, one // width], 1), torch.stack([two % last, two // last], 1)),
        "one_way": match_descriptors(maps, **settings),
        "both_ways": match_descriptors(maps, swapped, **settings),
        "queries": follow_pixels(maps, tensors["queries.init_xy1"], tolerance_px=meta["pixel_tolerance"]),
    }
    for name, ours in found.items():
        kinds = ("index1", "index2") if name == "full" else ("xy1", "xy2", "confidence")[: len(ours)]
        wanted = [tensors[f"{name}.{kind}"] for kind in kinds]
        yield Check(name, sorted_matches(*ours), sorted_matches(*wanted))


def read_sparse(golden: Golden) -> tuple[PairMaps, PairMatches]:
    """Maps of both directions, whole or every eighth row and column of what is read of them, and matches."""
    tensors, pairs = golden.tensors, golden.tensors["pairs"].tolist()
    sizes = golden.meta["image_shapes"]
    maps: list[tuple[list[int], Tensor, Tensor, Tensor, Tensor]] = []

    def whole(name: str, index: int, size: list[int]) -> Tensor:
        if f"{name}.{index}" in tensors:
            return tensors[f"{name}.{index}"]
        part = tensors[f"{name}_8.{index}"]
        return part.repeat_interleave(8, dim=0).repeat_interleave(8, dim=1)[: size[0], : size[1]]

    for index, (i, j) in enumerate(pairs):
        for first, second, a, b in ((i, j, "11", "21"), (j, i, "22", "12")):
            values = [
                whole(f"{kind}{side}", index, sizes[each]) for kind in "XC" for each, side in ((first, a), (second, b))
            ]
            maps.append(([first, second], *values))
    one, two = (list(golden.numbered(f"matches{side}").values()) for side in (1, 2))
    confidence = list(golden.numbered("match_confidence").values())
    matches = PairMatches(tensors["pairs"], tuple(map(Matches, one, two, confidence)))
    order, *rest = zip(*maps, strict=True)
    return PairMaps(torch.tensor(order), *rest), matches


def check_sparse(golden: Golden) -> Iterator[Check]:
    golden.require(subsample=8, fallback_weight=0.01)
    tensors, meta = golden.tensors, golden.meta
    maps, matches = read_sparse(golden)
    images = canonical_images(maps, len(meta["image_shapes"]))
    for method, name in (("ward", "hclust-ward"), ("spanning", "mst")):
        options = SparseOptions(method, meta["matching_conf_thr"])
        problem = sparse_problem(maps, matches, images, options)
        for stem in (f"tree.{name}", *(["kinematic"] if method == "ward" else [])):
            edges = sorted(map(tuple, tensors[f"{stem}.edges"].tolist()))
            yield Check(f"{stem}.root", torch.tensor(problem.tree.root), tensors[f"{stem}.root"])
            yield Check(f"{stem}.edges", torch.tensor(sorted(problem.tree.edges)), torch.tensor(edges))
    problem = sparse_problem(maps, matches, images, SparseOptions(min_confidence=meta["matching_conf_thr"]))
    names = ("quat", "translation", "log_size", "log_focal", "pp")
    core = tuple(golden.numbered("state.core_depth").values())
    values = [tensors[f"state.{name}"].squeeze(-1) for name in names]
    state = SparseState(*values, core).map(lambda each: each.clone().requires_grad_())
    cameras = sparse_cameras(problem, state)
    yield Check("cam_to_world", invert_rigid(cameras.cam_from_world), tensors["cam_to_world"][:, :3])
    yield Check("intrinsics", cameras.intrinsics, tensors["intrinsics"])
    depth, dense = block_depth(problem, state), dense_depth(problem, state, images)
    for index, image in enumerate(images):
        ours = {
            "canonical.points": image.points,
            "canonical.confidence": image.confidence,
            "canonical.depth_ratio": image.depth_ratio,
            "canonical.focal": image.focal,
            "core_depth": image.core_depth,
            "anchor.depth": depth[index],
            "dense.depth": dense[index],
        }
        if f"anchor.pixels.{index}" in tensors:
            both = problem.first, problem.second
            found = [each.image == index for each in both]
            ours["anchor.index"], ours["anchor.ratio"] = anchor_pixels(image, tensors[f"anchor.pixels.{index}"])
            pixels = torch.cat([a.coords_px[own] for a, own in zip(both, found, strict=True)])
            wanted = tensors[f"anchor.pixels.{index}"]
            yield Check(f"anchor.pixels.{index}", sorted_matches(pixels), sorted_matches(wanted))
            all_points = sparse_points(problem, state)
            points = torch.cat([p[own] for p, own in zip(all_points, found, strict=True)])
            rows = sorted_matches(pixels, points)[:, 2:]
            sort = sorted_matches(wanted, tensors[f"anchor.points.{index}"])[:, 2:]
            yield Check(f"anchor.points.{index}", rows, sort)
        for name, each in ours.items():
            if f"{name}.{index}" in tensors:
                yield Check(f"{name}.{index}", each, tensors[f"{name}.{index}"])
    for stage, loss in (("coarse", coarse_loss), ("fine", fine_loss)):
        with torch.enable_grad():
            value = loss(problem, state)
        yield Check(f"loss.{stage}", value, tensors[f"loss.{stage}"])
        leaves = [*state[:5], *state.core]
        gradients = torch.autograd.grad(value, leaves)
        for name, gradient in zip((*names, "core_depth"), (*gradients[:5], gradients[5:]), strict=True):
            for index in range(len(images)):
                key = f"grad.{stage}.{name}.{index}"
                if key in tensors:
                    golden_value = tensors[key]
                    ours_value = gradient[index].reshape(golden_value.shape)
                    # Those of the root are 0 but for rounding.
                    scale = None if golden_value.norm() > 1e-10 else torch.ones_like(golden_value)
                    yield Check(key, ours_value, golden_value, scale)


def check_motion_terms(golden: Golden) -> Iterator[Check]:
    golden.require(pixel_threshold=50)
    tensors, maps, state, meta = golden.tensors, read_maps(golden), read_state(golden), golden.meta
    sizes = check_pairs(maps, len(state.poses))
    data, weights = pack_pairs(maps, sizes), meta["weights"]
    flow = tensors["flow_forward"], tensors["flow_backward"]
    terms = MotionTerms(
        flow,
        tensors["dynamic"],
        weights["smoothness"],
        weights["flow"],
        weights["depth"],
        weights.get("translation", 1.0),
        largest_flow_error=0,
    )
    has_start = "state.initial_depth" in tensors
    start = tensors["state.initial_depth"] if has_start else None
    one, two = maps.pairs.T

    def evaluate(given: AlignmentState, which: MotionTerms, progress: float) -> tuple[Tensor, Tensor, Tensor]:
        """The flow's term alone, the whole loss, and the cameras' flow."""
        poses, focals, principal = camera_parameters(given)
        intrinsics = intrinsics_of(focals, principal, sizes)
        depth = torch.stack(given.log_depth).exp()
        alone = which._replace(smoothness_weight=0, flow_weight=1, depth_weight=0)
        value = motion_loss(maps.pairs, given, alone, None, progress)
        whole = alignment_loss(data, given) + motion_loss(maps.pairs, given, which, start, progress)
        return value, whole, camera_flow(depth[one], (poses[one], intrinsics[one]), (poses[two], intrinsics[two]))

    shared = state._replace(focals=state.focals[:1].detach().clone().requires_grad_())
    cases = {"all": (state, terms, 1.0), "all_shared_focal": (shared, terms, 1.0), "flow": (state, terms, 1.0)}
    cases["smoothness"] = state, terms._replace(flow=None, depth_weight=0), 1.0
    for limit in (25, 60):
        cases[f"total_limit_{limit}"] = state, terms._replace(largest_flow_error=limit), 1.0
    if "steps" in meta:
        cases |= {"before_start": (state, terms, 29 / meta["steps"]), "at_start": (state, terms, 30 / meta["steps"])}
    for name, (given, which, progress) in cases.items():
        if f"loss.{name}" not in tensors:
            continue
        with torch.enable_grad():
            value, whole, induced = evaluate(given, which, progress)
        yield Check(f"loss.{name}", whole, tensors[f"loss.{name}"])
        if f"flow_term.{name}" in tensors:
            yield Check(f"flow_term.{name}", value, tensors[f"flow_term.{name}"])
        if name == "flow":
            yield from check_gradients(golden, "grad.flow_term", given, value)
        yield from check_gradients(golden, f"grad.{name}", given, whole)
    yield Check("ego_flow", induced, tensors["ego_flow"])
    if "smoothness_terms" in tensors:
        smooth = smoothness_terms(camera_parameters(state)[0], weights["translation"])
        yield Check("smoothness_terms", smooth, tensors["smoothness_terms"])
        depth = torch.stack(state.log_depth).exp()
        yield Check("depth_term", depth_term(depth, start, tensors["dynamic"]), tensors["depth_term"])
        yield Check("loss.alignment", alignment_loss(data, state), tensors["loss.alignment"])
        valid = consistent_flow(tensors["occlusion.flow_forward"], tensors["occlusion.flow_backward"])
        yield Check("occlusion.valid", valid, tensors["occlusion.valid"])


CHECKS_ALIGNMENT: dict[str, Callable[[Golden], Iterator[Check]]] = {
    "global_alignment": check_objective,
    "global_alignment_cleaning": check_cleaning,
    "alignment_init": check_start,
    "dust3r_two_images": check_two_images,
    "fast_reciprocal_matching": check_matching,
    "sparse_alignment": check_sparse,
    "monst3r_alignment": check_motion_terms,
    "monst3r_flow_limit": check_motion_terms,
}
