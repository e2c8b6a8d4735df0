"""How models are run: memory plans, fewer keys, several processes, compilation, quantised weights."""

from geomtx.inference.chunks import track_in_chunks
from geomtx.inference.engine import predict, recompute_blocks
from geomtx.inference.keys import GlobalApproximation
from geomtx.inference.pair_graphs import choose_pairs, default_graph, keep_near, retrieved_pairs
from geomtx.inference.pair_maps import PairedView, PairMaps, PairModel, PairPrediction
from geomtx.inference.pairs import PairBatch, PairMemory, PairOptions, PairStore, predict_pairs, run_pairs
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
    "PairBatch",
    "PairMaps",
    "PairMemory",
    "PairModel",
    "PairOptions",
    "PairPrediction",
    "PairStore",
    "PairedView",
    "RunOptions",
    "choose_pairs",
    "deal_out",
    "default_graph",
    "keep_near",
    "predict",
    "predict_pairs",
    "predict_parallel",
    "quantize_model",
    "recompute_blocks",
    "retrieved_pairs",
    "run_pairs",
    "track_in_chunks",
]
