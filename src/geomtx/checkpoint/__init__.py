"""Files of weights: reading and writing, names of parameters, adapters."""

from geomtx.checkpoint.files import Checkpoint, load_weights, open_checkpoint, save_model, share_parameters

__all__ = ["Checkpoint", "load_weights", "open_checkpoint", "save_model", "share_parameters"]
