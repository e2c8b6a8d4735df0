"""Golden files of DUSt3R, MASt3R and CroCo, for `check_goldens.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

import geomtx
from geomtx.encoder import PairDecoder
from geomtx.inference import choose_pairs, keep_near, retrieved_pairs
from geomtx.inference.pair_maps import PairPrediction
from geomtx.losses import (
    MatchingSettings,
    PairPointSettings,
    completion_loss,
    matching_loss,
    matching_precision,
    pair_confidence_loss,
    pair_point_errors,
)
from geomtx.losses.pair_points import cloud_scale, fit_cloud_scale, reaches
from geomtx.models.dust3r import CroCo, CroCoConfig, DUSt3R, DUSt3RConfig, MASt3R, MASt3RConfig, keys
from geomtx.models.dust3r.parts import build_encoder
from geomtx.models.dust3r.pretrained import normalize_pair_images
from geomtx.types import DenseMap, Tokens
from golden_files import Check, Golden, fill_by_rule, make


def undo_normalization(images: Tensor) -> Tensor:
    """The images of normalised ones, (..., 3, H, W)."""
    return images / 2 + 0.5


def numbers_of(golden: Golden) -> dict[str, Any]:
    """The numbers of a model's configuration."""
    golden.require(mlp_ratio=4, norm_eps=1e-6, rope_frequency=100)
    names = {
        "encoder_dim": "enc_dim",
        "encoder_depth": "enc_depth",
        "encoder_num_heads": "enc_num_heads",
        "dim": "dec_dim",
        "depth": "dec_depth",
        "num_heads": "dec_num_heads",
        "patch_size": "patch_size",
    }
    return {ours: golden.meta[theirs] for ours, theirs in names.items() if theirs in golden.meta}


def compare(prediction: PairPrediction, tensors: dict[str, Tensor]) -> Iterator[Check]:
    """Points, confidence and descriptors of both views."""
    for number, view in enumerate(prediction, start=1):
        yield Check(f"points{number}", view.points.value, tensors[f"points{number}"])
        yield Check(f"confidence{number}", view.points.confidence, tensors[f"confidence{number}"])
        if view.descriptors is not None:
            yield Check(f"descriptors{number}", view.descriptors.value, tensors[f"descriptors{number}"])
            confidence = tensors[f"descriptor_confidence{number}"]
            yield Check(f"descriptor_confidence{number}", view.descriptors.confidence, confidence)


def check_encoder(golden: Golden) -> Iterator[Check]:
    config = CroCoConfig(**numbers_of(golden))
    tensors = golden.tensors
    encoder = make(golden, lambda: build_encoder(config), keys.ENCODER_KEYS)
    tokens = encoder(tensors["images"])
    yield Check("tokens", tokens.layer(0)[:, 0], tensors["tokens"])
    rows, columns = tokens.grid_hw
    positions = torch.cartesian_prod(torch.arange(rows), torch.arange(columns))
    yield Check("positions", positions.expand_as(tensors["positions"]), tensors["positions"])


def check_decoder_pair(golden: Golden) -> Iterator[Check]:
    meta, tensors = golden.meta, golden.tensors
    numbers = numbers_of(golden)
    decoder = make(
        golden,
        lambda: PairDecoder(numbers["encoder_dim"], numbers["dim"], numbers["depth"], num_heads=numbers["num_heads"]),
        keys.PAIR_DECODER_KEYS,
    )
    pair = [
        Tokens({0: tensors[f"tokens{number}"][:, None]}, 0, (0, 0), tuple(grid))
        for number, grid in enumerate(meta["grids"], start=1)
    ]
    taps = tuple(range(numbers["depth"] + 1))
    for number, tokens in enumerate(decoder(*pair, taps), start=1):
        for tap in taps[1:]:
            yield Check(f"out{number}.{tap}", tokens.layer(tap)[:, 0], tensors[f"out{number}.{tap}"])


def check_completion(golden: Golden) -> Iterator[Check]:
    tensors = golden.tensors
    model = make(golden, lambda: CroCo(CroCoConfig(**numbers_of(golden))), keys.CROCO_KEYS)
    first, second = (undo_normalization(tensors[name]) for name in ("image1", "image2"))
    yield Check("out", model(first, second, tensors["mask"]), tensors["out"])
    # The published loss is about normalised images.
    for name, normalize in (("loss_normalized", True), ("loss_plain", False)):
        loss = completion_loss(tensors["out"], tensors["image1"], tensors["mask"], normalize=normalize)
        yield Check(name, loss, tensors[name])


def build(golden: Golden) -> DUSt3R:
    """The model that a file is of."""
    numbers = numbers_of(golden)
    if golden.meta["head"].startswith("catmlp"):
        model = MASt3R(MASt3RConfig(**numbers, descriptor_dim=golden.meta.get("descriptor_dim", 24)))
    else:
        model = DUSt3R(DUSt3RConfig(**numbers, head=golden.meta["head"]))
    return model


def check_dust3r(golden: Golden) -> Iterator[Check]:
    tensors = golden.tensors
    model = make(golden, lambda: build(golden), keys.DUST3R_KEYS)
    images = [undo_normalization(tensors[f"images{number}"]) for number in (1, 2)]
    turned = None
    if "true_hw1" in tensors:
        turned = tuple((hw[:, 0] > hw[:, 1]).tolist() for hw in (tensors["true_hw1"], tensors["true_hw2"]))
    yield from compare(model(*images, turned), tensors)


def check_full_size(golden: Golden) -> Iterator[Check]:
    with torch.device("meta"):
        model = build(golden)
    fill_by_rule(model, keys.DUST3R_KEYS, dtype=golden.dtype)
    images = [undo_normalization(golden.tensors[f"images{number}"]) for number in (1, 2)]
    yield from compare(model(*images), golden.tensors)


def check_preprocessing(golden: Golden) -> Iterator[Check]:
    for name, reference in golden.tensors.items():
        stem, size, *rest = name.split(".")
        mode = "center_square" if size == "224" else "center"
        photo = golden.path.parent / "images" / f"{stem}.png"
        views = geomtx.load_views(photo, mode=mode, size=int(size), patch_size=16)
        golden.tensors.unread.discard(name)
        if rest == ["hw"]:
            yield Check(name, torch.tensor(views.image_hw), reference)
        elif rest == ["normalized"]:
            yield Check(name, normalize_pair_images(views.images[0]), reference)
        else:
            yield Check(name, (views.images[0] * 255).round(), reference)


def check_image_pairs(golden: Golden) -> Iterator[Check]:
    tensors = golden.tensors
    for name in list(tensors):
        count, _, graph = name.partition(".")
        if count == "retrieval":
            continue
        graph, *filters = graph.split(".")
        pairs = choose_pairs(int(count), graph, both_directions="both_directions" in filters)
        for each in filters[:-1]:
            around = int(count) if each.startswith("cyc") else None
            pairs = keep_near(pairs, int(each[3:]), num_images=around)
        yield Check(name, torch.tensor(sorted(pairs.tolist())), tensors[name])
    keys = tensors["retrieval.keys"].tolist()
    similarity = tensors["retrieval.similarity"]
    found = retrieved_pairs(similarity, len(keys), 2, first_key=keys[0], both_directions=False)
    yield Check("retrieval.pairs", found, tensors["retrieval.pairs"])


def both(tensors: dict[str, Tensor], name: str) -> tuple[Tensor, Tensor]:
    """The tensors of both views."""
    return tensors[f"{name}1"], tensors[f"{name}2"]


def settings_of(term: str, options: str, limit: float) -> tuple[PairPointSettings, str]:
    """The settings of a published term, and what is asked of it: "view1", "view2" or the confidence."""
    name, _, rest = options.partition(".")
    shift, scale = ("Shift" in term), ("Scale" in term)
    if term.startswith("metric"):
        true_scale, log = "true_scale" in name, {"log_after": "after", "limit_log_before": "before"}.get(name)
        far = limit if name.startswith("limit") or name == "max_metric" else None
        asked = "confidence" if "confidence" in name else rest
        return PairPointSettings(true_scale=true_scale, log=log, max_metric_scale=far), asked
    norm = "avg_dis" if name in ("normalized", "true_scale") else name
    return PairPointSettings(norm, true_scale=name == "true_scale", shift=shift, scale=scale), rest


def check_losses(golden: Golden) -> Iterator[Check]:
    tensors = golden.tensors
    inputs = [*("points", "confidence", "descriptors", "descriptor_confidence")]
    leaves = {f"{name}{view}": tensors[f"{name}{view}"].requires_grad_() for name in inputs for view in (1, 2)}
    to_camera = torch.linalg.inv(tensors["camera1_to_world"])
    truth = tuple(
        torch.einsum("bij,bhwj->bhwi", to_camera[:, :3, :3], each) + to_camera[:, None, None, :3, 3]
        for each in both(tensors, "gt_points")
    )
    valid, sky = both(tensors, "valid"), both(tensors, "sky")
    first, second = (DenseMap(leaves[f"descriptors{v}"], leaves[f"descriptor_confidence{v}"]) for v in (1, 2))
    matches = both(tensors, "matches")
    computed: dict[str, Tensor] = {}
    with torch.enable_grad():
        for name in [name for name in tensors if name.startswith("loss.")]:
            _, term, options = name.split(".", 2)
            if term == "total" or options == "average_precision":
                continue
            if term == "matching":
                kind, _, rest = options.partition(".")
                how, _, quantile = rest.partition(".")
                settings = MatchingSettings(
                    golden.meta["temperature"],
                    kind,
                    golden.meta.get("matching_alpha", 10.0),
                    how.split("_")[1] if how else None,
                    float(quantile or 0.8) if "negatives" in how else None,
                )
                computed[name] = matching_loss(first, second, matches, tensors["valid_matches"], settings)
                continue
            settings, asked = settings_of(term, options, golden.meta["max_metric_scale"])
            errors = pair_point_errors(
                both(leaves, "points"),
                truth,
                valid,
                settings,
                metric=tensors["is_metric"] if term.startswith("metric") else None,
                sky=sky if "sky" in options else None,
            )
            if asked == "confidence":
                computed[name] = pair_confidence_loss(errors, both(leaves, "confidence"), alpha=golden.meta["alpha"])
            else:
                computed[name] = errors.means()[int(asked[-1]) - 1]
        for name in [name for name in tensors if name.startswith("grad.")]:
            loss, _, leaf = name.replace("grad.", "loss.", 1).rpartition(".")
            (gradient,) = torch.autograd.grad(computed[loss], leaves[leaf], retain_graph=True)
            yield Check(name, gradient, tensors[name])
    for name, value in computed.items():
        yield Check(name, value.detach(), tensors[name])
    clouds = [torch.cat([each.flatten(1, 2) for each in maps], dim=1) for maps in (both(leaves, "points"), truth)]
    mask = torch.cat([each.flatten(1) for each in valid], dim=1)
    if "is_metric_after_limit" in tensors:
        far = reaches(clouds[1], mask, golden.meta["max_metric_scale"])
        yield Check("is_metric_after_limit", tensors["is_metric"] & ~far, tensors["is_metric_after_limit"])
    if "loss.total.mast3r" in tensors:
        total = computed["loss.metric_regression.confidence_sky"]
        total = total + 0.075 * computed["loss.matching.proper.confidence_mean"]
        yield Check("loss.total.mast3r", total.detach(), tensors["loss.total.mast3r"])
        found = matching_precision(first.value, second.value, matches, tensors["valid_matches"], num_others=40)
        yield Check("loss.matching.average_precision", found, tensors["loss.matching.average_precision"])
        clouds = [torch.cat([each.flatten(1, 2) for each in maps], dim=1) for maps in (both(tensors, "points"), truth)]
        mask = torch.cat([each.flatten(1) for each in valid], dim=1)
        factor = cloud_scale(clouds[0].detach(), mask, "avg_dis")
        yield Check("norm_factor.avg_dis", factor, tensors["norm_factor.avg_dis"])
        for kind in ("avg", "median", "weiszfeld"):
            found = fit_cloud_scale(clouds[0].detach(), clouds[1], mask, kind)
            yield Check(f"scaling.{kind}", found, tensors[f"scaling.{kind}"])


CHECKS_PAIRS: dict[str, Callable[[Golden], Iterator[Check]]] = {
    "croco_encoder": check_encoder,
    "croco_decoder_pair": check_decoder_pair,
    "croco_completion": check_completion,
    "dust3r": check_dust3r,
    "mast3r": check_dust3r,
    "dust3r_512": check_full_size,
    "mast3r_512": check_full_size,
    "pairwise_preprocessing": check_preprocessing,
    "image_pairs": check_image_pairs,
    "pairwise_losses": check_losses,
}
