"""The compiled NMS libraries (csrc/nms.cpp, csrc/nms_cuda.cu), loaded with ctypes; both are optional.

`cpu_library()` and `cuda_library()` return an object with the operations of `libs.utils.nms.fallback`, or None; `why_missing`
gives the reason.  `libs.utils.nms.api` checks the inputs; nothing else should call this module, except `libs.modeling.decode`,
which uses the decoding of the CPU library.
"""
from __future__ import annotations

import contextlib
import ctypes
import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from libs.core.files import is_file

ABI, BINS = 3, 256  # TAL_ABI and TAL_BINS of csrc/nms_common.h
METHODS = {"vanilla": 0, "linear": 1, "gaussian": 2}
FOLDER = Path(__file__).parents[1] / "csrc"
SUFFIX = ".dll" if sys.platform == "win32" else ".so"
CPU_PATH = FOLDER / f"libtal_nms{SUFFIX}"  # setup.py writes them under these names
CUDA_PATH = FOLDER / f"libtal_nms_cuda{SUFFIX}"

Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
OnStream = Callable[[torch.device], contextlib.AbstractContextManager[int]]
POINTER, INT, LONG, FLOAT = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_float


def _open(path: Path, abi: str) -> ctypes.CDLL:
    """The library at `path`; OSError with a one-line reason if it is absent, cannot be loaded or has another version."""
    if not is_file(path):
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
    """csrc/nms.cpp.  Tensors are contiguous, on the CPU.  Raises OSError if the library cannot be used."""

    name = "compiled CPU"
    device_type = "cpu"

    def __init__(self, path: Path = CPU_PATH):
        library = _open(path, "tal_abi")
        self._hard = _declare(library, "tal_hard_nms", LONG, POINTER, POINTER, LONG, FLOAT, POINTER)
        self._soft = _declare(library, "tal_soft_nms", LONG, POINTER, POINTER, LONG, INT, FLOAT, FLOAT, FLOAT, POINTER, POINTER)
        self._vote = _declare(library, "tal_vote", None, POINTER, LONG, POINTER, POINTER, LONG, FLOAT, INT, POINTER)
        self._batched = _declare(library, "tal_nms_of_batch", LONG, *4 * [POINTER], LONG, INT, FLOAT, FLOAT, LONG, FLOAT, INT,
                                 INT, FLOAT, INT, INT, *4 * [POINTER])
        self._decode = _declare(library, "tal_decode", LONG, *5 * [POINTER], LONG, LONG, LONG, FLOAT, LONG, FLOAT, INT,
                                *4 * [POINTER])

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

    def vote(self, kept: torch.Tensor, segments: torch.Tensor, scores: torch.Tensor, threshold: float,
             by_iou: bool) -> torch.Tensor:
        """Refined segments (k, 2), NaN without a voter."""
        refined = torch.empty(len(kept), 2)
        self._vote(kept.data_ptr(), len(kept), segments.data_ptr(), scores.data_ptr(), len(scores), threshold, by_iou,
                   refined.data_ptr())
        return refined

    def batched(self, segments: torch.Tensor, scores: torch.Tensor, labels: torch.Tensor, counts: torch.Tensor, soft: bool,
                threshold: float, min_score: float, limit: int, sigma: float, multiclass: bool, voting: str,
                voting_threshold: float, by_iou: bool) -> Batch:
        """Segments (k, 2), scores (k), labels (k), counts (B) <= limit of B videos; `voting` 'off', 'all' or 'class'.

        The videos are spread over as many threads as torch uses.
        """
        room = sum(min(count, limit) for count in counts.tolist())
        return _filled_rows(room, len(counts), lambda *out: self._batched(
            segments.data_ptr(), scores.data_ptr(), labels.data_ptr(), counts.data_ptr(), len(counts), soft, threshold, min_score,
            limit, sigma, multiclass, ("off", "all", "class").index(voting), voting_threshold, by_iou,
            torch.get_num_threads(), *out))

    def decode(self, scores: torch.Tensor, offsets: torch.Tensor, mask: torch.Tensor, points: torch.Tensor,
               level_sizes: Sequence[int], threshold: float, topk: int, duration: float) -> Batch:
        """Segments (M, 2), scores (M), labels (M), counts (B) of scores (B, P, K) >= 0; P * K below 2**32.

        Same rules as `libs.modeling.decode`, which checks the inputs.
        """
        videos, _, classes = scores.shape
        sizes = (ctypes.c_int64 * len(level_sizes))(*level_sizes)
        room = videos * sum(min(topk, size * classes) for size in level_sizes)
        return _filled_rows(room, videos, lambda *out: self._decode(
            scores.data_ptr(), offsets.data_ptr(), mask.data_ptr(), points.data_ptr(), sizes, len(level_sizes), videos, classes,
            threshold, topk, duration, torch.get_num_threads(), *out))


def _filled_rows(room: int, videos: int, fill: Callable[..., int]) -> Batch:
    """Segments, scores, labels and counts, allocated with `room` rows, filled by `fill` and cut to the rows that it filled."""
    out = torch.empty(room, 2), torch.empty(room), torch.empty(room, dtype=torch.int64), torch.empty(videos, dtype=torch.int64)
    filled = _counted(fill(*(t.data_ptr() for t in out)))
    return out[0][:filled], out[1][:filled], out[2][:filled], out[3]


@contextlib.contextmanager
def _torch_stream(device: torch.device) -> Iterator[int]:
    with torch.cuda.device(device):
        yield torch.cuda.current_stream(device).cuda_stream


class CudaLibrary:
    """csrc/nms_cuda.cu.  Tensors are contiguous, on one CUDA device; work is queued on its current stream.

    Stable torch sorts group by video and class and merge the results; one kernel suppresses in all groups.
    `on_stream(device)`: a context manager that yields the stream handle.  Raises OSError if the library cannot be used.
    """

    name = "compiled CUDA"
    device_type = "cuda"

    def __init__(self, path: Path = CUDA_PATH, on_stream: OnStream = _torch_stream):
        library = _open(path, "tal_cuda_abi")
        self._on_stream = on_stream
        self._error = _declare(library, "tal_cuda_error", ctypes.c_char_p, INT)
        self._soft = _declare(library, "tal_cuda_soft_nms", INT, *4 * [POINTER], INT, INT, FLOAT, FLOAT, FLOAT, LONG,
                              *9 * [POINTER], INT, POINTER)
        self._hard = _declare(library, "tal_cuda_hard_nms", INT, *3 * [POINTER], INT, FLOAT, LONG, *3 * [POINTER], INT, POINTER)
        self._vote = _declare(library, "tal_cuda_vote", INT, POINTER, INT, *5 * [POINTER], LONG, FLOAT, INT, POINTER, INT,
                              POINTER)

    def _run(self, function: Callable, device: torch.device, *arguments: object) -> None:
        values = [a.data_ptr() if isinstance(a, torch.Tensor) else a for a in arguments]
        with self._on_stream(device) as stream:
            code = function(*values, device.index or 0, stream)
        if code:
            raise RuntimeError(f"NMS on {device}: {self._error(code).decode()}")

    def _hard_groups(self, segments: torch.Tensor, groups: Groups, threshold: float, limit: int) -> torch.Tensor:
        """Kept indices, group by group; `groups.order` is sorted by descending score in each group."""
        kept = torch.empty_like(groups.order)
        counts = torch.empty_like(groups.owner)
        covered = torch.empty_like(groups.order, dtype=torch.uint8)
        self._run(self._hard, kept.device, segments, groups.order, groups.begin, len(counts), threshold, limit, covered, kept,
                  counts)
        return kept[groups.filled(counts)]

    def _soft_groups(self, segments: torch.Tensor, scores: torch.Tensor, groups: Groups, method: str, threshold: float,
                     sigma: float, min_score: float, limit: int,
                     seen: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Indices and decayed scores of the picks, group by group in selection order; `groups.order` is in input order.

        seen: zeros (videos, BINS) int32, to skip picks that cannot be among the best `limit` of their video.
        """
        order, counts = groups.order, torch.empty_like(groups.owner)
        index = torch.empty_like(order)
        start, end, score = torch.empty(3, len(order), dtype=torch.float32, device=order.device).unbind()
        hole, filler = torch.empty(2, len(order), dtype=torch.int32, device=order.device).unbind()
        self._run(self._soft, order.device, segments, scores, order, groups.begin, len(counts), METHODS[method], threshold, sigma,
                  min_score, limit, groups.owner, seen, start, end, score, index, hole, filler, counts)
        filled = groups.filled(counts)
        return index[filled], score[filled]

    def hard(self, segments: torch.Tensor, scores: torch.Tensor, threshold: float) -> torch.Tensor:
        """Kept indices (k) int64."""
        return self._hard_groups(segments, _one_group(_descending(scores)), threshold, len(scores))

    def soft(self, segments: torch.Tensor, scores: torch.Tensor, method: str, threshold: float, sigma: float,
             min_score: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Indices (k) int64 and rows start, end, decayed score (k, 3)."""
        order = torch.arange(len(scores), device=scores.device)
        index, decayed = self._soft_groups(segments, scores, _one_group(order), method, threshold, sigma, min_score, len(order))
        return index, torch.cat([segments[index], decayed[:, None]], dim=1)

    def vote(self, kept: torch.Tensor, segments: torch.Tensor, scores: torch.Tensor, threshold: float,
             by_iou: bool) -> torch.Tensor:
        """Refined segments (k, 2), NaN without a voter."""
        refined = torch.empty_like(kept)
        self._run(self._vote, kept.device, kept, len(kept), segments, scores, None, None, None, len(scores), threshold, by_iou,
                  refined)
        return refined

    def batched(self, segments: torch.Tensor, scores: torch.Tensor, labels: torch.Tensor, counts: torch.Tensor, soft: bool,
                threshold: float, min_score: float, limit: int, sigma: float, multiclass: bool, voting: str,
                voting_threshold: float, by_iou: bool) -> Batch:
        """Segments (k, 2), scores (k), labels (k), counts (B) <= limit of B videos; `voting` 'off', 'all' or 'class'.

        The host waits for the number of groups and of results (and of high scores, with hard NMS).
        """
        all_candidates = torch.arange(len(scores), device=scores.device)
        video = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts, output_size=len(scores))
        if soft:
            groups = _grouped(all_candidates, video, labels if multiclass else None)
            seen = torch.zeros(len(counts), BINS, dtype=torch.int32, device=scores.device)
            index, score = self._soft_groups(segments, scores, groups, "gaussian", threshold, sigma, min_score, limit, seen)
        else:
            high = torch.nonzero(scores > min_score).flatten()
            groups = _grouped(high[_descending(scores[high])], video, labels if multiclass else None)
            index = self._hard_groups(segments, groups, threshold, limit)
            score = scores[index]
        best = _descending(score)  # ties: lower class first, since the groups of a video are in ascending class order
        best = best[torch.sort(video[index[best]], stable=True).indices]
        owner = video[index[best]]
        found = torch.zeros_like(counts).index_add_(0, owner, torch.ones_like(owner))
        rank = torch.arange(len(owner), device=owner.device) - (found.cumsum(0) - found)[owner]
        best = best[rank < limit]
        index, score = index[best], score[best]
        picked = segments[index]
        if voting != "off":
            voters = _grouped(all_candidates, video, labels if voting == "class" else None)
            group = torch.empty_like(all_candidates).index_copy_(0, voters.order, voters.group)[index]
            refined = torch.empty_like(picked)
            self._run(self._vote, picked.device, picked, len(picked), segments, scores, voters.order,
                      *(voters.begin[group + side].contiguous() for side in (0, 1)), len(scores), voting_threshold, by_iou,
                      refined)
            picked = torch.where(refined.isnan().any(dim=1, keepdim=True), picked, refined)
        return picked, score, labels[index], found.clamp(max=limit)


class Groups(NamedTuple):
    """n candidates, group by group: group g is order[begin[g]:begin[g + 1]]."""

    order: torch.Tensor  # (n,) int64 candidate indices
    group: torch.Tensor  # (n,) int64 group of each position
    begin: torch.Tensor  # (groups + 1,) int64
    owner: torch.Tensor  # (groups,) int64 video of each group

    def filled(self, counts: torch.Tensor) -> torch.Tensor:
        """The positions with a result: the first counts[g] of each group g."""
        held = torch.arange(len(self.group), device=counts.device) - self.begin[self.group] < counts[self.group]
        return held.nonzero().squeeze(1)


def _grouped(order: torch.Tensor, video: torch.Tensor, labels: torch.Tensor | None) -> Groups:
    """The candidates `order` (n) grouped by video, and by label if given; stable."""
    if labels is not None:
        order = order[torch.sort(labels[order], stable=True).indices]
    order = order[torch.sort(video[order], stable=True).indices]
    new = torch.ones_like(order, dtype=torch.bool)
    new[1:] = video[order].diff() != 0
    if labels is not None:
        new[1:] |= labels[order[1:]] != labels[order[:-1]]
    first = torch.nonzero(new).flatten()
    return Groups(order, new.cumsum(0) - 1, torch.cat([first, first.new_full((1,), len(order))]), video[order[first]])


def _one_group(order: torch.Tensor) -> Groups:
    owner = torch.zeros(1, dtype=torch.int64, device=order.device)
    return Groups(order, torch.zeros_like(order), torch.cat([owner, owner + len(order)]), owner)


def _descending(scores: torch.Tensor) -> torch.Tensor:
    """Stable order of descending scores; -0.0 equals 0.0 (a radix sort would distinguish them)."""
    return torch.sort(scores + 0.0, descending=True, stable=True).indices


@functools.cache
def _load(kind: type) -> tuple[Any, str]:
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
    """Why CpuLibrary or CudaLibrary could not be loaded, in one line; '' if it is loaded."""
    return _load(kind)[1]
