"""QK iteration: a query and a key model that learn in turns, each against a large frozen memory.

Wu, Wu, "QK Iteration: A Self-Supervised Representation Learning Algorithm for Image Similarity",
2021, https://arxiv.org/abs/2111.07954. Only the abstract was available to us, and no code of the
authors is known. It says: a query and a key model are learned jointly for copy detection; every
step sees about a million negatives, which is possible because the backbone of one side is frozen
while steps for queries and for keys alternate.

All else here is *inferred*: both heads freeze with their backbones, so that a memory is made once a
phase; the frozen side is in eval mode; InfoNCE of the temperature of memory banks (0.07, Wu et al.
2018); D = 256, the challenge's limit; one model at first, of which the key model is a copy; phases
of equal length, queries first; moments of the optimizer rest while their side does. Results are
"QK-style".

    start     one model trains:    NT-Xent among the views of the batch, as SimCLR's
    Q-phase   key model frozen:    memory = keys of N views of the training set
              query model trains:  q(edited view) finds its own key among all keys of other samples
    K-phase   the same, with the roles exchanged

Why a start: a random network's embeddings all but coincide (uniformity -0.07 of SmallResNet, where
0 is one point), and cannot be told apart in a memory of them: in 60 steps from such a one the loss
fell to 8.6, where guessing has ln 8,000 = 9.0. Two models that both trained in the batch agreed
later: after 40 steps a batch AP of 0.11, where one model had 0.16 (trials on CIFAR-10).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import chain
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses import FakeTensor

from model.encoder import Encoder
from model.gather import gather, gather_equal_rows, gather_rows, own_samples
from model.memory_bank import KeyRing, Memory
from model.method.method import MemoryRequest, Method, Output, encode
from model.objective import NTXent

LARGEST = 256  # the challenge's limit on the size of a descriptor
TYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


class QKIteration(Method):
    """Two models in turns: the one trains, the other's embeddings of N views are its gallery.

        loss = mean over views q and own keys k of  -log( e_qk / (e_qk + Σ_n e_qn) ),
               e = exp(cosine / temperature),  n: all keys of the memory of other samples

    Own keys are embedded in the step, by the frozen side without gradient. The first view group
    holds the queries' views and the second, if there is one, the keys'; with one group the queries'
    is the first view and the keys' the last.

    The encoder that is evaluated and exported is the *query* model's: it has learned to look
    through edits, as all other evaluations need. The key model has seen references alone if the
    second group is mild. Copy detection by embeddings (copy_z_…) uses both, as in training: queries
    by the query model, references by the key model.

    By default the memory is not saved. When a run is continued, it is made again from the same
    views by the same frozen weights, so it is the same. To fill it takes most of the time where it
    is large; two settings make that cheaper, by keys of older weights. Such keys cannot be made
    again: each side has a memory that lasts, checkpoints hold both (at a million keys of D = 256
    1.0 GB, 2.1 GB in float32), and a run goes on with them.

    Args:
        encoder: of the query model; the key model begins as its copy, after the start.
        hidden_size: width of the projectors' hidden layers.
        embedding_size: D, up to 256.
        projector_layers: number of linear layers.
        temperature: divides the cosines.
        start_steps: steps at first in which one model trains for both sides, without a memory.
        phase_steps: steps until the sides change their roles, from then on.
        keys: size of the memory, over all ranks; each of them holds all of it, in passes over the
            training set as many as it takes.
        memory_type: bfloat16 and float16 take 512 bytes a key at D = 256. They round each number
            of a key by up to 0.4 % and 0.05 %.
        fill_parts: with 2 or more, a phase fills one part in so many anew, the oldest keys; only
            the first phase of each side fills all. 0: no phase fills any.
        step_keys: the keys that a step embeds anyway enter its memory, in the place of the oldest,
            and so do the views of the side that trains: they are negatives when it is frozen.

    Raises:
        ValueError: a setting is out of range.
    """

    trains_part = True

    def __init__(
        self,
        *,
        encoder: Encoder,
        hidden_size: int = 512,
        embedding_size: int = 256,
        projector_layers: int = 2,
        temperature: float = 0.07,
        start_steps: int = 500,
        phase_steps: int = 500,
        keys: int = 1_000_000,
        memory_type: Literal["bfloat16", "float16", "float32"] = "bfloat16",
        fill_parts: int = 1,
        step_keys: bool = False,
    ) -> None:
        if not 1 <= embedding_size <= LARGEST:
            raise ValueError(
                f"embedding_size={embedding_size}, expected 1 to {LARGEST}: the challenge accepts "
                "no larger descriptors, and the memory holds one for each key."
            )
        if temperature <= 0:
            raise ValueError(f"temperature={temperature}, expected a number above 0, such as 0.07.")
        if phase_steps < 1 or keys < 1 or start_steps < 0:
            raise ValueError(
                f"start_steps={start_steps}, phase_steps={phase_steps} and keys={keys}, expected "
                "1 or more of the last two, such as 500 and 1000000, and no negative start."
            )
        if fill_parts < 0 or fill_parts > keys or not (fill_parts or step_keys):
            raise ValueError(
                f"fill_parts={fill_parts}, expected 1 to keys={keys}, or 0 with --method.step_keys "
                "true: else nothing would fill the memory."
            )
        super().__init__(
            encoder=encoder,
            hidden_size=hidden_size,
            embedding_size=embedding_size,
            projector_layers=projector_layers,
        )
        self.key_encoder = copy.deepcopy(encoder)
        self.key_projector = copy.deepcopy(self.projector)
        self.embedding_size = embedding_size
        self.temperature = temperature
        self.in_batch = NTXent(temperature=temperature)
        self.start_steps, self.phase_steps, self.keys = start_steps, phase_steps, keys
        self.memory_type = TYPES[memory_type]
        self.fill_parts, self.step_keys = fill_parts, step_keys
        self.query_ring: KeyRing | None = None
        self.key_ring: KeyRing | None = None
        if step_keys or fill_parts != 1:
            self.query_ring, self.key_ring = (
                KeyRing(keys, embedding_size, dtype=self.memory_type) for _ in range(2)
            )
            # All ranks push the same keys: there is nothing to broadcast in every step.
            self._ddp_params_and_buffers_to_ignore = [
                f"{side}_ring.{name}"
                for side in ("query", "key")
                for name in ("key_ND", "id_N", "pushed")
            ]
        self._memory: Memory | None = None  # that a fill has made; none at the start
        self._frozen: tuple[nn.Module, ...] = ()
        self._embedded: tuple[Tensor, Tensor, Tensor] | None = None  # by a step, of all ranks

    def forward(self, views: tuple[Tensor, ...], id_B: Tensor | None = None) -> Output:
        """See `Method.forward`; after the start, `id_B` is needed."""
        query_VBCHW, key_VBCHW = views if len(views) == 2 else (views[0][:1], views[0][-1:])
        starts, queries_train = not self._frozen, self.encoder not in self._frozen
        keys_of = self.embed if starts else self.embed_reference
        with torch.set_grad_enabled(torch.is_grad_enabled() and queries_train):
            q_VBD = self.embed(query_VBCHW)
        with torch.set_grad_enabled(torch.is_grad_enabled() and (starts or not queries_train)):
            k_VBD = keys_of(key_VBCHW)
        # training.memory_forecast follows a first step, before the memory is filled: count both.
        follows = isinstance(q_VBD, FakeTensor) and self.key_ring is None
        room = self._room(q_VBD.device) if follows else None
        z_VAD = gather(torch.cat([q_VBD, k_VBD]))
        if self.step_keys and id_B is not None:
            V = len(q_VBD)
            self._embedded = z_VAD[:V].detach(), z_VAD[V:].detach(), gather_equal_rows(id_B)
        if starts:
            loss = self.in_batch(z_VAD, samples=own_samples(q_VBD.shape[1]))
        elif queries_train:
            loss = self._loss(q_VBD, k_VBD, id_B)
        else:
            loss = self._loss(k_VBD, q_VBD, id_B)
        del room
        turn = torch.full_like(loss.detach(), queries_train)
        return Output(loss=loss, z_VAD=z_VAD.detach(), metrics={"queries_train": turn})

    def _loss(self, z_VBD: Tensor, own_WBD: Tensor, id_B: Tensor | None) -> Tensor:
        """Return the loss of the views of the side that trains, with the other's as their own."""
        memory = self._memory if self._ring is None else self._ring.memory()
        assert memory is not None and id_B is not None
        with torch.autocast(z_VBD.device.type, enabled=False):
            lse_VB = memory.logsumexp(
                z_VBD.flatten(0, 1), id_B.repeat(len(z_VBD)), temperature=self.temperature
            ).unflatten(0, z_VBD.shape[:2])
            s_VWB = torch.einsum("vbd,wbd->vwb", z_VBD, own_WBD) / self.temperature
            # softplus(lse - s) is minus the log of the own key's probability.
            return F.softplus(lse_VB[:, None] - s_VWB).mean()

    def embed(self, views_VBCHW: Tensor) -> Tensor:
        """Return the query model's embeddings, of unit length; see `Method.embed`."""
        z_VBD = encode(lambda rows_NCHW: self.projector(self.encoder(rows_NCHW)), views_VBCHW)
        return F.normalize(z_VBD.float(), dim=-1)

    def embed_reference(self, views_VBCHW: Tensor) -> Tensor:
        """Return the key model's embeddings, of unit length; see `Method.embed_reference`."""
        z_VBD = encode(
            lambda rows_NCHW: self.key_projector(self.key_encoder(rows_NCHW)), views_VBCHW
        )
        return F.normalize(z_VBD.float(), dim=-1)

    def memory_due(self, step: int) -> MemoryRequest | None:
        """Ask for the frozen side's views as a phase begins, or a run is continued within one."""
        phase, within = divmod(step - self.start_steps, self.phase_steps)
        if phase < 0 or (within and self._frozen):
            return None
        keys = self.keys
        if self.key_ring is not None and (within or not self.fill_parts):
            keys = 0  # the state has them, or steps bring them
        elif phase > 1:  # each side's memory was filled
            keys = -(-self.keys // self.fill_parts)
        return MemoryRequest(group=-1 if phase % 2 == 0 else 0, keys=keys, phase=phase)

    @torch.no_grad()
    def remember(self, request: MemoryRequest, batches: Iterator[tuple[Tensor, Tensor]]) -> None:
        """Begin a phase, or go on in it: freeze a side, and hold its embeddings of more views."""
        self._memory = None  # the old one goes before the new one comes
        if request.phase % 2 == 0:
            self._frozen, embed = (self.key_encoder, self.key_projector), self.embed_reference
        else:
            self._frozen, embed = (self.encoder, self.projector), self.embed
        self.train(self.training)  # of the sides as they are now
        memory: Memory | None = None
        ring, filled = self._ring, 0
        while filled < request.keys:
            views_VBCHW, id_B = next(batches)
            key_ND = gather_rows(embed(views_VBCHW).flatten(0, 1))
            id_N = gather_rows(id_B.repeat(len(views_VBCHW)))
            taken = min(len(key_ND), request.keys - filled)
            if ring is not None:
                ring.push(key_ND[:taken], id_N[:taken])
            else:
                memory = memory or self._room(key_ND.device)
                memory.key_ND[filled : filled + taken] = key_ND[:taken]
                memory.id_N[filled : filled + taken] = id_N[:taken]
            filled += taken
        self._memory = memory

    @torch.no_grad()
    def after_step(self, progress: float | Tensor) -> None:
        """At the start the key model follows the query model; see `Method.after_step`.

        What the step has embedded enters the memories, if it shall.
        """
        del progress
        if self._embedded is not None and self.query_ring is not None and self.key_ring is not None:
            q_VAD, k_WAD, id_A = self._embedded
            self.query_ring.push(q_VAD.flatten(0, 1), id_A.repeat(len(q_VAD)), undoable=True)
            self.key_ring.push(k_WAD.flatten(0, 1), id_A.repeat(len(k_WAD)), undoable=True)
            self._embedded = None
        if not self._frozen:
            for mine, theirs in (
                (self.key_encoder, self.encoder),
                (self.key_projector, self.projector),
            ):
                for own, other in zip(_state(mine), _state(theirs), strict=True):
                    own.copy_(other)

    @property
    def _ring(self) -> KeyRing | None:
        """The frozen side's memory, if memories last."""
        return self.query_ring if self.encoder in self._frozen else self.key_ring

    def train(self, mode: bool = True) -> QKIteration:
        """Set the mode of what trains; a frozen side stays in eval mode."""
        super().train(mode)
        for part in self._frozen:
            part.eval()
        return self

    def refuse(self, *, counts: tuple[int, ...], sizes: tuple[int, ...], batch_size: int) -> None:
        """See `Method.refuse`."""
        super().refuse(counts=counts, sizes=sizes, batch_size=batch_size)
        if len(counts) > 2:
            raise ValueError(
                f"{len(counts)} view groups, but QK iteration has two sides: the views are the "
                "queries', and one group of --more_views the keys'."
            )
        if len(counts) == 1 and counts[0] != 2:
            raise ValueError(
                f"{counts[0]} views in one group, but QK iteration takes one for the query and one "
                "for the key: set --views.count 2, or give the keys a group of --more_views."
            )

        most = (max(counts) if len(counts) > 1 else 1) * batch_size
        if self.step_keys and most > self.keys:
            raise ValueError(
                f"keys={self.keys} is less than the {most} views of a step, which all enter the "
                "memory. Set --method.keys higher."
            )

    def _room(self, device: torch.device) -> Memory:
        return Memory(
            torch.empty(self.keys, self.embedding_size, dtype=self.memory_type, device=device),
            torch.empty(self.keys, dtype=torch.int64, device=device),
        )


def _state(network: nn.Module) -> Iterator[Tensor]:
    return chain(network.parameters(), network.buffers())
