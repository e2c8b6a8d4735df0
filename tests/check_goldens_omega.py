"""Golden files of VGGT-Omega, for `check_goldens.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from check_goldens_da3 import compare_dense
from geomtx.models import VGGTOmega, VGGTOmegaConfig
from geomtx.models.omega.keys import OMEGA_KEYS
from golden_files import Check, Golden, fill_by_rule


def check_model(golden: Golden) -> Iterator[Check]:
    """The whole model of published size with its head for texts, or without it where the file has no embedding."""
    tensors = golden.tensors
    text = "text_alignment_embedding" in tensors
    with torch.device("meta"):
        model = VGGTOmega(VGGTOmegaConfig(heads=("camera", "depth", "text") if text else ("camera", "depth")))
    fill_by_rule(model, OMEGA_KEYS, dtype=golden.dtype)
    tokens = model.encoder(tensors["images"])
    special = tokens.layer(model.config.taps[-1])[:, :, : tokens.num_special]
    yield Check("camera_and_register_tokens", special, tensors["camera_and_register_tokens"])
    found = model.run_heads(lambda head: tokens, ("camera", "depth"))
    yield Check("pose_enc", found.pose_encodings[-1], tensors["pose_enc"])
    yield from compare_dense(
        (found.depth.value[..., None], found.depth.confidence), tensors["depth"], tensors["depth_conf"], "depth"
    )
    if text:
        embedding = model.text_head(tokens)
        yield Check("text_alignment_token", embedding.token, tensors["text_alignment_token"])
        yield Check("text_alignment_embedding", embedding.embedding, tensors["text_alignment_embedding"])


CHECKS_OMEGA: dict[str, Callable[[Golden], Iterator[Check]]] = {"vggt_omega_1b": check_model}
