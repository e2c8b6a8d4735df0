"""What any head of one's own can rely on, see `geomtx.heads.Head`."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import geomtx
from families import FAMILIES, build
from geomtx.heads import DenseHead, Head, LinearMapHead, SpecialTokenHead, run_view_by_view
from geomtx.heads.head import runs_in_parts
from geomtx.inference import MemoryPlan, predict

IN_PARTS = MemoryPlan(view_chunk=2, token_chunk=7, output_device="cpu")


class MeanOfViews(Head):
    """No parameters; each view by itself."""

    run_in_parts = run_view_by_view

    def forward(self, tokens: geomtx.Tokens) -> Tensor:
        return tokens.layer(max(tokens.layers))[..., :3].mean(2)


class MeanOfScene(MeanOfViews):
    """A result of all views, which parts don't give."""

    def forward(self, tokens: geomtx.Tokens) -> Tensor:
        return super().forward(tokens).mean(1)


class Special(Head):
    reads = "special"
    run_in_parts = run_view_by_view

    def forward(self, tokens: geomtx.Tokens) -> Tensor:
        return tokens.layer(max(tokens.layers))[:, :, 0]

    def layers_read(self, taps: tuple[int, ...]) -> tuple[int, ...]:
        return taps[-1:]


class NearestPatch(Head):
    """Tokens under query points."""

    takes_queries = True

    def forward(self, tokens: geomtx.Tokens, query_points: Tensor) -> Tensor:
        place = (query_points[..., -1] // 14 * tokens.grid_hw[1] + query_points[..., -2] // 14).long()
        patches = tokens.layer(max(tokens.layers))[:, 0, tokens.num_special :]
        return torch.stack([each[where] for each, where in zip(patches, place, strict=True)])


def test_who_runs_in_parts():
    assert runs_in_parts(MeanOfViews())
    assert runs_in_parts(SpecialTokenHead(8))
    assert not runs_in_parts(MeanOfScene()), "its forward is its own, and it doesn't say how that is done in parts"
    assert not runs_in_parts(Head())
    assert not runs_in_parts(torch.nn.Identity())


@torch.no_grad()
@pytest.mark.parametrize("family", [name for name, family in FAMILIES.items() if not family.variant])
def test_heads_in_parts(family: str):
    model = build(family)
    for name, head in (("views", MeanOfViews()), ("scene", MeanOfScene()), ("special", Special())):
        model.add_head(name, head)
    side = FAMILIES[family].patch_size
    images = torch.rand(2, 3, 3, 2 * side, 3 * side)
    whole = model(images, heads=("views", "scene", "special")).extra
    found = predict(model, images, heads=("views", "scene", "special"), plan=IN_PARTS).extra
    for name, value in whole.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5, msg=name)


@torch.no_grad()
def test_query_points_reach_a_head_that_takes_them():
    model = build("da3")
    model.add_head("under", NearestPatch())
    images = torch.rand(2, 3, 3, 28, 42)
    assert model(images).extra is None
    with pytest.raises(ValueError, match=r"^query_points must be given for the head 'under', got None"):
        model(images, heads=("under",))
    queries = torch.tensor([[[3.0, 20.0]], [[41.0, 1.0]]])
    found = model(images, queries, heads=("under",)).extra["under"]
    last = model.encoder(images).layer(max(model.encoder.taps))
    first = model.encoder.special.num_tokens
    torch.testing.assert_close(
        found, torch.stack([last[0, 0, first + 3 : first + 4], last[1, 0, first + 2 : first + 3]])
    )


def test_what_a_head_cannot_read():
    model = build("da3")
    last = len(model.encoder.order) - 1
    decoder = geomtx.DPTDecoder(64, 16, channels=(16, 16, 32, 32), taps=(0, 1, 2, 99))
    for head in (DenseHead(decoder, 3), LinearMapHead(64, 3, layer=99, patch_size=14)):
        with pytest.raises(
            ValueError, match=f"^head must read layers of the encoder, from 0 to {last}, got .*99 in 'a'"
        ):
            model.add_head("a", head)

    class Projected(Head):
        reads = "projections"

    with pytest.raises(
        ValueError, match=r"^head must have a `decoder`, a DPTDecoder, to read projections, got none in 'a'"
    ):
        model.add_head("a", Projected())
