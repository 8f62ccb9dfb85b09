"""Training and validation subsets by a hash: of the ids of the videos, or of the person or place that they show."""
from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from libs.core.errors import UserError, note


def assign_subsets(videos: Mapping[str, dict[str, Any]], val_share: float | None, group: str | None, default: str) -> None:
    """Fill in the subset of entries without one, and remove their "group".

    A share `val_share` of the videos becomes "validation", the rest `default`.  With `group` it is a share of the groups, at
    least one and not all: `group` is the column that the entries' "group" is from, or else a regular expression that finds it
    in the ids.  Raises UserError for videos without a group, and if all are in one.
    """
    without = [vid for vid, entry in videos.items() if entry["subset"] is None]
    groups = _groups(videos, without, group) if group else {vid: vid for vid in without}
    names = sorted(set(groups.values()), key=lambda name: hashlib.blake2b(name.encode(), digest_size=8).digest())
    count = round((val_share or 0) * len(names))
    if group and names:
        if len(names) == 1:
            raise UserError(f"--group {group}: all {len(without)} videos are in one group, {names[0]!r}; name a column or a "
                            "regular expression that tells them apart")
        count = min(max(count, 1), len(names) - 1)
        note(f"--group {group}: {count} of {len(names)} groups are validation ({', '.join(names[:min(count, 5)])}"
             f"{', ...' if count > 5 else ''})")
    if val_share and not 0 < count < len(names):
        note(f"warning: --val-share {val_share:g}: of {len(names)} videos without a subset {count} become validation; choose a "
             "share that leaves videos in both subsets, or leave it out")
    chosen = set(names[:count])
    for vid, entry in videos.items():
        entry["subset"] = entry["subset"] or ("validation" if groups[vid] in chosen else default)
        del entry["group"]


def _groups(videos: Mapping[str, dict[str, Any]], without: Sequence[str], group: str) -> dict[str, str]:
    """The group of each video of `without`."""
    found: dict[str, str | None]
    if any(entry["group"] is not None for entry in videos.values()):
        found = {vid: videos[vid]["group"] for vid in without}
        what, remedy = f"has no {group}", "fill in the column"
    else:
        try:
            matches = {vid: re.search(group, vid) for vid in without}
        except re.error as error:
            raise UserError(f"--group {group}: is no column of the annotations and no regular expression ({error}); correct "
                            "it") from error
        found = {vid: match and match[1 if match.re.groups else 0] for vid, match in matches.items()}
        what = "has no match"
        remedy = "name a column of the CSV, or a regular expression that finds the group in every id"
    if missing := [vid for vid, name in found.items() if not name]:
        raise UserError(f"--group {group}: video {missing[0]!r} {what} ({len(missing)} of {len(without)} videos); {remedy}")
    return {vid: name for vid, name in found.items() if name}
