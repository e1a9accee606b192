"""The last pass over the views: from DALI's uint8 to what an encoder reads.

    uint8 views ─▶ flip ─▶ colours ─▶ clamp to 0..255 ─▶ solarise ─▶ normalise ─▶ float32, 16 bits

It is one pass on the training stream instead of two or three inside DALI. It reads a byte and
writes a float for each value, and DALI's queue holds bytes. On a GPU it is one Triton kernel
(`pipeline.finish_kernel`). Its definition is `Finish` in PyTorch's operators, which the CPU runs.
"""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import cache

import numpy as np
import torch
from torch import Tensor

from pipeline.augment import Augment, Color, Solarize
from pipeline.augment.color import LUMA
from pipeline.color_space import color_map, constant, shift_hue, sixths
from pipeline.normalisation import IMAGENET, Normalisation

_SMALL = 64 * 64  # pixels of a view
_CHUNK = 1 << 20  # bytes of float32 in a chunk: it stays in the CPU's second-level cache


class Finish:
    """Finishes the views of one view group.

    Args:
        late: the augmentations that DALI leaves to this pass (`Policy.late`).
        dtype: of the result.
        normalisation: of its last part.
        workers: threads from `single_threaded`, for the CPU; None: the calling thread alone.
    """

    def __init__(
        self,
        late: Sequence[Augment],
        *,
        dtype: torch.dtype,
        normalisation: Normalisation = IMAGENET,
        workers: Executor | None = None,
    ) -> None:
        self.color = next((a for a in late if isinstance(a, Color)), None)
        self.solarize = next((a for a in late if isinstance(a, Solarize)), None)
        self.dtype, self.normalisation = dtype, normalisation
        self._workers = workers
        self._pool = _Pool()
        self._local = threading.local()

    def __call__(
        self, pixels_NPC: Tensor, factors_NF: Tensor | None, mirrored_N: Tensor | None = None
    ) -> Tensor:
        """Return the finished views, [N, P, C]; on a GPU, queued on the current stream.

        Args:
            pixels_NPC: uint8, N views of P pixels of three channels.
            factors_NF: of the late augmentations (`Policy.late_factors`); None if there are none.
            mirrored_N: whether left and right of a view, which is square then, are exchanged;
                None: of no view.
        """
        # Leave inference mode: it would not reach the workers' threads.
        with torch.inference_mode(False), torch.no_grad():
            if pixels_NPC.is_cuda:
                return self.by_triton(pixels_NPC, factors_NF, mirrored_N)
            maps = None
            if self.color is not None:
                assert factors_NF is not None
                maps = self._maps(factors_NF, _block(pixels_NPC.shape[1]))
            return self._on_cpu(pixels_NPC, factors_NF, mirrored_N, maps)

    def by_triton(
        self, pixels_NPC: Tensor, factors_NF: Tensor | None, mirrored_N: Tensor | None = None
    ) -> Tensor:
        """Return the finished views by one kernel, on a GPU or by Triton's interpreter."""
        from pipeline.finish_kernel import finish_on_gpu  # here: it needs Triton

        return finish_on_gpu(
            pixels_NPC,
            self._rows(pixels_NPC, factors_NF, mirrored_N),
            side=math.isqrt(pixels_NPC.shape[1]) if mirrored_N is not None else 0,
            mean=self.normalisation.mean_255,
            std=self.normalisation.std_255,
            dtype=self.dtype,
            color=self.color is not None,
            hsv=self.hsv,
            solarize=self.solarize is not None,
        )

    def _rows(
        self, pixels_NPC: Tensor, factors_NF: Tensor | None, mirrored_N: Tensor | None
    ) -> Tensor:
        """Return a row a view; see `pipeline.finish_kernel`."""
        row_NR = torch.zeros(len(pixels_NPC), 14, device=pixels_NPC.device)
        if self.color is not None:
            assert factors_NF is not None
            exchanged_N = None
            if self.hsv:
                exchanged_N, row_NR[:, 10], row_NR[:, 11] = sixths(factors_NF[:, 3])
            map_N33, lift_N = color_map(factors_NF, exchanged_N)
            row_NR[:, :9] = map_N33.flatten(1)
            row_NR[:, 9] = lift_N * self.pivot(pixels_NPC)
        if self.solarize is not None:
            assert factors_NF is not None
            row_NR[:, 12] = factors_NF[:, -1]
        if mirrored_N is not None:
            row_NR[:, 13] = mirrored_N
        return row_NR

    def _on_cpu(
        self,
        pixels_NPC: Tensor,
        factors_NF: Tensor | None,
        mirrored_N: Tensor | None,
        maps: tuple[Tensor, Tensor] | None,
    ) -> Tensor:
        """Finish the views chunk by chunk, each from cache to cache by one thread.

        PyTorch's own threads would wait for each other after every operator, and for DALI's.
        """
        views, pixels, _ = pixels_NPC.shape
        chunk = max(1, _CHUNK // (4 * 3 * pixels))
        out_NPC = self._pool.empty(pixels_NPC.shape, self.dtype)

        def work(begin: int) -> None:
            part = slice(begin, min(views, begin + chunk))
            x_NPC, y_NPC = self._scratch(chunk, pixels)[:, : part.stop - begin]
            _take(x_NPC, pixels_NPC[part], None if mirrored_N is None else mirrored_N[part])
            if self.dtype == torch.float32:
                y_NPC = out_NPC[part]
            self._finish(
                x_NPC,
                y_NPC,
                None if factors_NF is None else factors_NF[part],
                None if maps is None else (maps[0][part], maps[1][part]),
            )
            if self.dtype != torch.float32:
                out_NPC[part] = y_NPC

        chunks = range(0, views, chunk)
        for _ in self._workers.map(work, chunks) if self._workers else map(work, chunks):
            pass  # raises what a worker raised
        return out_NPC

    def _scratch(self, chunk: int, pixels: int) -> Tensor:
        """Return this thread's memory for two chunks."""
        scratch: Tensor | None = getattr(self._local, "scratch", None)
        if scratch is None or scratch.shape != (2, chunk, pixels, 3):
            scratch = self._local.scratch = torch.empty(2, chunk, pixels, 3)
        return scratch

    @property
    def linear(self) -> bool:
        """Whether the whole pass is one linear map and one clamp."""
        return self.solarize is None and not self.hsv

    @property
    def hsv(self) -> bool:
        """Whether the hue is shifted in HSV."""
        return self.color is not None and self.color.hue_space == "hsv"

    def pivot(self, x_NPC: Tensor) -> Tensor:
        """Return the gray level that contrast does not change, before brightness: [N]."""
        assert self.color is not None
        if self.color.pivot == "gray":
            return torch.full((len(x_NPC),), 128.0, device=x_NPC.device)
        # Sum up rows of pixels, which run in parallel.
        block = _block(x_NPC.shape[1])
        sum_NK = x_NPC.view(len(x_NPC), -1, 3 * block).sum(1, dtype=torch.float32)
        mean_NC = sum_NK.view(-1, block, 3).sum(1) / x_NPC.shape[1]
        return mean_NC @ constant(LUMA, x_NPC.device)

    def _maps(self, factors_NF: Tensor, block: int) -> tuple[Tensor, Tensor]:
        """Return the map of `block` pixels at once, and the factor of the pivot."""
        exchanged_N = sixths(factors_NF[:, 3])[0] if self.hsv else None
        map_N33, lift_N = color_map(factors_NF, exchanged_N)
        if self.linear:  # the normalisation is part of the map
            map_N33 = map_N33 / constant(self.normalisation.std_255, map_N33.device)
        eye = torch.eye(block, device=factors_NF.device)
        map_NKK = torch.einsum("ab,nij->naibj", eye, map_N33)
        return map_NKK.reshape(-1, 3 * block, 3 * block), lift_N

    def _finish(
        self,
        x_NPC: Tensor,
        y_NPC: Tensor,
        factors_NF: Tensor | None,
        maps: tuple[Tensor, Tensor] | None,
    ) -> None:
        """Write the finished views of `x_NPC` to `y_NPC`; both are float32."""
        # Views as rows of whole pixels, wide enough to be multiplied and clamped at full speed.
        block = _block(x_NPC.shape[1])
        x, y = (t.view(len(t), -1, 3 * block) for t in (x_NPC, y_NPC))
        scale, shift, low, high = _terms(self.normalisation, block, x.device)
        if maps is None:
            y.copy_(x)
        else:
            map_NKK, lift_N = maps
            lift_N11 = (lift_N * self.pivot(x_NPC))[:, None, None]
            if self.linear:
                torch.baddbmm(lift_N11 * scale + shift, x, map_NKK, out=y)
                torch.clamp(y, low, high, out=y)
                return
            torch.baddbmm(lift_N11, x, map_NKK, out=y).clamp_(0, 255)
            if self.hsv:
                assert factors_NF is not None
                # The hue does not change a gray view.
                moved = torch.nonzero(factors_NF[:, 2] * factors_NF[:, 3])[:, 0]
                _, sign_N, f_N = sixths(factors_NF[moved, 3])
                views = [y_NPC[view].T for view in moved.tolist()]
                rgb_CNP = y_NPC.new_empty(3, len(views), y_NPC.shape[1])
                for of, view_CP in enumerate(views):
                    rgb_CNP[:, of] = view_CP
                low_NP = shift_hue(rgb_CNP, sign_N, f_N)
                for of, view_CP in enumerate(views):
                    torch.add(rgb_CNP[:, of], low_NP[of], out=view_CP)
        if self.solarize is not None:
            assert factors_NF is not None
            threshold = factors_NF[:, -1, None, None]
            torch.where(y >= threshold, 255 - y, y, out=y)
        torch.addcmul(shift, y, scale, out=y)


def _take(x_NPC: Tensor, pixels_NPC: Tensor, mirrored_N: Tensor | None) -> None:
    """Write the pixels to `x_NPC`, with left and right of some views, square ones, exchanged."""
    if mirrored_N is None:
        x_NPC.copy_(pixels_NPC)
        return
    N, P, _ = pixels_NPC.shape
    frames_NHWC = pixels_NPC.unflatten(1, (math.isqrt(P), -1))
    if P <= _SMALL:  # to turn all costs less than a call for each
        both = torch.cat([pixels_NPC, frames_NHWC.flip(2).flatten(1, 2)])
        x_NPC.copy_(both.index_select(0, torch.arange(N).add_(mirrored_N, alpha=N)))
        return
    for x_PC, frame_HWC, turned in zip(x_NPC, frames_NHWC, mirrored_N.tolist(), strict=True):
        x_PC.copy_((frame_HWC.flip(1) if turned else frame_HWC).flatten(0, 1))


def _block(pixels: int) -> int:
    """Return how many pixels make a row of a view: few wasted multiplications, few rows."""
    return math.gcd(pixels, 8)


@cache
def _terms(
    normalisation: Normalisation, block: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return scale, shift, lowest and highest value of the normalisation, [3 · block] each."""
    given = (normalisation.mean_255, normalisation.std_255)
    mean, std = (torch.tensor(values, dtype=torch.float64) for values in given)
    rows = (1 / std, -mean / std, -mean / std, (255 - mean) / std)
    scale, shift, low, high = (row.float().repeat(block).to(device) for row in rows)
    return scale, shift, low, high


def single_threaded(threads: int) -> ThreadPoolExecutor:
    """Return threads in which each of PyTorch's operators uses the calling thread alone."""
    here = torch.get_num_threads()
    together = threading.Barrier(threads)

    def begin(_: int) -> None:
        torch.set_num_threads(1)
        torch.get_num_threads()  # the first call fixes the number for this thread
        together.wait()

    workers = ThreadPoolExecutor(threads, "viewrank-finish")
    list(workers.map(begin, range(threads)))
    torch.set_num_threads(here)  # for threads that others start later
    return workers


class _Pool:
    """Memory that is reused as soon as no tensor lies in it.

    Fresh pages would cost more than all the arithmetic.
    """

    def __init__(self) -> None:
        self._free: dict[int, list[np.ndarray]] = {}

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        size = math.prod(shape) * dtype.itemsize
        free = self._free.setdefault(size, [])
        block = free.pop() if free else np.empty(size, dtype=np.uint8)
        lent = block[:]
        # `lent` dies with the storage of the last tensor that was made of it.
        weakref.finalize(lent, free.append, block).atexit = False
        return torch.from_numpy(lent).view(dtype).view(*shape)
