"""viewrank for other programs: trained encoders and shard sets, as PyTorch has them.

    encoder, prepare = viewrank.load("runs/mine")            # a run, or its encoder.safetensors
    images = viewrank.as_webdataset("data/mine")             # a webdataset.WebDataset

In a checkout the packages are beside this one; in a wheel they are inside it, see setup.py.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shards.streaming import as_webdataset as as_webdataset
    from training.trained import load as load

_WHERE = {"load": "training.trained", "as_webdataset": "shards.streaming"}
__all__ = ("as_webdataset", "load")


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_WHERE[name]), name)  # here, because it imports torch
