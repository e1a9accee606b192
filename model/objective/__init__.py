"""Objectives: one file each, functions from the embeddings [V, A, D] to a scalar.

The imports below are the registry: a class that is named here is a choice of
`--method.objective`, and the tests and the benchmark take it up by themselves.
"""

from model.objective.barlow_twins import BarlowTwins as BarlowTwins
from model.objective.blackbox_ap import BlackboxAP as BlackboxAP
from model.objective.dcl import DCL as DCL
from model.objective.fast_ap import FastAP as FastAP
from model.objective.groco import GroCo as GroCo
from model.objective.log_ap import LogAP as LogAP
from model.objective.nt_xent import NTXent as NTXent
from model.objective.objective import Objective as Objective
from model.objective.one_pass import OnePass as OnePass
from model.objective.quantized_ap import QuantizedAP as QuantizedAP
from model.objective.queries import MeanOverQueries as MeanOverQueries
from model.objective.smooth_ap import SmoothAP as SmoothAP
from model.objective.sup_ap import SupAP as SupAP
from model.objective.vicreg import VICReg as VICReg
