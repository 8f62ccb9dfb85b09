"""The compiled NMS libraries (csrc/nms.cpp, csrc/nms_cuda.cu), loaded with ctypes; absent ones are no error.

`cpu_library()` and `cuda_library()` return an object with the operations of `libs.utils.nms_fallback` or None, and
`why_missing` says why.  Inputs are checked by `libs.utils.nms`; nothing else should call this module.
"""
from __future__ import annotations

import contextlib
import ctypes
import functools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

ABI = 1  # TAL_ABI of csrc/nms_common.h
METHODS = {"vanilla": 0, "linear": 1, "gaussian": 2}
FOLDER = Path(__file__).parent / "csrc"
SUFFIX = ".dll" if sys.platform == "win32" else ".so"
CPU_PATH = FOLDER / f"libtal_nms{SUFFIX}"  # setup.py writes them under these names
CUDA_PATH = FOLDER / f"libtal_nms_cuda{SUFFIX}"

OnStream = Callable[[torch.device], contextlib.AbstractContextManager[int]]
POINTER, INT, LONG, FLOAT = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_float


def _open(path: Path, abi: str) -> ctypes.CDLL:
    """The library at `path`; OSError with a one-line reason when it is absent, unloadable or of another version."""
    if not path.is_file():
        raise OSError(f"{path.name} is not built")
    library = ctypes.CDLL(str(path))
    version = getattr(library, abi, None)
    if version is None or version() != ABI:
        raise OSError(f"{path.name} was built from another version of its source")
    return library


def _declare(library: ctypes.CDLL, name: str, result: type | None, *arguments: type) -> Callable:
    function = getattr(library, name)
    function.restype, function.argtypes = result, list(arguments)
    return function


def _counted(count: int) -> int:
    if count < 0:
        raise MemoryError("NMS: out of memory")
    return count


class CpuLibrary:
    """csrc/nms.cpp.  Tensors are contiguous, on the CPU; raises OSError when the library cannot be used."""

    name = "compiled CPU"
    device_type = "cpu"

    def __init__(self, path: Path = CPU_PATH):
        library = _open(path, "tal_abi")
        self._hard = _declare(library, "tal_hard_nms", LONG, POINTER, POINTER, LONG, FLOAT, POINTER)
        self._soft = _declare(library, "tal_soft_nms", LONG, POINTER, POINTER, LONG, INT, FLOAT, FLOAT, FLOAT, POINTER, POINTER)
        self._vote = _declare(library, "tal_vote", None, POINTER, LONG, POINTER, POINTER, LONG, FLOAT, POINTER)
        self._batched = _declare(library, "tal_batched_nms", LONG, POINTER, POINTER, POINTER, LONG, INT, FLOAT, FLOAT, LONG,
                                 FLOAT, INT, INT, FLOAT, POINTER, POINTER, POINTER)

    def hard(self, segments: torch.Tensor, scores: torch.Tensor, threshold: float) -> torch.Tensor:
        """Kept indices (k) int64."""
        kept = torch.empty(len(scores), dtype=torch.int64)
        return kept[:_counted(self._hard(segments.data_ptr(), scores.data_ptr(), len(scores), threshold, kept.data_ptr()))]

    def soft(self, segments: torch.Tensor, scores: torch.Tensor, method: str, threshold: float, sigma: float,
             min_score: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Indices (k) int64 and rows start, end, decayed score (k, 3)."""
        kept = torch.empty(len(scores), dtype=torch.int64)
        rows = torch.empty(len(scores), 3)
        count = _counted(self._soft(segments.data_ptr(), scores.data_ptr(), len(scores), METHODS[method], threshold, sigma,
                                    min_score, kept.data_ptr(), rows.data_ptr()))
        return kept[:count], rows[:count]

    def vote(self, kept: torch.Tensor, segments: torch.Tensor, scores: torch.Tensor, threshold: float) -> torch.Tensor:
        """Refined segments (k, 2), NaN without a voter."""
        refined = torch.empty(len(kept), 2)
        self._vote(kept.data_ptr(), len(kept), segments.data_ptr(), scores.data_ptr(), len(scores), threshold, refined.data_ptr())
        return refined

    def batched(self, segments: torch.Tensor, scores: torch.Tensor, labels: torch.Tensor, soft: bool, threshold: float,
                min_score: float, limit: int, sigma: float, multiclass: bool, voting: str,
                voting_threshold: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Segments (k, 2), scores (k), labels (k), k <= limit; `voting` 'off', 'all' or 'class'."""
        room = min(len(scores), limit)
        out = torch.empty(room, 2), torch.empty(room), torch.empty(room, dtype=torch.int64)
        count = _counted(self._batched(
            segments.data_ptr(), scores.data_ptr(), labels.data_ptr(), len(scores), soft, threshold, min_score, limit, sigma,
            multiclass, ("off", "all", "class").index(voting), voting_threshold, *(t.data_ptr() for t in out)))
        return out[0][:count], out[1][:count], out[2][:count]


@contextlib.contextmanager
def _torch_stream(device: torch.device) -> Iterator[int]:
    with torch.cuda.device(device):
        yield torch.cuda.current_stream(device).cuda_stream


class CudaLibrary:
    """csrc/nms_cuda.cu.  Tensors are contiguous, on one CUDA device; work is queued on its current stream.

    Grouping by class and the final merge are stable torch sorts; the suppression runs in one kernel for all classes.
    `on_stream(device)` is a context manager that yields the stream handle.  Raises OSError when the library cannot be used.
    """

    name = "compiled CUDA"
    device_type = "cuda"

    def __init__(self, path: Path = CUDA_PATH, on_stream: OnStream = _torch_stream):
        library = _open(path, "tal_cuda_abi")
        self._on_stream = on_stream
        self._error = _declare(library, "tal_cuda_error", ctypes.c_char_p, INT)
        self._soft = _declare(library, "tal_cuda_soft_nms", INT, POINTER, POINTER, POINTER, POINTER, INT, INT, FLOAT, FLOAT,
                              FLOAT, LONG, POINTER, POINTER, POINTER, POINTER, POINTER, POINTER, POINTER, INT, POINTER)
        self._hard = _declare(library, "tal_cuda_hard_nms", INT, POINTER, POINTER, POINTER, INT, FLOAT, LONG, POINTER, POINTER,
                              POINTER, INT, POINTER)
        self._vote = _declare(library, "tal_cuda_vote", INT, POINTER, INT, POINTER, POINTER, LONG, FLOAT, POINTER, INT, POINTER)

    def _run(self, function: Callable, device: torch.device, *arguments: object) -> None:
        values = [a.data_ptr() if isinstance(a, torch.Tensor) else a for a in arguments]
        with self._on_stream(device) as stream:
            code = function(*values, device.index or 0, stream)
        if code:
            raise RuntimeError(f"NMS on {device}: {self._error(code).decode()}")

    def _hard_groups(self, segments: torch.Tensor, scores: torch.Tensor, order: torch.Tensor, group: torch.Tensor,
                     begin: torch.Tensor, threshold: float, limit: int) -> torch.Tensor:
        """Indices kept, class by class.  `order` (n): candidates by class, then falling score; `group` (n): their classes."""
        kept = torch.empty_like(order)
        counts = torch.empty_like(begin[1:])
        covered = torch.empty_like(order, dtype=torch.uint8)
        self._run(self._hard, order.device, segments, order, begin, len(counts), threshold, limit, covered, kept, counts)
        return kept[_filled(group, begin, counts)]

    def _soft_groups(self, segments: torch.Tensor, scores: torch.Tensor, order: torch.Tensor, group: torch.Tensor,
                     begin: torch.Tensor, method: str, threshold: float, sigma: float, min_score: float,
                     limit: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Indices and decayed scores of the picks, class by class in selection order; arguments as above, input order."""
        counts = torch.empty_like(begin[1:])
        index = torch.empty_like(order)
        start, end, score = torch.empty(3, len(order), dtype=torch.float32, device=order.device).unbind()
        hole, filler = torch.empty(2, len(order), dtype=torch.int32, device=order.device).unbind()
        self._run(self._soft, order.device, segments, scores, order, begin, len(counts), METHODS[method], threshold, sigma,
                  min_score, limit, start, end, score, index, hole, filler, counts)
        filled = _filled(group, begin, counts)
        return index[filled], score[filled]

    def hard(self, segments: torch.Tensor, scores: torch.Tensor, threshold: float) -> torch.Tensor:
        """Kept indices (k) int64."""
        order = _falling(scores)
        return self._hard_groups(segments, scores, order, torch.zeros_like(order), _one_group(order), threshold, len(order))

    def soft(self, segments: torch.Tensor, scores: torch.Tensor, method: str, threshold: float, sigma: float,
             min_score: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Indices (k) int64 and rows start, end, decayed score (k, 3)."""
        order = torch.arange(len(scores), device=scores.device)
        index, decayed = self._soft_groups(segments, scores, order, torch.zeros_like(order), _one_group(order), method, threshold,
                                           sigma, min_score, len(order))
        return index, torch.cat([segments[index], decayed[:, None]], dim=1)

    def vote(self, kept: torch.Tensor, segments: torch.Tensor, scores: torch.Tensor, threshold: float) -> torch.Tensor:
        """Refined segments (k, 2), NaN without a voter."""
        refined = torch.empty_like(kept)
        self._run(self._vote, kept.device, kept, len(kept), segments, scores, len(scores), threshold, refined)
        return refined

    def batched(self, segments: torch.Tensor, scores: torch.Tensor, labels: torch.Tensor, soft: bool, threshold: float,
                min_score: float, limit: int, sigma: float, multiclass: bool, voting: str,
                voting_threshold: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Segments (k, 2), scores (k), labels (k), k <= limit; `voting` 'off', 'all' or 'class'."""
        if soft:
            order = torch.arange(len(scores), device=scores.device)
        else:
            high = torch.nonzero(scores > min_score).flatten()
            order = high[_falling(scores[high])]
        group, begin = torch.zeros_like(order), _one_group(order)
        if multiclass:
            order = order[torch.sort(labels[order], stable=True).indices]
            _, group, sizes = torch.unique_consecutive(labels[order], return_inverse=True, return_counts=True)
            begin = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
        if soft:
            index, score = self._soft_groups(segments, scores, order, group, begin, "gaussian", threshold, sigma, min_score,
                                             limit)
        else:
            index = self._hard_groups(segments, scores, order, group, begin, threshold, limit)
            score = scores[index]
        best = _falling(score)[:limit]
        index, score = index[best], score[best]
        picked = segments[index]
        if voting != "off":
            refined = self._voted(picked, labels[index], segments, scores, labels, voting, voting_threshold)
            picked = torch.where(refined.isnan().any(dim=1, keepdim=True), picked, refined)
        return picked, score, labels[index]

    def _voted(self, picked: torch.Tensor, picked_labels: torch.Tensor, segments: torch.Tensor, scores: torch.Tensor,
               labels: torch.Tensor, voting: str, threshold: float) -> torch.Tensor:
        if voting == "all":
            return self.vote(picked, segments, scores, threshold)
        refined = picked.clone()
        for label in picked_labels.unique():
            mine, voters = picked_labels == label, labels == label
            refined[mine] = self.vote(picked[mine], segments[voters], scores[voters], threshold)
        return refined


def _falling(scores: torch.Tensor) -> torch.Tensor:
    """Order of falling scores, stable; -0.0 counts as 0.0 (a radix sort would tell them apart)."""
    return torch.sort(scores + 0.0, descending=True, stable=True).indices


def _one_group(order: torch.Tensor) -> torch.Tensor:
    return torch.tensor([0, len(order)], device=order.device)


def _filled(group: torch.Tensor, begin: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Which of the n positions hold a result: the first counts[g] of class g."""
    return torch.arange(len(group), device=group.device) - begin[group] < counts[group]


@functools.cache
def _load(kind: type) -> tuple[CpuLibrary | CudaLibrary | None, str]:
    try:
        return kind(), ""
    except (OSError, AttributeError) as error:
        return None, str(error)


def cpu_library() -> CpuLibrary | None:
    """The CPU library, or None (see `why_missing`)."""
    return _load(CpuLibrary)[0]


def cuda_library() -> CudaLibrary | None:
    """The CUDA library, or None (see `why_missing`)."""
    return _load(CudaLibrary)[0]


def why_missing(kind: type) -> str:
    """One line on why CpuLibrary or CudaLibrary could not be loaded; '' when it was."""
    return _load(kind)[1]
