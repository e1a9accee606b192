"""Objectives: one file each, functions from the embeddings [V, A, D] to a scalar.

The imports below are the registry: a class that is named here is a choice of
`--method.objective`, and the tests and the benchmark take it up by themselves.
"""

from .nt_xent import NTXent as NTXent
from .objective import Objective as Objective
from .one_pass import OnePass as OnePass
from .queries import MeanOverQueries as MeanOverQueries
from .smooth_ap import SmoothAP as SmoothAP
