"""Is a run bound by its input or by its computation, and what would change that?"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.loader import Loader
from pipeline.profile import Profile, milliseconds
from pipeline.tuning import default_threads
from shards.storage import is_remote
from training.processes import local_world_size

# Shares of the time waiting for data: from the first on a run is called input-bound, below the
# second compute-bound; in between it stays what it was.
INPUT, COMPUTE = 0.05, 0.03


@dataclass
class Bottleneck:
    """Watches the records of a run and returns a line when the answer changes.

    Args:
        loader: whose settings the advice is about.
        profile: cost of its stages; None if that was not measured.
    """

    loader: Loader
    profile: Profile | None
    _said: str = ""
    _laps: int = 0

    def update(self, *, data_wait: float, step_seconds: float) -> str | None:
        """Return a line for people if the answer is new; the first lap warms up and does not count.

        Args:
            data_wait: share of the last lap in which training waited for data.
            step_seconds: mean duration of its steps, waiting included.
        """
        self._laps += 1
        bound = "input" if data_wait >= INPUT else "compute" if data_wait < COMPUTE else self._said
        if self._laps == 1 or bound == self._said:
            return None
        self._said = bound
        waiting = f"{data_wait:.1%} of the time waiting for data"
        if bound == "input":
            return f"input-bound: {waiting}; {self.limit()}; {self.advice()}"
        text = f"compute-bound: {waiting}"
        if self.profile is not None:
            feeds, takes = (milliseconds(1000 * x) for x in (self.profile.seconds, step_seconds))
            text += f"; the pipeline alone could feed steps of {feeds} ms, they take {takes} ms"
        return text

    def limit(self) -> str:
        """Return the stage that takes most of the pipeline's time, in words."""
        threads = self.loader.tuning.threads
        where = f"on {threads} thread" + "s" * (threads != 1)
        if self.profile is None:
            return f"the pipeline {where} is the limit"
        stage = self.profile.largest
        share = getattr(self.profile, stage) / max(self.profile.seconds, 1e-9)
        whole = f"{milliseconds(self.profile.seconds * 1000)} ms a batch"
        return f"{stage} {where} is the limit ({share:.0%} of the pipeline's {whole})"

    def advice(self) -> str:
        """Return remedies, most effective first."""
        tuning, gpu = self.loader.tuning, self.loader.device.type == "cuda"
        manifest = self.loader.shard_set.manifest
        stage = self.profile.largest if self.profile is not None else "augment"
        tries: list[str] = []
        cores = default_threads(local_world_size())
        if (tuning.threads or 1) < cores and not (gpu and stage == "augment"):
            tries.append(f"--tuning.threads {cores}")
        if stage == "decode" and not manifest.raw:
            largest = max(group.size for group in self.loader.groups)
            if manifest.statistics.median_shorter_side > 2 * largest:
                tries.append(f"tools.shard … --resize_shorter {2 * largest}")
            elif manifest.statistics.median_shorter_side <= 128:
                tries.append("tools.shard … --encoding raw")
            if gpu:
                tries.append("--tuning.decode cache, if the decoded images fit the GPU")
        elif stage == "read":
            tries.append(_nearer(self.loader.shard_set.root))
        else:
            tries.append("fewer or smaller views, or a policy without blur")
        if self.loader.world_size == 1:  # of one process it measures
            tries.append("python -m tools.tune with this recipe")
        return "try " + ", or ".join(tries)


def _nearer(root: str) -> str:
    """Return what makes reading from a place faster."""
    if is_remote(root):  # docs/scale.md
        return (
            "a copy of the shards on a local disk: DALI asks a store for one file after the other"
        )
    return "a faster or nearer disk for the shards"
