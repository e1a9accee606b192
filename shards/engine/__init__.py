"""Who does the work: this process, processes of this machine, or a Ray cluster."""

from shards.engine.engine import Engine, Job, Report, Serial, Totals
from shards.engine.ray import Ray
from shards.engine.workers import LocalWorkers
