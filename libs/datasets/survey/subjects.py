"""Video ids that name a person or place: recordings of one person in both subsets make the mAP too good."""
from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from libs.core.problems import Problems
from libs.datasets.annotations import Annotations
from libs.datasets.survey.checks import TRAIN_NAMES, VAL_NAMES, Splits

WORDS = "subject|subj|sub|person|participant|patient|user|actor|player"
MARKED = re.compile(rf"(?<![^/])[ps]\d+(?![a-z\d])|(?<![a-z])(?:{WORDS})[ _-]?\d+", re.IGNORECASE)
LEAST_GROUPS = 3  # to tell names from a word that happens to vary


def check_subjects(annotations: Annotations, splits: Splits, problems: Problems) -> None:
    """People or places, as the ids seem to name them, that have videos in both subsets."""
    videos = [annotations.of_subset(names) for names in (splits.train, splits.val)]
    if set(splits.train) & set(splits.val) or not all(videos):
        return
    subjects = subjects_of([video.id for part in videos for video in part], annotations.label_ids)
    train, val = ({subjects[video.id]: video.id for video in reversed(part) if video.id in subjects} for part in videos)
    both, every = sorted(train.keys() & val.keys()), train.keys() | val.keys()
    if both and len(every) > 1:
        problems.warning("subject-in-both", annotations.path, f"{', '.join(splits.train)} and {', '.join(splits.val)}",
                         f"by their ids, {len(both)} of {len(every)} people or places have videos in both (first: {both[0]!r}, "
                         f"videos {train[both[0]]!r} and {val[both[0]]!r}), so the mAP says little about others",
                         "split by them (tools/convert_annotations.py --val-share P --group REGEX), or leave it if that is meant")


def subjects_of(ids: Sequence[str], labels: Collection[str]) -> dict[str, str]:
    """Video id -> the person or place that it seems to name; {} where the ids do not look like that.

    Either most ids have a word such as subject12 or P03_, or all are in folders, or all are built alike and have a first part
    that differs (anna of anna_01); folders and parts have two videos and more on average, and are neither classes nor subsets.
    """
    marked = {vid: match[0].casefold() for vid in ids if (match := MARKED.search(vid))}
    if 2 * len(marked) > len(ids):
        return marked
    in_folders = all("/" in vid for vid in ids)
    parts = {vid: [vid.rpartition("/")[0]] if in_folders else re.findall(r"[^\W\d_]+|\d+", vid) for vid in ids}
    shapes = {"" if in_folders else re.sub(r"[^\W\d_]+", "a", re.sub(r"\d+", "1", vid)) for vid in ids}
    columns = list(zip(*parts.values(), strict=True)) if len(shapes) == 1 else []
    first = next((i for i, column in enumerate(columns) if len(set(column)) > 1), None)
    if first is None:
        return {}
    names = {name.casefold() for name in columns[first]}
    classes = "\n".join(labels).casefold()
    last = [name.rpartition("/")[2] for name in names]
    other = [name for name in last if name in (*TRAIN_NAMES, *VAL_NAMES) or (name.isalpha() and name in classes)]
    if not LEAST_GROUPS <= len(names) <= len(ids) / 2 or 2 * len(other) > len(names):
        return {}
    return {vid: found[first].casefold() for vid, found in parts.items()}
