"""50 Salads (camera and accelerometers on the utensils) -> annotations of its five official splits, and features.

Reads from a zip, a tar or a folder (the paths may begin with other folders) either the published MATLAB files
    features/50Salads/SpatialCNN_mid/Split_K/rgb-UU-R.avi.mat   X (T, 18) class probabilities, S (30, T) accelerations in g,
                                                                Y (T, 1) lines of mid_level_actions.txt, 0: background
    splits/50Salads/Split_K/{train,test}.txt                    rows: recording UU-R
    labels/mid_level_actions.txt                                rows: name
or what this module has written, and writes
    annotations/split{1..5}.json                                times in seconds, 3 labels and feature vectors a second
    features/UU-R.npy                                           float32 (T, 48): log(max(X, 1e-4)) / 4, then S transposed
X is that of the split whose test list holds the recording: the network of the other splits was trained on it.
Data: Stein and McKenna, UbiComp 2013; X of Lea et al., Temporal Convolutional Networks, CVPR 2017.
"""
from __future__ import annotations

import io
import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from libs.core.errors import UserError, note
from libs.utils.files.archives import Member, members, read
from libs.utils.files.io import write_json_atomic
from libs.utils.files.staging import refuse_foreign, staged

FPS = 3
SENSORS = 30  # 10 utensils x 3 axes
LEAST_PROBABILITY = 1e-4
SPLITS = range(1, 6)
FEATURES = "features"
SUBSETS = {"train": "training", "test": "validation"}
_ACTIONS = "labels/mid_level_actions.txt"
_LIST = re.compile(r"(?:.*/)?splits/50Salads/Split_([1-5])/(train|test)\.txt")
_MATRICES = re.compile(r"(?:.*/)?50Salads/SpatialCNN_mid/Split_([1-5])/rgb-(\d+-\d+)\.avi\.mat")
_ANNOTATIONS = re.compile(r"(?:.*/)?annotations/split([1-5])\.json")
_ARRAY = re.compile(r"(?:.*/)?features/(\d+-\d+)\.npy")


class Salads(NamedTuple):
    """Annotation documents by split, and features (T, 48) by recording."""

    documents: dict[int, dict[str, Any]]
    features: dict[str, np.ndarray]


class Lists(NamedTuple):
    """The official splits: `subsets[split][recording]`, and the one split that tests each recording."""

    subsets: dict[int, dict[str, str]]
    tested_in: dict[str, int]


def prepare_salads(source: str | os.PathLike, out: str | os.PathLike) -> list[str]:
    """Read `source`, write `out`/annotations/split{1..5}.json and `out`/features/*.npy, all or nothing; returns a summary.

    Recordings of the split lists without a file are left out, with a warning.  Raises UserError for bad input, without scipy if
    the source holds MATLAB files, for an `out` that cannot be written and for foreign files in `out`/features.
    """
    source, out = Path(source), Path(out)
    salads = read_written(source) if any(_ANNOTATIONS.fullmatch(m.name) for m in members(source)) else read_published(source)
    annotations = {split: f"annotations/split{split}.json" for split in SPLITS}
    refuse_foreign(out / FEATURES, {p.name for p in (out / FEATURES).glob("[0-9]*-[0-9]*.npy")}, "choose another output folder")
    with staged(out, (FEATURES, *annotations.values())) as folder:
        (folder / FEATURES).mkdir()
        for name, array in salads.features.items():
            np.save(folder / FEATURES / f"{name}.npy", array)
        for split, document in salads.documents.items():
            write_json_atomic(folder / annotations[split], document)
    return _summary(salads)


def read_published(source: Path) -> Salads:
    """The published MATLAB files; UserError naming the file and what is wrong with it."""
    texts = _texts(source)
    names, lists = parse_actions(*texts[_ACTIONS]), parse_lists(source, texts)
    features: dict[str, np.ndarray] = {}
    segments: dict[str, list[dict[str, Any]]] = {}
    for member in members(source):
        match = _MATRICES.fullmatch(member.name)
        if match is None or lists.tested_in.get(match[2]) != int(match[1]):
            continue
        _refuse_second(member, match[2], features)
        camera, sensors, labels = _matrices(member, len(names))
        features[match[2]] = np.hstack([np.log(np.maximum(camera, LEAST_PROBABILITY)) / 4, sensors.T]).astype(np.float32)
        segments[match[2]] = segments_of(labels, names)
    missing = sorted(lists.tested_in.keys() - features.keys())
    if not features:
        raise UserError(f"{source}: no features/50Salads/SpatialCNN_mid/Split_K/rgb-UU-R.avi.mat of the split K that tests the "
                        f"recording, e.g. Split_{lists.tested_in[missing[0]]}/rgb-{missing[0]}.avi.mat; fetch the features")
    if missing:
        note(f"warning: {source}: {len(missing)} of {len(lists.tested_in)} recordings of the split lists are left out, having no "
             f"file in the split that tests them (first: Split_{lists.tested_in[missing[0]]}/rgb-{missing[0]}.avi.mat); fetch "
             "the missing files for the whole dataset")
    documents = {split: {"version": "salads_mid", "database": {
        name: {"subset": subsets[name], "duration": len(features[name]) / FPS, "fps": FPS, "annotations": segments[name]}
        for name in sorted(features)}} for split, subsets in lists.subsets.items()}
    return Salads(documents, features)


def parse_actions(place: str, text: str) -> list[str]:
    """Class names by label id (label - 1); UserError for an empty line and for a repeated name."""
    names = [line.strip() for line in text.rstrip().splitlines()]
    for number, name in enumerate(names, 1):
        if not name or name in names[:number - 1]:
            raise UserError(f"{place}: line {number}: {name!r} is empty or repeats a name; labels are line numbers: correct it")
    return names


def parse_lists(source: Path, texts: Mapping[str, tuple[str, str]]) -> Lists:
    """The split lists; UserError unless every split has each recording once and each recording is tested in one split."""
    subsets: dict[int, dict[str, str]] = {split: {} for split in SPLITS}
    tested_in: dict[str, int] = {}
    for split in SPLITS:
        for kind, subset in SUBSETS.items():
            place, text = texts[f"Split_{split}/{kind}.txt"]
            for number, line in enumerate(text.rstrip().splitlines(), 1):
                name, where = line.strip(), f"{place}: line {number}"
                if not re.fullmatch(r"\d+-\d+", name):
                    raise UserError(f"{where}: {name[:60]!r}; expected a recording such as 01-1")
                if name in subsets[split]:
                    raise UserError(f"{where}: {name} is listed before, for {subsets[split][name]}; a split has a recording once")
                if kind == "test" and name in tested_in:
                    raise UserError(f"{where}: {name} is in the test list of Split_{tested_in[name]} too; each recording is "
                                    "tested in one split, whose network has not seen it")
                subsets[split][name] = subset
                if kind == "test":
                    tested_in[name] = split
    known = set().union(*subsets.values())
    for split, found in subsets.items():
        if absent := sorted(known - found.keys()):
            raise UserError(f"{texts[f'Split_{split}/train.txt'][0]}: lacks {len(absent)} recordings of the other splits (first: "
                            f"{absent[0]}), as does its test.txt; every split lists all of them")
    if untested := sorted(known - tested_in.keys()):
        raise UserError(f"{source}: splits/50Salads: {len(untested)} recordings are in no test list (first: {untested[0]}), so "
                        "no network has left them out; complete the lists")
    return Lists(subsets, tested_in)


def segments_of(labels: np.ndarray, names: Sequence[str]) -> list[dict[str, Any]]:
    """Runs of one label above 0 as segments in seconds; `labels`: (T,) whole numbers."""
    edges = [0, *(np.flatnonzero(np.diff(labels)) + 1).tolist(), len(labels)]
    return [{"segment": [first / FPS, last / FPS], "label": names[labels[first] - 1], "label_id": int(labels[first]) - 1}
            for first, last in pairwise(edges) if labels[first] > 0]


def read_written(source: Path) -> Salads:
    """What `prepare_salads` has written; UserError unless all splits and the features are of the same recordings."""
    documents: dict[int, dict[str, Any]] = {}
    features: dict[str, np.ndarray] = {}
    for member in members(source):
        if match := _ANNOTATIONS.fullmatch(member.name):
            _refuse_second(member, int(match[1]), documents)
            documents[int(match[1])] = _document(member)
        elif match := _ARRAY.fullmatch(member.name):
            _refuse_second(member, match[1], features)
            features[match[1]] = _array(member)
    for split in SPLITS:
        if split not in documents:
            raise UserError(f"{source}: no annotations/split{split}.json inside; name a folder or archive with all five")
        if differ := sorted(documents[split]["database"].keys() ^ features.keys()):
            raise UserError(f"{source}: annotations/split{split}.json and features/ differ in {len(differ)} recordings (first: "
                            f"{differ[0]}); fetch it again")
    return Salads(dict(sorted(documents.items())), features)


def _refuse_second(member: Member, key: str | int, found: Mapping[Any, Any]) -> None:
    if key in found:
        raise UserError(f"{member.place}: the source holds a file of this name twice; keep one of them")


def _document(member: Member) -> dict[str, Any]:
    try:
        document = json.loads(read(member))
    except ValueError as error:
        raise UserError(f"{member.place}: is not JSON ({error}); fetch it again") from error
    database = document.get("database") if isinstance(document, dict) else None
    if not isinstance(database, dict) or not all(isinstance(entry, dict) for entry in database.values()):
        raise UserError(f"{member.place}: database: is not an object with an entry per recording; fetch it again")
    return document


def _array(member: Member) -> np.ndarray:
    try:
        array = np.load(io.BytesIO(read(member)), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise UserError(f"{member.place}: is not a NumPy file ({error}); fetch it again") from error
    if array.ndim != 2 or array.dtype != np.float32 or not len(array) or not np.isfinite(array).all():
        raise UserError(f"{member.place}: {array.dtype} {array.shape}; expected finite float32 (T, channels); fetch it again")
    return array


def _texts(source: Path) -> dict[str, tuple[str, str]]:
    """(place, text) of the list of actions and, as Split_K/train.txt, of the split lists; UserError naming those missing."""
    wanted = [_ACTIONS, *(f"Split_{split}/{kind}.txt" for split in SPLITS for kind in SUBSETS)]
    texts: dict[str, tuple[str, str]] = {}
    for member in members(source):
        match = _LIST.fullmatch(member.name)
        key = f"Split_{match[1]}/{match[2]}.txt" if match else _ACTIONS if member.path.name == Path(_ACTIONS).name else None
        if key is not None:
            _refuse_second(member, key, texts)
            texts[key] = member.place, read(member).decode("utf-8", errors="replace")
    if missing := [key if key == _ACTIONS else f"splits/50Salads/{key}" for key in wanted if key not in texts]:
        raise UserError(f"{source}: {len(missing)} files are missing (first: {missing[0]}); name the folder or archive that "
                        "contains features/50Salads/, splits/50Salads/ and labels/, or one with annotations/split1.json")
    return texts


def _matrices(member: Member, classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """X (T, classes + 1), S (30, T) and Y (T,) of a MATLAB file, checked."""
    loadmat = _matlab_reader()
    try:
        found = loadmat(io.BytesIO(read(member)), variable_names=("X", "S", "Y"))
    except UserError:
        raise
    except Exception as error:  # of many types: a damaged file reads as any structure
        raise UserError(f"{member.place}: cannot be read as a MATLAB file ({error}); it is damaged, fetch it again") from error
    steps = np.size(found.get("Y", ()))
    fitting = {"Y": ("(T, 1)", ((steps, 1), (1, steps))), "X": (f"(T, {classes + 1})", ((steps, classes + 1),)),
               "S": (f"({SENSORS}, T)", ((SENSORS, steps),))}
    for key, (form, shapes) in fitting.items():
        value = found.get(key)
        if not (isinstance(value, np.ndarray) and value.dtype.kind in "fiu" and value.shape in shapes and steps):
            what = "is missing" if value is None else f"{value.dtype} {value.shape}"
            raise UserError(f"{member.place}: {key}: {what}; expected numbers of shape {form}, with the T = {steps} labels of Y "
                            f"and the {classes} lines of {_ACTIONS}; fetch the file again")
        if not np.isfinite(value).all():
            raise UserError(f"{member.place}: {key}: holds values that are not finite; fetch the file again")
    camera, sensors, labels = found["X"], found["S"], found["Y"].ravel()
    if camera.min() < 0 or camera.max() > 1:
        raise UserError(f"{member.place}: X: from {camera.min():g} to {camera.max():g}; expected probabilities; fetch the file "
                        "again")
    unknown = (labels < 0) | (labels > classes) | (labels != np.floor(labels))
    if unknown.any():
        first = int(unknown.argmax())
        raise UserError(f"{member.place}: Y: label {labels[first]:g} of vector {first} is not a whole number from 0 to {classes},"
                        f" the lines of {_ACTIONS}; correct that file, or fetch this one again")
    return camera, sensors, labels.astype(np.int64)


def _matlab_reader() -> Any:
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise UserError('reading MATLAB files needs the package scipy: pip install -e ".[matlab]"') from error
    return loadmat


def _summary(salads: Salads) -> list[str]:
    """Recordings and feature vectors, recordings per subset of each split, and segments per class."""
    lines = [f"{len(salads.features)} recordings, {sum(map(len, salads.features.values()))} feature vectors"]
    for split, document in salads.documents.items():
        subsets = Counter(video.get("subset") for video in document["database"].values())
        lines.append(f"split {split}: " + ", ".join(f"{subsets[subset]} {subset}" for subset in SUBSETS.values()))
    counts = Counter(segment["label"] for video in salads.documents[1]["database"].values() for segment in video["annotations"])
    return lines + [f"  {name:<26} {counts[name]:>4} segments" for name in sorted(counts)]
