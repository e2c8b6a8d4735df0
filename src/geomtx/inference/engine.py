"""The driver of a model with one pass over all views of a scene: `predict`.

The model's own `forward` is the plain pass. Here the same parts (`embed`, `run`, `run_heads`) are run in other ways:
some views and tokens at a time, with fewer keys, on several processes, compiled, or recomputed in the backward pass.
Nothing in the model changes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from geomtx.encoder.geometry_conditioning import KnownGeometry, prepare_geometry
from geomtx.encoder.scopes import AttentionTable
from geomtx.heads.head import EachView
from geomtx.inference.attention import attention_table, check_blocks
from geomtx.inference.keys import GlobalApproximation, check_approximation
from geomtx.inference.pieces import LayerReader, embed_in_chunks, heads_in_chunks, move_aside
from geomtx.inference.plan import WHOLE, MemoryPlan, check_plan
from geomtx.inference.shares import Shares
from geomtx.layers.block import Attend
from geomtx.types import Cameras, Predictions, Tokens, show_shapes

__all__ = [
    "EncodedViews",
    "Execution",
    "Inputs",
    "RecomputedBlock",
    "encode",
    "execute",
    "predict",
    "recompute_blocks",
]

RunBlock = Callable[[Any], Any]
"""Function from a block to what is called in its place."""


@show_shapes
class Inputs(NamedTuple):
    """What a model's `check_inputs` returns: its inputs with the B axis, and the names of the heads that run.

    Attributes:
        images: Images, (B, S, 3, H, W).
        query_points: Query points; None for none.
        patch_mask: Mask of the valid patches; None for all.
        heads: Names of the heads.
        cameras: Known cameras of all views, or what else is known of them, for models that take it; None for none.
    """

    images: Tensor
    query_points: Tensor | None
    patch_mask: Tensor | None
    heads: tuple[str, ...]
    cameras: Cameras | KnownGeometry | None = None


class Execution(NamedTuple):
    """How a forward pass is executed. All but an approximation gives the plain pass's result up to rounding.

    Attributes:
        plan: Numbers of views and tokens that are worked on at a time; all by default.
        approximation: Keys that global attention leaves out; nothing by default.
        shares: Division of the views among processes; None for one process with all views.
        run_block: Function from a block to what is called in its place; None for the block itself.
        progress: Called with the share of the pass that is done since the last call; None for no report.
    """

    plan: MemoryPlan = WHOLE
    approximation: GlobalApproximation = GlobalApproximation()
    shares: Shares | None = None
    run_block: RunBlock | None = None
    progress: Callable[[float], None] | None = None


class EncodedViews(NamedTuple):
    """What heads are run on.

    Attributes:
        read: Function from the name of a head to what it reads, `Tokens` or `ProjectedTokens`, called once a head.
        each_view: Function that applies a function of single views to all, see `geomtx.heads.head.run_head`; None for
            one call.
    """

    read: Callable[[str], Any]
    each_view: EachView | None


def predict(
    model: Any,
    images: Tensor,
    query_points: Tensor | None = None,
    patch_mask: Tensor | None = None,
    *,
    heads: tuple[str, ...] | None = None,
    plan: MemoryPlan | None = None,
    approximation: GlobalApproximation | None = None,
    recompute: bool = False,
    cameras: Cameras | KnownGeometry | None = None,
) -> Predictions:
    """Return what `model(images, …)` gives up to rounding, or an approximation of it, executed in another way.

    Args:
        model: A model with one pass over all views, for instance `geomtx.VGGT`.
        images: Images as for the model; with a plan they may be on another device and in another precision.
        query_points: Query points, as for the model's `forward`.
        patch_mask: Mask of patches, as for the model's `forward`.
        heads: Names of heads, as for the model's `forward`.
        plan: Work on some views or tokens at a time, without gradients, see `MemoryPlan`; defaults to all at once.
        approximation: Keys that global attention leaves out, see `GlobalApproximation`; defaults to nothing.
        recompute: Compute the activations within blocks again in the backward pass instead of keeping them (gradient
            checkpointing, Chen et al. 2016). Without effect where no gradients are recorded.
        cameras: Known cameras of all views, or what else is known of them, for models whose `forward` takes it.

    Raises:
        ValueError: As the model; for numbers of a plan or an approximation that mean nothing, and blocks that can't be
            run so.
        RuntimeError: For a plan with a `token_chunk` where gradients are recorded.
    """
    known = {} if cameras is None else {"cameras": cameras}
    inputs = Inputs(*model.check_inputs(images, query_points, patch_mask, heads, **known))
    execution = Execution(
        plan=WHOLE if plan is None else plan,
        approximation=GlobalApproximation() if approximation is None else approximation,
        run_block=RecomputedBlock if recompute else None,
    )
    return execute(model, inputs, execution)


def recompute_blocks(attend: AttentionTable) -> AttentionTable:
    """Return a table that runs blocks with gradient checkpointing: activations within a block are computed twice."""
    return {scope: _with_block(run, RecomputedBlock) for scope, run in attend.items()}


def execute(model: Any, inputs: Inputs, execution: Execution) -> Predictions:
    """Run a model's embedding, blocks and heads as `execution` says.

    Args:
        model: The model.
        inputs: Checked inputs, of all views, on any device.
        execution: Way of executing the pass.

    Returns:
        Predictions; with `shares`, cameras and tracks of all views, and maps of this process's views.

    Raises:
        ValueError: As `predict`.
        RuntimeError: As `predict`.
    """
    _check_execution(model.encoder, execution)
    shares, query_points = execution.shares, inputs.query_points
    report = _Reports(model, inputs, execution)
    encoded = _encode(model, inputs, execution, report)
    return model.run_heads(
        report.heads(encoded.read),
        inputs.heads,
        None if query_points is None else query_points.to(next(model.parameters()).device),
        each_view=encoded.each_view,
        gather=None if shares is None else partial(shares.gather, dim=1),
    )


def encode(model: Any, inputs: Inputs, execution: Execution) -> EncodedViews:
    """Run a model's embedding and blocks alone, for a caller that runs the heads that `inputs` names.

    Args:
        model: The model.
        inputs: Checked inputs, of all views, on any device.
        execution: Way of executing the pass.

    Raises:
        ValueError: As `predict`.
        RuntimeError: As `predict`.
    """
    _check_execution(model.encoder, execution)
    return _encode(model, inputs, execution, _Reports(model, inputs, execution))


def _encode(model: Any, inputs: Inputs, execution: Execution, report: _Reports) -> EncodedViews:
    plan, approximation, shares, run_block, _ = execution
    here = slice(None) if shares is None else shares.here
    parameter = next(model.parameters())
    device, in_pieces = parameter.device, plan.token_chunk is not None
    images = inputs.images[:, here]
    if in_pieces:
        assert plan.view_chunk is not None, "check_plan has passed"
        each_view: Callable[..., Tensor] = embed_in_chunks(device, parameter.dtype, plan.view_chunk)
    else:
        images, each_view = images.to(device), _call
    if run_block is not None or execution.progress is not None:
        each_view = _with_backbone_blocks(model.encoder.backbone, each_view, report, run_block)
    views = model.encoder.embed(
        images,
        patch_mask=None if inputs.patch_mask is None else inputs.patch_mask[:, here].to(device),
        first_view=0 if shares is None else shares.start,
        each_view=each_view,
        **_of_all_views(model, inputs, execution, device),
    )
    table = attention_table(model.encoder, views, plan, approximation, shares)
    attend = {scope: report.after(_with_block(run, run_block)) for scope, run in table.items()}
    tokens = views.without_layers()
    if in_pieces:
        modules = {name: head for name, head in model.head_modules().items() if name in inputs.heads}
        modules = {name: head for name, head in modules.items() if name == _first_name(modules, head)}
        reader = LayerReader(modules, model.encoder.taps, plan, model.encoder.join)
        layers = model.encoder.run(views.x, attend, reader.taps, keep=move_aside(plan))
        del views  # the first input of the blocks need not outlive the first block
        reader.read_all(tokens, layers)
        read: Callable[[str], Any] = reader.read
    else:
        layers = model.encoder.run(views.x, attend, model.taps_of(inputs.heads))
        del views
        tokens = tokens._replace(layers=dict(map(model.encoder.join_layer, layers)))
        read = partial(_same, tokens)
    return EncodedViews(read, None if plan == WHOLE and shares is None else heads_in_chunks(device, plan))


def _of_all_views(model: Any, inputs: Inputs, execution: Execution, device: torch.device) -> dict[str, Any]:
    """Return what an encoder that looks at all views before its first block is given besides."""
    shares = execution.shares
    if isinstance(inputs.cameras, KnownGeometry):
        here = slice(None) if shares is None else shares.here
        mask = None if inputs.patch_mask is None else inputs.patch_mask[:, here].to(device)
        image_hw = (inputs.images.shape[-2], inputs.images.shape[-1])
        chunk = None if execution.plan.token_chunk is None else execution.plan.view_chunk
        return model.condition(prepare_geometry(inputs.cameras).take_views(here), image_hw, mask, chunk)
    if inputs.cameras is not None:
        tokens = model.encode_cameras(inputs.cameras.to(device), (inputs.images.shape[-2], inputs.images.shape[-1]))
        return {"camera_tokens": tokens if shares is None else tokens[:, shares.here]}
    if shares is None or getattr(model.encoder, "reference", None) is None:
        return {}
    return {"gather": partial(shares.gather, dim=1)}


def _check_execution(encoder: Any, execution: Execution) -> None:
    plan, approximation, shares, *_ = execution
    check_plan(plan)
    check_approximation(approximation, len(encoder.global_blocks))
    if plan.token_chunk is not None:
        if torch.is_grad_enabled():
            raise RuntimeError("chunks of tokens are overwritten, which gradients can't follow; use torch.no_grad()")
        check_blocks(encoder.global_blocks, "chunks of tokens")
    if approximation.has_fewer_keys:
        check_blocks(encoder.global_blocks, "fewer keys")
    if shares is not None:
        check_blocks(encoder.global_blocks, "several processes")
    if any("cross" in layer for layer in encoder.order):
        if approximation != GlobalApproximation():
            raise ValueError(f"approximation must be None with the scope 'cross', got {approximation}")
        if shares is not None:
            raise ValueError("order must be without the scope 'cross' to be shared by processes, got one with it")


def _call(function: Callable[..., Any], *args: Any) -> Any:
    return function(*args)


def _first_name(heads: Mapping[str, nn.Module], head: nn.Module) -> str:
    """Return the first of the names that a head goes by; a head of several maps is read once, under this name."""
    return next(name for name, each in heads.items() if each is head)


def _same(tokens: Tokens, head: str) -> Tokens:
    """Return what every head reads where the layers are kept whole."""
    return tokens


class RecomputedBlock(NamedTuple):
    """A block whose activations are computed again in the backward pass (gradient checkpointing)."""

    block: Any

    def __call__(self, x: Tensor, **options: Any) -> Tensor:
        """Return `block(x, **options)`."""
        return checkpoint(self.block, x, use_reentrant=False, **options)

    def project_keys(self, x: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
        """Return `block.project_keys(x, **options)`."""
        return checkpoint(self.block.project_keys, x, use_reentrant=False, **options)

    def attend_to(self, x: Tensor, keys: Tensor, values: Tensor, **options: Any) -> Tensor:
        """Return `block.attend_to(x, keys, values, **options)`."""
        return checkpoint(self.block.attend_to, x, keys, values, use_reentrant=False, **options)


def _with_block(attend: Attend, run_block: RunBlock | None) -> Attend:
    """Run `attend` with something else in place of every block."""
    if run_block is None:
        return attend
    return lambda number, block, x: attend(number, run_block(block), x)


def _with_backbone_blocks(
    backbone: nn.Module, each_view: Callable[..., Tensor], report: _Reports, run_block: RunBlock | None
) -> Callable[..., Tensor]:
    """Let a backbone with blocks of its own run them with something in their place."""
    if not hasattr(backbone, "blocks"):
        return each_view

    def run(block: Any) -> Callable[..., Tensor]:
        return report.backbone_block(block if run_block is None else run_block(block))

    def with_blocks(function: Callable[..., Tensor], images: Tensor, mask: Tensor | None) -> Tensor:
        return each_view(partial(function, run_block=run), images, mask)

    return with_blocks


class _Reports:
    """Reports the progress of a pass, in blocks and heads that are done."""

    def __init__(self, model: Any, inputs: Inputs, execution: Execution) -> None:
        images, heads, shares = inputs.images, inputs.heads, execution.shares
        num_views = images[:, slice(None) if shares is None else shares.here].shape[:2].numel()
        self.progress = execution.progress
        chunk = execution.plan.view_chunk if execution.plan.token_chunk is not None else None
        self.num_chunks = 1 if chunk is None else -(-num_views // chunk)
        depth = len(getattr(model.encoder.backbone, "blocks", ()))
        layers = model.encoder.order[: max(model.taps_of(heads), default=-1) + 1]
        self.total = depth + sum(map(len, layers)) + len(heads)

    def after(self, attend: Attend) -> Attend:
        """Report every block that mixes views once it is done."""
        if self.progress is None:
            return attend

        def run(number: int, block: Any, x: Tensor) -> Tensor:
            x = attend(number, block, x)
            self._advance(1)
            return x

        return run

    def backbone_block(self, block: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """Report a block of the backbone, which runs once for every chunk of views."""

        def run(x: Tensor, **options: Any) -> Tensor:
            x = block(x, **options)
            self._advance(1 / self.num_chunks)
            return x

        return block if self.progress is None else run

    def heads(self, read: Callable[[str], Any]) -> Callable[[str], Any]:
        """Report every head when it begins to read."""

        def run(head: str) -> Any:
            self._advance(1)
            return read(head)

        return read if self.progress is None else run

    def _advance(self, steps: float) -> None:
        assert self.progress is not None, "asked for only where there is a report"
        self.progress(steps / self.total)
