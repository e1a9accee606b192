"""A run's configuration: typed, checked before any device is touched, read from YAML and flags."""

from __future__ import annotations

import math
import os
import re
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

import torch

from model.method import JointEmbedding, Method
from pipeline.graph import ViewGroup
from pipeline.normalisation import Normalisation
from pipeline.setting import setting
from pipeline.tuning import Tuning
from training import step_capture

EVALUATION_SETS = (
    *("evaluation_test", "evaluation_train", "evaluation_queries"),
    "evaluation_references",
)
"""Settings that name shard sets to evaluate on."""
SHARD_SETS = ("shards", *EVALUATION_SETS)
"""All settings that name shard sets."""
BF16_FLAGS = {"amx_bf16", "avx512_bf16"}
"""Of CPUs that multiply bfloat16 in hardware: a step is 1.3 to 1.6 times as fast in it."""
Tracker = Literal[
    "aim",
    "clearml",
    "comet_ml",
    "dvclive",
    "mlflow",
    "swanlab",
    "tensorboard",
    "trackio",
    "wandb",
]
"""What Accelerate knows."""
_PACKAGES = {"comet_ml": "comet-ml", "aim": "aim<4"}
"""Packages of trackers with another name, or that Accelerate does not know all versions of."""
_LENGTH = "--seconds or --image_views"  # of a comparison


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that a run depends on."""

    shards: str = setting(resume="reshaped", compare="own")
    """Shard set to train on, made by `python -m tools.shard`: a folder, or a URL like s3://…"""
    run: Path = setting(resume="free", compare="set", flag="--out")
    """Folder of the run: configuration, metrics, checkpoints. The same command continues it."""

    views: ViewGroup = setting(resume="same", compare="own")
    """The views of every sample."""
    more_views: list[ViewGroup] = setting(factory=list, resume="same", compare="own")
    """Further view groups of the same decoded image: small crops, or a second policy."""
    batch_size: int = setting(256, resume="reshaped", compare="own", above=0)
    """Samples a step over all ranks; times the views, this is how many embeddings are ranked."""

    micro_batch_size: int | None = setting(None, resume="reshaped", compare="own", above=0)
    """Samples over all ranks whose activations exist at once; None: the whole batch. The gradient
    stays that of the whole batch and takes a third more time (gradient caching). Batch norm sees
    micro-batches."""

    method: Method = setting(resume="same", compare="own")
    """Training method with its encoder and objective."""

    weights: str | None = setting(None, resume="free", compare="own")
    """What the encoder begins with: a file of published weights (.safetensors, .pth), the folder of
    a run or of one of its checkpoints, or timm:NAME, which downloads them; None: random weights. A
    run that continues does not need it any more."""
    weights_sha256: str | None = setting(None, resume="same", compare="own")
    """SHA-256 of that file. A run writes it here; given, another file is refused."""
    weights_license: str | None = setting(None, resume="free", compare="own")
    """Licence of these weights, for the exported encoder; by default what their file says."""

    optimizer: Literal["sgd", "adamw", "lars"] = setting("adamw", resume="same", compare="own")
    """Norms and biases get no weight decay."""
    learning_rate: float = setting(1e-3, resume="same", compare="own", above=0)
    """Highest learning rate, after the warm-up."""
    encoder_rate: float = setting(1.0, resume="same", compare="own", above=0)
    """Share of the learning rate that the encoder gets: below 1 to keep more of its `weights`."""
    layer_decay: float = setting(1.0, resume="same", compare="own", above=0)
    """Each of the encoder's layers gets this share of the rate of the layer above it; with
    published `weights`, 0.65 to 0.9 is usual."""
    weight_decay: float = setting(1e-4, resume="same", compare="own", at_least=0)
    """Decoupled in adamw, part of the gradient in sgd and lars."""
    momentum: float = setting(0.9, resume="same", compare="own", at_least=0)
    """Of sgd and lars; the first moment of adamw."""
    warmup_epochs: float = setting(0.0, resume="same", compare="own", at_least=0)
    """Epochs of linear warm-up; a cosine to zero follows."""
    clip_gradient_norm: float | None = setting(None, resume="same", compare="own", above=0)
    """Largest norm of the whole gradient; None leaves it as it is."""
    max_skipped_steps: int = setting(10, resume="free", compare="own", above=0)
    """A step whose gradient is not finite changes nothing and is counted. After so many in a row,
    the run ends at its next record and leaves a dump for `python -m tools.replay`."""

    epochs: float | None = setting(None, resume="same", compare="set", flag=_LENGTH, above=0)
    """Length of the run in passes over the shard set; give this or `steps`, or neither."""
    steps: int | None = setting(None, resume="same", compare="set", flag=_LENGTH, above=0)
    """Length of the run in optimizer steps; give this or `epochs`, or neither."""
    max_seconds: float | None = setting(
        None, resume="free", compare="set", flag="--seconds", above=0
    )
    """Stop after this much training time, resumed parts included. Without `epochs` and `steps` this
    is the length of the run, and the learning rate follows the time: any machine, however busy,
    ends the schedule in it."""

    device: Literal["auto", "cpu", "gpu"] = setting("auto", resume="same", compare="own")
    """auto is the GPU if there is one."""
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = setting(
        "auto", resume="same", compare="own"
    )
    """Precision of the networks; scores and losses are float32 always. auto is bf16 where the GPU
    or the CPU (AMX, or AVX-512 with bf16) multiplies it in hardware, else no."""
    compile: bool = setting(False, resume="same", compare="own", switch=True)
    """Compile the encoder with torch.compile; evaluations run it as it is written."""
    compile_mode: Literal["default", "reduce-overhead", "max-autotune"] = setting(
        "default", resume="same", compare="own"
    )
    """With `compile`: reduce-overhead launches the encoder as CUDA graphs; max-autotune chooses its
    kernels by trying many, too, for minutes at the start."""
    capture_step: bool = setting(False, resume="same", compare="own", switch=True)
    """On one GPU, record the whole step as one CUDA graph and replay it; the CPU has none."""
    deterministic: bool = setting(False, resume="same", compare="own")
    """On a GPU, use kernels that give the same bits each time, and warn where PyTorch has none.
    Slower. A continued run then equals the uninterrupted one to the bit, as it always does on the
    CPU."""
    sync_batch_norm: bool = setting(True, resume="same", compare="own", switch=True)
    """With several processes, batch norm over the views of all, as one process would have it; else
    each has statistics of its own rank's."""
    seed: int = setting(0, resume="same", compare="set", flag="--seeds", at_least=0)
    """Of the weights, the order of the samples and every view."""
    shuffle_buffer: int = setting(8192, resume="reshaped", compare="own", above=0)
    """Samples held for shuffling, on top of the shuffled order of the shards."""
    tuning: Tuning = setting(factory=Tuning, resume="same", compare="own")
    """How the pipeline runs on this machine."""
    tuned: str = setting("auto", resume="free", compare="own")
    """Where settings of `tuning` come from that are not given. auto: what `python -m tools.tune`
    found for this machine and load, if it was run; none: the defaults; or a YAML file it wrote."""
    check_shards: bool = setting(True, resume="free", compare="own", switch=True)
    """While training, compare each shard with its hash once, and warn; reads 200 MB/s at most."""
    check_memory: bool = setting(True, resume="free", compare="own", switch=True)
    """Compute before training what memory a step needs; refuse a batch that does not fit."""
    profile_seconds: float = setting(1.5, resume="free", compare="set", at_least=0)
    """How long the pipeline's stages are measured before training; 0: not at all."""
    self_check: bool = setting(True, resume="free", compare="own", switch=True)
    """On a GPU, compare its decoder and its kernel with the CPU's on one batch before training."""

    log_every: int = setting(10, resume="free", compare="own", above=0)
    """Steps between two records; between them the host never waits for the device."""
    checkpoint_every: int = setting(500, resume="free", compare="set", above=0)
    """Steps between two checkpoints; the last step is always saved. Where time is the length of the
    run (`max_seconds` alone), so is each step after which an evaluation is made."""
    keep_checkpoints: int = setting(2, resume="free", compare="set", above=0)
    """How many of the newest checkpoints stay; two, because the disk may damage one."""
    keep_every: int = setting(0, resume="free", compare="set", at_least=0)
    """Steps between checkpoints that stay for good, a multiple of `checkpoint_every`; 0: none."""
    hang_seconds: float = setting(600.0, resume="free", compare="own", at_least=0)
    """How long a step may take. After that the job ends, and names the rank that all others wait
    for; a launcher can start it again. The ranks may take as long to meet. Preparation, the first
    step, the filling of a memory of keys, an evaluation, a checkpoint, a record's way to trackers
    and a file in the search for unreadable samples may take ten times as long. The end of a run has
    no limit. A store has at most 120 s to answer. 0: no limit, but a day for what ranks do
    together."""
    max_bad_samples: int = setting(0, resume="free", compare="own", at_least=0)
    """How many samples may turn out to be unreadable. They are named, all ranks leave them out, and
    the run starts again from its last checkpoint; one more ends it."""
    reshape_data: bool = setting(False, resume="free", compare="own")
    """Allow a run to continue with another batch size, number of processes or shard set. The epoch
    that it was in begins again. Without this they are refused: it would not be the same run."""
    evaluate_every: float | None = setting(
        None, resume="free", compare="set", flag="--points", above=0
    )
    """Epochs between two evaluations; None: only at the end."""
    evaluations: int | None = setting(None, resume="free", compare="set", flag="--points", above=0)
    """Evaluations in the run instead, evenly spread, the last one included."""
    evaluation_test: str | None = setting(None, resume="free", compare="own")
    """Held-out shard set that is ranked and, if labelled, classified; None: no evaluation."""
    evaluation_train: str | None = setting(None, resume="free", compare="own")
    """Labelled shard set for k-NN and the linear probe; None skips both."""
    evaluation_neighbours: int = setting(20, resume="free", compare="own", above=0)
    """Neighbours that vote in k-NN; papers have 20 to 200."""
    evaluation_temperature: float = setting(0.07, resume="free", compare="own", above=0)
    """T of the weights exp(s / T) of k-NN's votes; s is the cosine similarity."""
    evaluation_queries: str | None = setting(None, resume="free", compare="own")
    """Edited copies to find in `evaluation_references`, by `python -m tools.shard copies`."""
    evaluation_references: str | None = setting(None, resume="free", compare="own")
    """Shard set that is searched for the originals of `evaluation_queries`."""
    trackers: list[Tracker] = setting(factory=list, resume="free", compare="set")
    """Accelerate's trackers that get the records too, such as [tensorboard, mlflow]; files lie in
    the run's folder where the tracker lets us choose."""
    tracker_project: str = setting("viewrank", resume="free", compare="set")
    """Project or experiment of the run in its trackers; TensorBoard's folder in the run's."""
    tracker_name: str | None = setting(None, resume="free", compare="set")
    """Name of the run in its trackers; None: that of its folder."""

    def __post_init__(self) -> None:
        self._refuse_numbers()
        if self.epochs is not None and self.steps is not None:
            raise ValueError(
                f"epochs={self.epochs} and steps={self.steps}: the length of the run is set by "
                "one of them. Give --epochs or --steps (none for the other)."
            )
        if self.length_is_time and self.max_seconds is None:
            raise ValueError(
                "nothing says how long the run is. Give --epochs, --steps or, for a run that "
                "follows the time, --max_seconds."
            )
        if self.evaluate_every is not None and self.evaluations is not None:
            raise ValueError(
                f"evaluate_every={self.evaluate_every:g} and evaluations={self.evaluations}: give "
                "one of them (none for the other)."
            )
        if self.keep_every % self.checkpoint_every:
            raise ValueError(
                f"keep_every={self.keep_every}, but there is a checkpoint only at every "
                f"{self.checkpoint_every}th step (checkpoint_every); give a multiple of that, or 0."
            )
        if self.layer_decay > 1:
            raise ValueError(
                f"layer_decay={self.layer_decay:g}, but layers nearer to the images are to learn "
                "more slowly: it is at most 1; 0.75 is usual."
            )
        if self.weights is None and (self.weights_sha256 or self.weights_license):
            raise ValueError(
                "weights_sha256 or weights_license is given, but no weights that they are of; give "
                "--weights FILE too."
            )
        if self.momentum >= 1:
            raise ValueError(f"momentum={self.momentum}, but it must be below 1; 0.9 is usual.")
        self._refuse_evaluation_sets()
        self._refuse_what_is_not_here()
        if self.micro_batch_size is not None:
            self._refuse_micro_batches(self.micro_batch_size)
        step_capture.refuse(**{name: getattr(self, name) for name in step_capture.SETTINGS})
        self.method.refuse(
            counts=tuple(group.count for group in self.groups),
            sizes=tuple(group.size for group in self.groups),
            batch_size=self.batch_size,
        )

    def _refuse_numbers(self) -> None:
        for each in fields(self):
            name, value, rule = each.name, getattr(self, each.name), each.metadata
            if value is None and "None" not in str(each.type):  # YAML's null passes for any type
                raise ValueError(f"{name}=null, but it needs a value; without, leave it out.")
            if isinstance(value, float) and not math.isfinite(value):  # YAML's .inf and .nan
                raise ValueError(f"{name}={value}, but it must be a number.")
            if value is not None and rule["above"] is not None and value <= rule["above"]:
                raise ValueError(f"{name}={value}, but it must be above {rule['above']}.")
            if value is not None and rule["at_least"] is not None and value < rule["at_least"]:
                raise ValueError(f"{name}={value}, but it must not be negative.")

    def _refuse_evaluation_sets(self) -> None:
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

    def _refuse_what_is_not_here(self) -> None:
        if not re.fullmatch(r"[^/\\#?,%:.][^/\\#?,%:]{0,127}", self.tracker_project):
            raise ValueError(
                f"tracker_project={self.tracker_project!r}, but it must be 1 to 128 characters "
                "other than / \\ # ? , % : and not begin with a dot."
            )
        if self.trackers:
            from accelerate.tracking import get_available_trackers  # it would just leave one out

            here = {str(each) for each in get_available_trackers()}
            for name in (each for each in self.trackers if each not in here):
                package = _PACKAGES.get(name, name)
                raise ValueError(
                    f"trackers=[{name}], but the package {package} is not installed. Install it "
                    f"with uv pip install '{package}', or leave it out."
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

    @property
    def length_is_time(self) -> bool:
        """Whether the length of the run is `max_seconds`, not a number of steps."""
        return self.epochs is None and self.steps is None

    @property
    def groups(self) -> tuple[ViewGroup, ...]:
        """All view groups."""
        return (self.views, *self.more_views)

    @property
    def normalisation(self) -> Normalisation:
        """Of the pixels, as the encoder wants them."""
        return Normalisation(self.method.encoder.mean, self.method.encoder.std)

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
        """Return samples of a micro-batch on each rank; None if the batch is not divided.

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
        """Return the type that networks compute in under mixed precision, or None."""
        return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.precision())

    def precision(self) -> Literal["no", "bf16", "fp16"]:
        """Return the mixed precision that is meant on this machine."""
        if self.mixed_precision != "auto":
            return self.mixed_precision
        if self.on_gpu:
            return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
        try:
            flags = set(Path("/proc/cpuinfo").read_text().split())
        except OSError:  # no Linux
            return "no"
        return "bf16" if flags & BF16_FLAGS else "no"

    def uncompiled(self) -> AbstractContextManager[object]:
        """Return a context in which compiled modules run uncompiled.

        For rare work with shapes that are not those of training: compiling takes longer.
        """
        return torch.compiler.set_stance("force_eager") if self.compile else nullcontext()


def gpu_available() -> bool:
    """Whether Accelerate will find a GPU: there is one, and its CPU switch is off."""
    return not switched_on("ACCELERATE_USE_CPU") and torch.cuda.is_available()


def switched_on(variable: str) -> bool:
    """Whether an environment variable of Accelerate says yes, in one of its words for that."""
    return os.environ.get(variable, "").lower() in ("1", "true", "yes", "on", "y", "t")
