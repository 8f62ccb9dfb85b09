"""Features against published ones: equal, near, shifted, in another order, of another chain; one verdict."""
from __future__ import annotations

import json

import compare_features as script
import numpy as np
import pytest
from helpers import one_error, run_script

from libs.datasets.features.compare import compare, pairs, verdict

WIDTH = 2048


def features(steps: int = 60, seed: int = 0) -> np.ndarray:
    """Positive features that change slowly, as those of overlapping windows do."""
    rng = np.random.default_rng(seed)
    raw = rng.normal(size=(steps + 3, WIDTH))
    return np.abs(raw[:-3] + raw[1:-2] + raw[2:-1] + raw[3:]).astype(np.float32)


def changed(x: np.ndarray, by: float) -> np.ndarray:
    return (x + by * np.random.default_rng(1).normal(size=x.shape) * x.std()).astype(np.float32)


STREAMS = {"rgb": (0, 1024), "flow": (1024, 2048)}
OURS = features()
CASES = {
    "equal": (OURS, True, ["rgb matches (cosine 1.0000", "flow matches"]),
    "flow of another method": (np.hstack([OURS[:, :1024], changed(OURS[:, 1024:], 0.3)]), True, ["rgb matches", "flow is near"]),
    "another network": (features(seed=5), False, ["rgb differs", "flow differs"]),
    "normalised": (OURS / np.linalg.norm(OURS, axis=1, keepdims=True), True, ["rgb is near (cosine 1.0000", "flow is near"]),
    "flow first": (np.hstack([OURS[:, 1024:], OURS[:, :1024]]), False, ["other order of streams: our rgb is like their flow"]),
    "two steps more in front": (np.vstack([features(2, 9), OURS]), False,
                                ["shifted", "theirs at t +2 steps, +8 frames (cosine 1.000)", "1 of 1 videos", "(60, 62) steps"]),
    "a step less in front": (OURS[1:], False, ["theirs at t -1 steps, -4 frames", "(60, 59) steps"]),
}


@pytest.mark.parametrize("name", CASES)
def test_the_verdict(name):
    theirs, good, fragments = CASES[name]
    found = verdict({"a": compare(OURS, theirs, STREAMS)}, 4)
    assert found[0] is good, found
    for fragment in fragments:
        assert fragment in found[1], found


def test_cosines_by_hand():
    ours, theirs = OURS[:5, :8], OURS[1:6, :8]
    result, = compare(ours, theirs, {"all": (2, 6)})
    by_hand = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(ours[:, 2:6], theirs[:, 2:6], strict=True)]
    assert np.allclose(result.cosines, by_hand)
    assert result.mean == pytest.approx(np.mean(by_hand))
    assert (result.shifted[-1], result.steps) == (pytest.approx(1), (5, 5))
    assert set(result.shifted) == set(range(-4, 5))
    assert result.size == pytest.approx(np.median(np.linalg.norm(ours[:, 2:6], axis=1) / np.linalg.norm(theirs[:, 2:6], axis=1)))


def test_one_step_and_zeros_have_a_verdict():
    zeros = np.zeros((1, 4), np.float32)
    result, = compare(zeros, zeros + 1, {"all": (0, 4)})
    assert (result.mean, result.shift, result.level) == (0.0, 0, "differs")


@pytest.fixture
def folders(tmp_path):
    for name in ("ours", "theirs"):
        (tmp_path / name).mkdir()
        for i in range(2):
            np.save(tmp_path / name / f"v{i}.npy", features(seed=i))
    (tmp_path / "ours/provenance.json").write_text(json.dumps({"stride": 4, "num_frames": 16, "videos": {}}))
    return tmp_path


def run(capsys, *argv: object) -> tuple[int, str, str]:
    return run_script(capsys, script.main, "compare_features.py", *map(str, argv))


def test_the_script_prints_a_row_per_stream_and_a_verdict(folders, capsys):
    ours, theirs = folders / "ours", folders / "theirs"
    np.save(theirs / "v1.npy", features(seed=1)[1:])
    code, out, _ = run(capsys, ours, theirs, "--csv", folders / "steps.csv")
    lines = out.splitlines()
    assert (code, len(lines)) == (1, 6)
    assert lines[1].split()[:4] == ["v1", "rgb", "60", "59"]
    assert lines[-1].startswith("verdict: ")
    table = (folders / "steps.csv").read_text().splitlines()
    assert (table[0], len(table)) == ("video,step,stream,cosine", 1 + 2 * (60 + 59))
    assert table[1] == "v0,0,rgb,1.000000"
    code, out, _ = run(capsys, ours / "v0.npy", theirs / "v0.npy")
    assert (code, "rgb matches" in out) == (0, True)
    assert "exists already" in one_error(*run(capsys, ours, theirs, "--csv", folders / "steps.csv")[::2])


def test_streams_are_those_of_the_provenance(folders, capsys):
    streams = [{"name": "look", "channels": [0, 232]}, {"name": "move", "channels": [232, 2048]}]
    noted = {"stride": 4, "num_frames": 16, "streams": streams}
    (folders / "theirs/provenance.json").write_text(json.dumps(noted))
    assert "move matches" in run(capsys, folders / "ours", folders / "theirs")[1]
    assert set(pairs(folders / "ours", folders / "theirs")) == {"v0", "v1"}


def test_what_cannot_be_compared_is_one_error(folders, capsys):
    np.save(folders / "turned.npy", features().T[:, :50])
    np.save(folders / "v00.npy", features())
    (folders / "other").mkdir()
    np.save(folders / "other/w.npy", features())
    (folders / "notes.txt").write_text("")
    cases = [("turned.npy", ["turned.npy", "50 and 2048 channels", "transposed"]), ("gone.npy", ["gone.npy: no such"]),
             ("other", ["no file of one name", "'v0'"]), ("notes.txt", ["notes.txt: is no feature file", ".npy"])]
    for name, fragments in cases:
        theirs = folders / name
        ours = folders / "ours/v0.npy" if theirs.suffix else folders / "ours"
        pair = (theirs, ours) if theirs.stem == "turned" else (ours, theirs)
        error = one_error(*run(capsys, *pair)[::2])
        for fragment in fragments:
            assert fragment in error, error
