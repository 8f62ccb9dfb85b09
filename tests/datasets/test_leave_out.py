"""Parts of the training videos for cross-fitted teachers: their sizes, whose videos stay together, and who leaves them out."""
from __future__ import annotations

import dataclasses
import json
from collections import Counter

import pytest
from distill_cases import student, two_stream
from helpers import TRAINING, VALIDATION, write_data

from libs.core.errors import UserError
from libs.core.schema import Config
from libs.datasets.annotations import load_annotations
from libs.datasets.dataset import TalDataset
from libs.datasets.survey.parts import training_parts


def parts_of(ids, tmp_path, parts, share=1.0):
    entry = {"subset": "Training", "annotations": [{"segment": [1, 2], "label": "jump"}]}
    (tmp_path / "a.json").write_text(json.dumps({"database": dict.fromkeys(ids, entry)}))
    config = Config(train_split=("training",))
    config = dataclasses.replace(config, train_cfg=dataclasses.replace(config.train_cfg, labelled_share=share))
    return training_parts(config, load_annotations(tmp_path / "a.json"), parts)


@pytest.mark.parametrize(("videos", "parts", "sizes"), [(40, 4, [10] * 4), (10, 4, [2, 2, 3, 3]), (5, 5, [1] * 5)])
def test_parts_are_equal_in_size_and_do_not_follow_the_names(tmp_path, videos, parts, sizes):
    ids = [f"video_{i:04d}" for i in range(videos)]
    found = parts_of(ids, tmp_path, parts)
    assert sorted(found) == ids
    assert sorted(Counter(found.values()).values()) == sizes
    assert found == parts_of(ids[::-1], tmp_path, parts)
    assert [found[v] for v in ids] != sorted(found.values())


def test_videos_of_a_person_stay_together(tmp_path):
    ids = [f"rgb-{person:02d}-{i}" for person in range(9) for i in range(1 if person < 3 else 3)]  # 21 videos
    found = parts_of(ids, tmp_path, 3)
    assert all(len({found[v] for v in ids if v.startswith(f"rgb-{person:02d}")}) == 1 for person in range(9))
    assert list(Counter(found.values()).values()) == [7, 7, 7]
    with pytest.raises(UserError, match=r"a\.json: .*has 9 people or places to train on, too few for 10 parts .*use fewer"):
        parts_of(ids, tmp_path, 10)


def test_only_labelled_videos_have_parts(tmp_path):
    ids = [f"video_{i:04d}" for i in range(40)]
    found = parts_of(ids, tmp_path, 5, share=0.25)
    assert sorted(Counter(found.values()).values()) == [2] * 5


def test_training_leaves_out_its_part_and_nothing_else(tmp_path):
    data = write_data(tmp_path)
    configs = [two_stream(data, tmp_path, train_cfg={"leave_out": [part, 3]}) for part in range(3)]
    kept = [{v.id for v in TalDataset(config, config.train_split, True).videos} for config in configs]
    assert [len(k) for k in kept] == [4, 4, 4]
    assert sorted(v for k in kept for v in TRAINING.keys() - k) == sorted(TRAINING)  # each video is left out once
    assert {v.id for v in TalDataset(configs[0], configs[0].val_split, False).videos} == set(VALIDATION)
    taught = student(data, tmp_path, [tmp_path / "t"], train_cfg={"leave_out": [0, 3], "labelled_share": 0.5})
    trained = TalDataset(taught, taught.train_split, True)
    assert len(trained.videos) == 5  # one of the three labelled ones is left out
    assert len(trained.unlabelled_ids) == 3
    with pytest.raises(UserError, match="has 6 videos to train on, too few for 7 parts"):
        TalDataset(two_stream(data, tmp_path, train_cfg={"leave_out": [0, 7]}), ["training"], True)
