"""MultiTHUMOS, the official annotations -> our JSON.

    annotations/<Class>.txt     rows: video name, start (s), end (s)
    class_list.txt              rows: class number from 1, name (optional: without it classes follow their sorted names)

Durations, frame rates and subsets are those of THUMOS14, whose videos and features these are (thumos14.json).
"""
from __future__ import annotations

import os
from pathlib import Path

from libs.core.errors import UserError, nearest
from libs.core.files import entries, is_file, read_text
from libs.datasets.annotations import load_annotations
from libs.datasets.prepare.document import Document, whole

CLASSES = 65
CLASS_LIST = "class_list.txt"


def convert_multithumos(folder: str | os.PathLike, thumos_json: str | os.PathLike) -> Document:
    """Convert the official text files of a folder, or of its subfolder `annotations`.

    Videos that thumos14.json lacks (it leaves out those without usable THUMOS14 annotations) are left out and counted.  Raises
    UserError for a missing or damaged file, and unless there are 65 classes.
    """
    folder = Path(folder)
    texts = {path.stem: path for place in (folder, folder / "annotations")
             for path in entries(place) if path.suffix == ".txt" and path.name not in (CLASS_LIST, "README.txt")}
    if len(texts) != CLASSES:
        some = f" ({', '.join(list(texts)[:3])}, ...)" if texts else ""
        raise UserError(f"{folder}: holds {len(texts)} class files <Class>.txt{some}, MultiTHUMOS has {CLASSES}; name the "
                        "unpacked download, or its folder annotations")
    thumos = load_annotations(thumos_json)
    document = Document(folder, "MultiTHUMOS", _label_ids(folder, sorted(texts)))
    for video in thumos.videos.values():
        document.add_video(video.id, video.subset, video.duration_s, video.fps)
    unknown: dict[str, int] = {}
    for label, path in sorted(texts.items()):
        for line, text in enumerate(read_text(path, "list of segments").splitlines(), 1):
            cells = text.split()
            if not cells:
                continue
            if len(cells) != 3:
                raise UserError(f"{path}: line {line}: {text[:60]!r}; expected a video, its start and its end in seconds")
            if cells[0] in document:
                document.add_segment(cells[0], f"{path.name} line {line}", cells[1], cells[2], label)
            else:
                unknown[cells[0]] = unknown.get(cells[0], 0) + 1
    if unknown:
        document.remark(f"{sum(unknown.values()):,} segments of {len(unknown)} videos that {Path(thumos_json).name} lacks left "
                        f"out ({', '.join(sorted(unknown)[:5])}{', ...' if len(unknown) > 5 else ''})")
    bare = [video for video, entry in document.videos.items() if not entry["annotations"]]
    document.leave_out(bare, "of THUMOS14 without segments")
    if len(document.classes()) < CLASSES:
        raise UserError(f"{folder}: only {len(document.classes())} of {CLASSES} classes have segments in the videos of "
                        f"{thumos_json}; give the complete thumos14.json")
    return document


def _label_ids(folder: Path, names: list[str]) -> dict[str, int]:
    path = next((p for p in (folder / CLASS_LIST, folder.parent / CLASS_LIST) if is_file(p)), None)
    if path is None:
        return {name: i for i, name in enumerate(names)}
    ids: dict[str, int] = {}
    for line, text in enumerate(read_text(path, "list of classes").splitlines(), 1):
        cells = text.split()
        if cells and len(cells) != 2:
            raise UserError(f"{path}: line {line}: {text[:60]!r}; expected the number of a class and its name")
        if cells:
            ids[cells[1]] = whole(f"{path}: line {line}: number", cells[0], CLASSES + 1) - 1
    for name in names:
        if name not in ids:
            raise UserError(f"{path}: does not name the class {name!r}{nearest(name, ids)}, which has a file; take both from "
                            "one release")
    if sorted(ids.values()) != list(range(CLASSES)):
        raise UserError(f"{path}: class numbers are not 1 to {CLASSES} once each; was the file changed?")
    return ids
