"""Who does the work: this process, processes of this machine, or a Ray cluster."""

from .engine import Engine, Job, Report, Serial
from .processes import Processes
from .ray import Ray
