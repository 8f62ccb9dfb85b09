"""The shipped checkpoint of the rendered clips, on clips that its training has not seen; the commands of README.md."""
from __future__ import annotations

import json
from pathlib import Path

import pytest
from doc_commands import ROOT, blocks, commands, run

from libs.datasets.ground_truth import read_with_ground_truth
from libs.datasets.synthetic.clips import ClipsSpec, make_clips
from libs.datasets.synthetic.figures import CLASSES
from libs.engine.api import load_model
from libs.utils.evaluation.metrics import DEFAULT_TIOUS, evaluate_detections

pytest.importorskip("av")
pytest.importorskip("cv2")
CHECKPOINT = ROOT / "pretrained/video_student.pth.tar"


@pytest.mark.slow
def test_it_is_small_and_finds_half_of_what_it_should(tmp_path):
    assert CHECKPOINT.stat().st_size < 1e6
    make_clips(tmp_path, ClipsSpec(training=0, validation=3, first=900, seconds=(14.0, 16.0), gap_s=0.3))
    model = load_model(CHECKPOINT, device="cpu")
    assert tuple(model.label_names[i] for i in range(6)) == CLASSES
    model.predict(tmp_path / "videos").save(tmp_path / "found.json")
    (found,), annotated = read_with_ground_truth([tmp_path / "found.json"], tmp_path / "annotations.json")
    scores = evaluate_detections(found, annotated.ground_truth, DEFAULT_TIOUS)
    assert 0.25 < scores.average_mAP < 0.95  # a network that knows nothing: below 0.05


@pytest.mark.slow
def test_the_first_timeline_of_the_readme(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("pretrained").symlink_to(ROOT / "pretrained")
    block = next(block for block in blocks("README.md") if "make_clips.py" in block.text)
    for words in commands(block, tmp_path):
        if words[0] == "python":
            code, printed = run(words)
            assert code == 0, printed
    page, = Path().glob("*.html")
    content = json.loads(page.read_text().split('id="data">')[1].split("</script>")[0])
    assert content["classes"] == list(CLASSES)
    assert content["timeline"]["videos"][0]["media"].endswith(".mp4")
