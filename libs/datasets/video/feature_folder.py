"""A folder of feature files and its provenance.json, to which several processes, also of several machines, may add at a time."""
from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from libs.core.errors import UserError
from libs.core.files import exists, is_file
from libs.datasets.features.provenance import FILE_NAME
from libs.datasets.video.extractors.base import Extractor
from libs.datasets.video.extractors.program import Program
from libs.utils.files.claims import Claims
from libs.utils.files.io import read_json, remove_leftovers, write_atomic, write_json_atomic

PROVENANCE_CLAIM, VIDEO_CLAIM = "provenance", "video "  # the latter before a name


class FeatureFolder:
    """The features of an extractor in a folder: <name>.npy of each video, and provenance.json, which lists those that are whole.

    names: name -> video, all of the command; todo: the names without features.  Raises UserError, unless all of them are to be
    overwritten, for features there of other settings, of another video of one name or of another tool.
    """

    def __init__(self, folder: Path, extractor: Extractor, names: Mapping[str, str], overwrite: bool = False) -> None:
        self.folder, self.extractor, self.names, self.overwrite = folder, extractor, names, overwrite
        self.head, self.path = extractor.describe(), folder / FILE_NAME
        self._claims = Claims(folder)
        remove_leftovers(folder, older_than_s=3600.0)  # of killed processes; a more recent one may still be running
        listed = self._listed()
        for name, video in names.items():
            if not overwrite:
                _refuse_another_video(video, self.file(name), listed.get(name))
                if is_file(self.file(name)) and not exists(self.path):
                    raise UserError(f"{self.file(name)}: is not by this tool, which would write {FILE_NAME} beside it, and would "
                                    "be replaced; choose another folder, or add --overwrite")
        self.todo = [name for name in names if overwrite or not self._is_whole(name, listed)]
        self._at_start = {name: self._stamp(name) for name in self.todo}

    def file(self, name: str) -> Path:
        """The feature file of a video."""
        return self.folder / f"{name}.npy"

    def claim(self, name: str) -> bool:
        """Whether this process is the one that works on a video now."""
        return self._claims.take(VIDEO_CLAIM + name)

    def release(self, name: str) -> None:
        """Let other processes work on a video that has not become whole."""
        self._claims.release(VIDEO_CLAIM + name)

    def made_since(self, name: str) -> bool:
        """Whether another process has made the features of a video of `todo` since this object was made."""
        return self._stamp(name) != self._at_start[name] and self._is_whole(name, self._listed())

    def save(self, name: str, feats: np.ndarray, entry: Mapping[str, Any]) -> None:
        """Write the (T, C) features of a video, and its entry beside those that are there; UserError if that is not possible."""
        with self._claims.held(PROVENANCE_CLAIM):
            videos = self._listed()
            noted = {**self.head, "channels": int(feats.shape[1]), "libraries": self.extractor.libraries(), "videos": videos}
            if not videos:  # features without this file are not ours
                write_json_atomic(self.path, noted)
            write_atomic(self.file(name), functools.partial(np.save, arr=feats))
            videos[name] = entry
            write_json_atomic(self.path, noted)

    def close(self) -> None:
        """Give up all claims."""
        self._claims.close()

    def _listed(self) -> dict[str, Any]:
        """Entries of the provenance file; none of another setting, whose features are all to be overwritten."""
        if not exists(self.path):
            return {}
        before = read_json(self.path, "provenance file")
        if not isinstance(before, dict) or not isinstance(before.get("videos"), dict):
            raise UserError(f"{self.path}: is not a provenance file of this tool; choose another folder")
        before.setdefault("extractor", Program.name)  # a folder from the time when there was no other
        key = next((key for key, value in self.head.items() if key != "preset" and before.get(key) != value), None)
        if key is None:
            return before["videos"]
        kept = [name for name in before["videos"] if not (self.overwrite and name in self.names)]
        if self.overwrite and not any(is_file(self.file(name)) for name in kept):
            return {}
        others = ", ".join(kept[:3])
        remedy = f"name these {len(kept)} videos, too ({others}, ...)" if self.overwrite else "add --overwrite to replace them"
        raise UserError(f"{self.path}: the features there were made with another {key} ({str(before.get(key))[:150]}, now "
                        f"{str(self.head[key])[:150]}); choose another folder, or {remedy}")

    def _is_whole(self, name: str, listed: Mapping[str, Any]) -> bool:
        entry, video = listed.get(name), self.names[name]
        return (entry is not None and exists(video) and entry.get("bytes") == os.path.getsize(video)
                and _vectors(self.file(name)) == entry.get("vectors"))

    def _stamp(self, name: str) -> tuple[int, int] | None:
        """What tells a feature file from one that replaces it."""
        if not is_file(self.file(name)):
            return None
        found = self.file(name).stat()
        return found.st_mtime_ns, found.st_ino


def _vectors(path: Path) -> int | None:
    """Vectors of a feature file, None if it is missing or cut, as one that was copied in part."""
    try:
        return len(np.load(path, mmap_mode="r"))
    except (OSError, ValueError, EOFError):
        return None


def _refuse_another_video(path: str, features: Path, entry: dict[str, Any] | None) -> None:
    """UserError if the feature file is there and of another video; one of equal size whose path is gone has been moved."""
    if entry is None or not is_file(features) or not exists(path) or entry.get("source") == path:
        return
    source = str(entry.get("source"))
    same = os.path.samefile(source, path) if exists(source) else entry.get("bytes") == os.path.getsize(path)
    if not same:
        raise UserError(f"{path}: {features} holds the features of another video of this name, {source}; rename one of the "
                        "videos, choose another folder, or remove that file to replace it")
