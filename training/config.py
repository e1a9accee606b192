"""A run's configuration: typed, checked before any device is touched, read from YAML and flags."""

from __future__ import annotations

import importlib.util
import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

import torch

from model.method import JointEmbedding, Method
from pipeline.graph import ViewGroup
from pipeline.tuning import Tuning


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that a run depends on."""

    shards: str
    """Shard set to train on, made by `python -m tools.shard`: a folder, or a URL like s3://…"""
    run: Path
    """Folder of the run: configuration, metrics, checkpoints. The same command continues it."""

    views: ViewGroup
    """The views of every sample."""
    more_views: list[ViewGroup] = field(default_factory=list)
    """Further view groups of the same decoded image: small crops, or a second policy."""
    batch_size: int = 256
    """Samples a step over all ranks; times the views, this is how many embeddings are ranked."""

    micro_batch_size: int | None = None
    """Samples over all ranks whose activations exist at once; none, the whole batch. The gradient
    stays that of the whole batch, for a third more time (gradient caching), but batch norm sees
    micro-batches."""

    method: Method
    """Training method with its encoder and objective."""

    optimizer: Literal["sgd", "adamw", "lars"] = "adamw"
    """Norms and biases get no weight decay."""
    learning_rate: float = 1e-3
    """Highest learning rate, after the warm-up."""
    weight_decay: float = 1e-4
    """Decoupled in adamw, part of the gradient in sgd and lars."""
    momentum: float = 0.9
    """Of sgd and lars; the first moment of adamw."""
    warmup_epochs: float = 0.0
    """Epochs of linear warm-up; a cosine to zero follows."""
    clip_gradient_norm: float | None = None
    """Largest norm of the whole gradient; none leaves it as it is."""
    max_skipped_steps: int = 10
    """A step whose gradient is not finite changes nothing and is counted; after so many in a row,
    up to a record or a checkpoint, the run ends and leaves a dump for `python -m tools.replay`."""

    epochs: float | None = None
    """Length of the run in passes over the shard set; give this or `steps`."""
    steps: int | None = None
    """Length of the run in optimizer steps; give this or `epochs`."""
    max_seconds: float | None = None
    """Stop earlier after this much training time, resumed parts included."""

    device: Literal["auto", "cpu", "gpu"] = "auto"
    """auto is the GPU if there is one."""
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    """Precision of the networks; scores and losses are float32 always. auto is bf16 where the GPU
    or the CPU (AMX) multiplies it in hardware, else no."""
    compile: bool = False
    """Compile the encoder with torch.compile; evaluations run it as it is written."""
    deterministic: bool = False
    """On a GPU, kernels that give the same bits each time, where PyTorch has them, and a warning
    where not: a run that is continued is then the uninterrupted one to the bit, as it is on the CPU
    anyway; slower."""
    sync_batch_norm: bool = True
    """With several GPUs, batch norm over all ranks' views; PyTorch's own waits in every layer."""
    seed: int = 0
    """Of the weights, the order of the samples and every view."""
    shuffle_buffer: int = 8192
    """Samples held for shuffling, on top of the shuffled order of the shards."""
    tuning: Tuning = field(default_factory=Tuning)
    """How the pipeline runs on this machine."""
    tuned: str = "auto"
    """Where settings of `tuning` that are not given come from. auto: what `python -m tools.tune`
    found for this machine and load, if it was run; none: the defaults; or a YAML file of its."""
    check_shards: bool = True
    """While training, compare each shard with its hash once, and warn; reads 200 MB/s at most."""
    check_memory: bool = True
    """Reckon before training what memory a step needs, and refuse what the device does not have."""
    profile_seconds: float = 1.5
    """How long the pipeline's stages are measured before training; 0, not at all."""
    self_check: bool = True
    """On a GPU, compare its decoder and its kernel with the CPU's on one batch before training;
    --no_self_check is short for false."""

    log_every: int = 10
    """Steps between two records; between them the host never waits for the device."""
    checkpoint_every: int = 500
    """Steps between two checkpoints; the last step is always saved."""
    keep_checkpoints: int = 2
    """How many of the newest checkpoints stay; two, because the last may be being written."""
    keep_every: int = 0
    """Steps between checkpoints that stay for good, a multiple of `checkpoint_every`; 0, none."""
    hang_seconds: float = 600.0
    """How long a step may take before the rank that all others wait for is named and the job ended,
    so that a launcher can start it again; so long the ranks may take to meet, and ten times as long
    what precedes the first step, an evaluation and a checkpoint; as long as it takes, the end of a
    run and the search for what cannot be read; 0, for ever."""
    max_bad_samples: int = 0
    """How many samples may turn out to be unreadable: they are named and left out, by all ranks,
    and the run starts again from its last checkpoint; one more ends it."""
    reshape_data: bool = False
    """Continue with another batch size, number of processes or shard set: the epoch that the run
    was in is begun anew. Else that is refused, for it would not be the same run."""
    evaluate_every: float | None = None
    """Epochs between two evaluations; none evaluates at the end only."""
    evaluation_test: str | None = None
    """Held-out shard set that is ranked and, if labelled, classified; none, no evaluation."""
    evaluation_train: str | None = None
    """Labelled shard set for k-NN and the linear probe; none skips both."""
    evaluation_neighbours: int = 20
    """Votes of k-NN for a test sample; papers have 20 to 200."""
    evaluation_temperature: float = 0.07
    """Of k-NN's votes, exp(s / T)."""
    evaluation_queries: str | None = None
    """Edited copies to find in `evaluation_references`, by `python -m tools.shard copies`."""
    evaluation_references: str | None = None
    """Shard set that is searched for the originals of `evaluation_queries`."""
    trackers: list[Literal["tensorboard", "wandb"]] = field(default_factory=list)
    """Where else records go, by Accelerate's trackers."""

    def __post_init__(self) -> None:
        for each in fields(self):  # YAML's null passes for a value of any type
            if getattr(self, each.name) is None and "None" not in str(each.type):
                raise ValueError(f"{each.name}=null, but it needs a value; without, leave it out.")
        if (self.epochs is None) == (self.steps is None):
            raise ValueError(
                f"epochs={self.epochs} and steps={self.steps}: the length of the run is set by "
                "exactly one of them. Give --epochs or --steps (none for the other)."
            )
        positive = ("batch_size", "log_every", "checkpoint_every", "keep_checkpoints")
        positive += ("evaluation_neighbours", "evaluation_temperature")
        positive += ("epochs", "steps", "max_seconds", "evaluate_every")
        positive += ("micro_batch_size", "max_skipped_steps")
        positive += ("shuffle_buffer", "learning_rate", "clip_gradient_norm")
        for name in positive:
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name}={value}, but it must be above 0.")
        no_less = ("warmup_epochs", "weight_decay", "momentum", "seed", "profile_seconds")
        for name in (*no_less, "keep_every", "hang_seconds", "max_bad_samples"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)}, but it must not be negative.")
        if self.keep_every % self.checkpoint_every:
            raise ValueError(
                f"keep_every={self.keep_every}, but there is a checkpoint only at every "
                f"{self.checkpoint_every}th step (checkpoint_every); give a multiple of that, or 0."
            )
        if self.momentum >= 1:
            raise ValueError(f"momentum={self.momentum}, but it must be below 1; 0.9 is usual.")
        if self.evaluation_train is not None and self.evaluation_test is None:
            raise ValueError(
                f"evaluation_train={self.evaluation_train} is the k-NN bank, but there is nothing "
                "to classify with it; give --evaluation_test too."
            )
        if (self.evaluation_queries is None) != (self.evaluation_references is None):
            raise ValueError(
                f"evaluation_queries={self.evaluation_queries} and evaluation_references="
                f"{self.evaluation_references}: copy detection needs both. Give the two sets of "
                "python -m tools.shard copies, or neither."
            )
        if self.evaluation_queries is not None and self.evaluation_test is None:
            raise ValueError(
                f"evaluation_queries={self.evaluation_queries}, but evaluations begin with a "
                "held-out set; give --evaluation_test too (the references will do)."
            )
        for name in self.trackers:
            if importlib.util.find_spec(name) is None:  # Accelerate would say nothing
                raise ValueError(
                    f"trackers=[{name}], but the package {name} is not installed. Install it with "
                    f"uv pip install {name}, or leave it out."
                )
        if self.device == "gpu" and not self.on_gpu:
            raise ValueError(
                "device=gpu, but PyTorch finds no GPU here, or ACCELERATE_USE_CPU is set. "
                "Set --device auto or cpu, or check "
                "nvidia-smi and that the driver is new enough for "
                f"CUDA {torch.version.cuda or '(this PyTorch is a CPU build)'}."
            )
        if self.mixed_precision == "fp16" and not self.on_gpu:
            raise ValueError(
                "mixed_precision=fp16 needs a GPU; on the CPU set --mixed_precision bf16 or no."
            )
        if self.micro_batch_size is not None:
            self._refuse_micro_batches(self.micro_batch_size)
        self.method.refuse(
            counts=tuple(group.count for group in self.groups),
            sizes=tuple(group.size for group in self.groups),
            batch_size=self.batch_size,
        )

    @property
    def groups(self) -> tuple[ViewGroup, ...]:
        """All view groups."""
        return (self.views, *self.more_views)

    def batch_size_per_rank(self, world_size: int) -> int:
        """Return samples a step on each rank.

        Raises:
            ValueError: the batch does not divide.
        """
        if self.batch_size % world_size:
            fitting = self.batch_size // world_size * world_size or world_size
            raise ValueError(
                f"batch_size={self.batch_size} is not divisible by world_size={world_size}; "
                f"try {fitting}."
            )
        return self.batch_size // world_size

    def _refuse_micro_batches(self, size: int) -> None:
        if not isinstance(self.method, JointEmbedding):
            raise ValueError(
                f"micro_batch_size={size}, but {type(self.method).__name__} does not embed its "
                "views independently of what it compares them with; gradient caching needs "
                "--method JointEmbedding. Leave it out, and lower --batch_size."
            )
        if self.batch_size % size:
            fitting = next(n for n in range(size, 0, -1) if self.batch_size % n == 0)
            raise ValueError(
                f"batch_size={self.batch_size} is not divisible by micro_batch_size={size}; "
                f"try {fitting}."
            )

    def micro_batch_size_per_rank(self, world_size: int) -> int | None:
        """Return samples of a micro-batch on each rank; none if the batch is not divided.

        Raises:
            ValueError: a micro-batch does not divide.
        """
        size = self.micro_batch_size
        if size is None:
            return None
        if size % world_size:
            raise ValueError(
                f"micro_batch_size={size} is not divisible by world_size={world_size}; "
                f"try {max(1, size // world_size) * world_size}."
            )
        return size // world_size

    @property
    def on_gpu(self) -> bool:
        """Whether this run is meant for a GPU, and there is one."""
        return self.device != "cpu" and gpu_available()

    def autocast(self) -> torch.dtype | None:
        """Return the type that networks compute in under mixed precision, or none."""
        return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.precision())

    def precision(self) -> Literal["no", "bf16", "fp16"]:
        """Return the mixed precision that is meant on this machine."""
        if self.mixed_precision != "auto":
            return self.mixed_precision
        if self.on_gpu:
            return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
        try:
            flags = Path("/proc/cpuinfo").read_text()
        except OSError:  # no Linux
            return "no"
        return "bf16" if "amx_bf16" in flags else "no"

    def uncompiled(self) -> AbstractContextManager[object]:
        """Return a context in which what is compiled runs as it is written.

        For what is seldom done, with shapes of its own: compiling takes longer.
        """
        return torch.compiler.set_stance("force_eager") if self.compile else nullcontext()


def gpu_available() -> bool:
    """Whether Accelerate will find a GPU: there is one, and its CPU switch is off."""
    switch = os.environ.get("ACCELERATE_USE_CPU", "false").lower()
    return switch not in ("1", "true", "yes", "on", "y", "t") and torch.cuda.is_available()
