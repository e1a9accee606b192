"""Objectives: one file each, functions from the embeddings [V, A, D] to a scalar.

The imports below are the registry: a class that is named here is a choice of
`--method.objective`, and the tests and the benchmark take it up by themselves.
"""

from .barlow_twins import BarlowTwins as BarlowTwins
from .blackbox_ap import BlackboxAP as BlackboxAP
from .dcl import DCL as DCL
from .fast_ap import FastAP as FastAP
from .groco import GroCo as GroCo
from .log_ap import LogAP as LogAP
from .nt_xent import NTXent as NTXent
from .objective import Objective as Objective
from .one_pass import OnePass as OnePass
from .quantized_ap import QuantizedAP as QuantizedAP
from .queries import MeanOverQueries as MeanOverQueries
from .smooth_ap import SmoothAP as SmoothAP
from .sup_ap import SupAP as SupAP
from .vicreg import VICReg as VICReg
