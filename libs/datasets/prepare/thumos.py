"""The published THUMOS14 archive (annotations and I3D features) -> a folder that configs/thumos_i3d.yaml can train on.

The archive holds annotations/thumos14.json and i3d_features/<video>.npy, possibly below another folder.  `unpack_thumos` puts
them in place, all or nothing; `check_features` compares every feature file with its annotated duration (headers only).
"""
from __future__ import annotations

import hashlib
import math
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

from libs.core.errors import UserError
from libs.core.files import entries, exists, is_file
from libs.core.problems import Problems
from libs.datasets.annotations import load_annotations, read_database
from libs.datasets.grid import expected_length
from libs.utils.files.archives import Member, copy, members
from libs.utils.files.staging import refuse_foreign, staged
from libs.utils.progress import Clock

MD5 = "375f76ffbf7447af1035e694971ec9b2"  # of the published archive, see README.md for the download page
ANNOTATIONS, FEATURES, PLANTED = "annotations/thumos14.json", "i3d_features", "planted_manifest.json"
NUM_FRAMES, STRIDE = 16, 4
SLACK_STEPS, SLACK_SHARE = 10, 0.05  # annotated durations are those of the container and differ a little from the frames decoded
REPORT_EVERY = 256 << 20


def md5(path: str | os.PathLike, say: Callable[[str], None] = lambda line: None) -> str:
    """Hex MD5 of a file; `say` gets a progress line per 256 MiB.  UserError when it cannot be read."""
    digest, done, clock = hashlib.md5(usedforsecurity=False), 0, Clock()
    try:
        total = os.path.getsize(path)
        with open(path, "rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
                done += len(chunk)
                if done % REPORT_EVERY < len(chunk):
                    say(f"md5: {done / 2**30:.2f} of {total / 2**30:.2f} GiB, {clock.left(done, total)}")
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such archive; download it first (see README.md) or check the path") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); name the downloaded archive itself") from error
    return digest.hexdigest()


def check_md5(path: str | os.PathLike, allow_other: bool = False, say: Callable[[str], None] = lambda line: None) -> None:
    """UserError if the archive is not the published one; with `allow_other` only a line for `say`."""
    found = md5(path, say)
    if found == MD5:
        say(f"md5 {found}: the published archive")
    elif allow_other:
        say(f"md5 {found} differs from the published {MD5}; unpacked all the same (--allow-other)")
    else:
        raise UserError(f"{path}: md5 is {found}, that of the published archive is {MD5}: the download is incomplete or it is "
                        "another archive; fetch it again, or add --allow-other to unpack it all the same")


def unpack_thumos(archive: str | os.PathLike, out: str | os.PathLike, say: Callable[[str], None] = lambda line: None) -> int:
    """Copy the annotation file and all features of `archive` (zip, tar, or a folder) into `out`; returns the number of features.

    Everything is unpacked beside its final place first, so an error leaves `out` as it was; features of an earlier run are
    replaced.  Raises UserError for an unsafe, damaged or incomplete archive, and where `out` holds features that this archive
    lacks or cannot be written.
    """
    archive, out = Path(archive), Path(out)
    with staged(out, (FEATURES, ANNOTATIONS), remove=(PLANTED,)) as folder:
        (folder / FEATURES).mkdir()
        (folder / ANNOTATIONS).parent.mkdir()
        count, size, reported = 0, 0, 0
        for member in members(archive):
            target = _target(member)
            if target is None:
                continue
            if exists(folder / target):
                raise UserError(f"{archive}: holds {Path(target).name} twice (again as {member.name}); not the expected archive")
            copy(member, folder / target)
            count, size = count + target.startswith(FEATURES), size + member.size
            if size - reported >= REPORT_EVERY:
                reported = size
                say(f"unpacked: {count} feature files, {size / 2**30:.2f} GiB")
        if not exists(folder / ANNOTATIONS) or not count:
            raise UserError(f"{archive}: holds {'no ' if not count else ''}{FEATURES}/*.npy and "
                            f"{'' if exists(folder / ANNOTATIONS) else 'no '}{ANNOTATIONS}; not the expected archive")
        try:
            read_database(str(folder / ANNOTATIONS))
        except UserError as error:
            raise UserError(str(error).replace(str(folder / ANNOTATIONS), f"{archive}: {ANNOTATIONS}")) from error
        refuse_foreign(out / FEATURES, {p.name for p in entries(folder / FEATURES)}, "move them away or choose another --out")
    say(f"unpacked: {count} feature files, {size / 2**30:.2f} GiB, into {out}")
    return count


def check_features(json_file: str | os.PathLike, feat_folder: str | os.PathLike) -> tuple[int, list[str]]:
    """(number of annotated videos, one line per video whose features are missing, damaged or of an implausible shape).

    Only headers and file sizes are read.  T must lie within max(10, 5 %) steps of floor((duration * fps - 16) / 4) + 1, and
    all files must have the same width.  Raises UserError for an unreadable annotation file.
    """
    ignored = Problems()  # refused by training; here, durations that are not numbers count as missing
    videos = load_annotations(json_file, problems=ignored).videos
    if not videos:
        raise UserError(str(ignored.found[0]))
    problems, shapes = [], {}
    for video in sorted(videos):
        path = Path(feat_folder, f"{video}.npy")
        shape = _shape(path)
        if isinstance(shape, str):
            problems.append(f"{video}: {shape}")
        else:
            shapes[video] = shape
    width = Counter(shape[1] for shape in shapes.values()).most_common(1)[0][0] if shapes else 0
    for video, (steps, channels) in shapes.items():
        duration_s, fps = videos[video].duration_s, videos[video].fps
        if channels != width:
            problems.append(f"{video}: {channels} channels, the other files have {width}")
            continue
        if fps is None or math.isinf(duration_s):
            problems.append(f"{video}: the annotation lacks a positive duration or fps, so {steps} steps cannot be checked")
            continue
        wanted = expected_length(duration_s, fps, STRIDE, NUM_FRAMES)
        if abs(steps - wanted) > max(SLACK_STEPS, SLACK_SHARE * wanted):
            problems.append(f"{video}: {steps} steps, but {duration_s} s at {fps} fps give about {wanted}")
    return len(videos), problems


def _target(member: Member) -> str | None:
    """Where a member belongs, or None for files that are not needed."""
    name, parent = member.path.name, member.path.parent.name
    if name == Path(ANNOTATIONS).name:
        return ANNOTATIONS
    return f"{FEATURES}/{name}" if parent == FEATURES and name.endswith(".npy") else None


def _shape(path: Path) -> tuple[int, int] | str:
    """(T, C) of a feature file, or a description of the problem."""
    if not is_file(path):
        return f"no feature file {path.name}"
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)  # also fails when the file is shorter than its header says
    except (OSError, ValueError, EOFError) as error:
        return f"{path.name} is damaged ({error})"
    if not isinstance(array, np.ndarray) or array.ndim != 2 or array.dtype.kind != "f" or 0 in array.shape:
        return f"{path.name} holds {getattr(array, 'dtype', '?')} {getattr(array, 'shape', '?')}, expected float (T, C)"
    return array.shape
