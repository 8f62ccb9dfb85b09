"""Checks of all feature files of a dataset: names, headers, and one pass over the values.

    layout = guess_layout(folder, ids)                       prefix and extension, from the names of the files
    facts = survey_features(store, ids, problems)            video id -> FileFacts; findings go to `problems`
"""
from __future__ import annotations

import difflib
import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from libs.core.errors import UserError
from libs.core.files import entries, is_folder
from libs.core.problems import Problems
from libs.datasets.features.formats import HDF5_EXTENSIONS, READ_ERRORS, format_of, hdf5_file
from libs.datasets.features.store import FeatureStore

UNLIKE = 30.0  # factor between the standard deviation of a file and the median of all that is suspicious
LISTED_ORPHANS = 5
MAX_THREADS = 8  # that read files
SAMPLED = 200  # names that are no video id and from which a prefix is guessed


class Layout(NamedTuple):
    """How feature files are named: prefix + video id + extension."""

    prefix: str
    extension: str


@dataclass(frozen=True)
class FileFacts:
    """Facts about the features of one video.

    path: the (first) file; length, width: T and C from the header; spread: standard deviation of all values; digest: of the
    values (both None where values are unusable or were not read); constant: every vector is the same.
    """

    path: str
    length: int
    width: int
    spread: float | None = None
    digest: bytes | None = None
    constant: bool = False


def feature_names(folder: str) -> list[str]:
    """Names of the feature files of a folder, or of the datasets of an .h5 file, sorted.

    Raises UserError where there is no such folder, or the file cannot be read.
    """
    try:
        if is_folder(folder):
            return [p.name for p in entries(folder) if format_of(p.name) and not p.name.startswith(".")]
        if os.path.splitext(folder)[1].lower() in HDF5_EXTENSIONS:
            with hdf5_file(folder) as file:
                return sorted(file)
    except READ_ERRORS as error:
        raise UserError(f"{folder}: cannot be read ({' '.join(str(error).split())[:200]}); name a folder of feature files, or "
                        "one .h5 file") from error
    raise UserError(f"{folder}: no such feature folder; name the folder of the feature files, or one .h5 file")


def guess_layout(folder: str, ids: Collection[str]) -> Layout:
    """The prefix and extension with which most ids have a file; ('', '.npy') where nothing fits."""
    votes: Counter[Layout] = Counter()
    bundle = not is_folder(folder)
    names = feature_names(folder)
    exact, strangers = set(ids), []
    for name in names:
        stem, extension = (name, "") if bundle else os.path.splitext(name)
        if stem in exact:
            votes[Layout("", extension)] += 1
        else:
            strangers.append((stem, extension))
    longest_first = sorted(filter(None, ids), key=len, reverse=True)
    for stem, extension in strangers[:SAMPLED]:
        inside = next((vid for vid in longest_first if vid in stem), None)
        if inside is not None:
            before, _, after = stem.partition(inside)
            votes[Layout(before, after + extension)] += 1
    common = Counter(os.path.splitext(name)[1] for name in names).most_common(1)
    default = Layout("", "" if bundle else common[0][0] if common else ".npy")
    return votes.most_common(1)[0][0] if votes else default


def survey_features(store: FeatureStore, ids: Iterable[str], problems: Problems, width: tuple[int, str] | None = None,
                    read_values: bool = True, step: Callable[[], Any] = lambda: None,
                    may_lack: bool = False) -> dict[str, FileFacts]:
    """Check the features of every video.

    width: expected channels and the source of that number; None: the number that most files have.  read_values False: only
    headers.  step: called after every file whose values were read.  may_lack: a missing file is only a warning.
    The result holds the videos whose header is sound and whose width is the expected one.
    """
    ids = list(ids)
    shapes = _shapes(store, ids, problems, may_lack)
    width = width or _usual_width(shapes)
    facts: dict[str, FileFacts] = {}
    for vid, shape in shapes.items():
        if width is None or shape[1] == width[0]:
            facts[vid] = FileFacts(store.path(vid), *shape)
        else:
            _report_width(store.path(vid), vid, shape, width, problems)
    if read_values:
        _check_values(store, facts, problems, step)
    return facts


def check_orphans(folder: str, layout: Layout, ids: Collection[str], problems: Problems) -> None:
    """Warn once of the feature files of a folder that belong to no annotated video."""
    extension = "" if not is_folder(folder) else layout.extension
    expected = {f"{layout.prefix}{vid}{extension}" for vid in ids}
    orphans = [name for name in feature_names(folder) if name not in expected]
    if orphans:
        some = ", ".join(orphans[:LISTED_ORPHANS]) + (", ..." if len(orphans) > LISTED_ORPHANS else "")
        problems.warning("feature-without-annotation", folder, "", f"{len(orphans)} feature files belong to no annotated video: "
                         f"{some}", "add the videos to the annotations (an empty list: no actions), or ignore this")


def _shapes(store: FeatureStore, ids: Sequence[str], problems: Problems, may_lack: bool) -> dict[str, tuple[int, int]]:
    shapes = {}
    names: list[str] | None = None
    for vid in ids:
        path = store.missing_path(vid)
        if path is not None:
            if names is None:
                taken = {os.path.basename(store.path(other)) for other in ids}
                names = [name for folder in store.folders for name in feature_names(folder) if name not in taken]
            close = difflib.get_close_matches(os.path.basename(path), names, n=1, cutoff=0.8)
            hint = f"; the nearest name is {close[0]}" if close else ""
            add = problems.warning if may_lack else problems.error
            add("missing-features", path, f"video {vid!r}", f"has no feature file{hint}",
                "extract it, correct the id, file_prefix or file_ext, or set dataset.missing: skip")
            continue
        try:
            shapes[vid] = store.shape(vid)
        except UserError as error:
            problems.caught("feature-file", _file_of(store, vid, error), "", error)
    return shapes


def _file_of(store: FeatureStore, vid: str, error: UserError) -> str:
    """The file of a video that an error of the store names."""
    paths = [store.path(vid, i) for i in range(len(store.folders))]
    return next((path for path in paths if str(error).startswith(f"{path}:")), paths[0])


def _usual_width(shapes: dict[str, tuple[int, int]]) -> tuple[int, str] | None:
    """The most frequent number of channels, or of rows if most files look transposed."""
    if not shapes:
        return None
    rows, columns = (Counter(shape[i] for shape in shapes.values()).most_common(1)[0] for i in (0, 1))
    if len(shapes) > 2 and rows[1] > columns[1] and rows[1] > len(shapes) / 2:
        return rows[0], "most files have that many rows"
    return columns[0], "most files have that many"


def _report_width(path: str, vid: str, shape: tuple[int, int], width: tuple[int, str], problems: Problems) -> None:
    place = f"video {vid!r}"
    if shape[0] == width[0]:
        problems.error("channels-first", path, place, f"shape {shape} looks transposed: {width[0]} channels are expected "
                       f"({width[1]})", "store features as (T, C)")
    else:
        problems.error("feature-width", path, place, f"has {shape[1]} channels (shape {shape}), but {width[0]} are expected "
                       f"({width[1]})", "extract it with the same network, or correct dataset.input_dim")


def _check_values(store: FeatureStore, facts: dict[str, FileFacts], problems: Problems, step: Callable[[], Any]) -> None:
    """Read all files and complete `facts`, in their order.

    In threads, since reading, hashing and NumPy's reductions release the GIL; `_shapes` has opened the shared .h5 files.
    """
    from joblib import Parallel, cpu_count, delayed

    if not facts:
        return
    parallel = Parallel(min(cpu_count(), MAX_THREADS), backend="threading", return_as="generator")
    extremes: list[np.ndarray] = []  # per channel over all files: lowest, highest
    for vid, found in zip(list(facts), parallel(delayed(_read)(store, vid, facts[vid]) for vid in list(facts)), strict=True):
        if isinstance(found, UserError):
            kind = "non-finite" if "NaN or infinite" in str(found) else "feature-file"
            problems.caught(kind, _file_of(store, vid, found), "", found)
        else:
            facts[vid], low, high = found
            extremes = [np.minimum(extremes[0], low), np.maximum(extremes[1], high)] if extremes else [low, high]
            if facts[vid].constant:
                what = "all feature vectors are equal" if high.any() else "all values are 0"
                problems.error("constant-features", facts[vid].path, f"video {vid!r}", what,
                               "extract it again: the network saw no video")
        step()
    _compare(facts, extremes, problems)


def _read(store: FeatureStore, vid: str, header: FileFacts) -> tuple[FileFacts, np.ndarray, np.ndarray] | UserError:
    """One pass over the values: the facts, lowest and highest value per channel, (C,) each; or the error of an unusable file."""
    try:
        feats = store.read(vid)
    except UserError as error:
        return error
    low, high = feats.min(axis=0), feats.max(axis=0)
    spread, digest = float(feats.std(dtype=np.float32)), hashlib.blake2b(feats.data, digest_size=16).digest()
    constant = len(feats) > 1 and np.array_equal(low, high)
    return FileFacts(header.path, header.length, header.width, spread, digest, constant), low, high


def _compare(facts: dict[str, FileFacts], extremes: list[np.ndarray], problems: Problems) -> None:
    """Findings that need all files: equal contents, unusual scale, channels that never change."""
    same: dict[bytes, list[str]] = defaultdict(list)
    for vid, fact in facts.items():
        if fact.digest is not None and not fact.constant:  # constant ones are reported as such
            same[fact.digest].append(vid)
    for ids in same.values():
        if len(ids) > 1:
            problems.error("same-features", facts[ids[0]].path, f"videos {', '.join(map(repr, ids))}",
                           f"{len(ids)} videos have equal features, value by value", "extract them again, or remove the copies")
    spreads = [fact.spread for fact in facts.values() if fact.spread]
    if len(spreads) < 3:
        return
    usual = float(np.median(spreads))
    for vid, fact in facts.items():
        if fact.spread and not usual / UNLIKE < fact.spread < usual * UNLIKE:
            problems.warning("feature-scale", fact.path, f"video {vid!r}", "its values have a standard deviation of "
                             f"{fact.spread:.3g}, those of most files one of {usual:.3g}",
                             "check the normalisation of its frames, or the network")
    dead = np.flatnonzero(extremes[0] == extremes[1])
    if 0 < len(dead) < len(extremes[0]):
        folder = os.path.dirname(next(fact.path for fact in facts.values() if fact.digest is not None))
        problems.warning("dead-channels", folder, "", f"{len(dead)} of {len(extremes[0])} channels have one "
                         f"value in all files (first: channel {dead[0]})",
                         "if a stream was left out, write files without it")
