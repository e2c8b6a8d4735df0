"""How models are run: memory plans, fewer keys, several processes, compilation, quantised weights."""

from geomtx.inference.chunks import track_in_chunks
from geomtx.inference.engine import predict, recompute_blocks
from geomtx.inference.keys import GlobalApproximation
from geomtx.inference.pair_maps import PairMaps
from geomtx.inference.parallel import predict_parallel
from geomtx.inference.plan import LEAN_PLAN, PLANS, MemoryPlan
from geomtx.inference.quantize import quantize_model
from geomtx.inference.run import RunOptions
from geomtx.inference.shares import deal_out

__all__ = [
    "LEAN_PLAN",
    "PLANS",
    "GlobalApproximation",
    "MemoryPlan",
    "PairMaps",
    "RunOptions",
    "deal_out",
    "predict",
    "predict_parallel",
    "quantize_model",
    "recompute_blocks",
    "track_in_chunks",
]
