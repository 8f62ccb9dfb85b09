"""docs/custom_dataset.md, "From raw video": its commands as they stand, on rendered clips, from videos and a CSV to a page."""
from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from doc_commands import blocks, commands, run

from libs.core.files import entries
from libs.datasets.synthetic.clips import ClipsSpec, make_clips
from libs.datasets.synthetic.figures import CLASSES

pytest.importorskip("av")
pytest.importorskip("cv2")
PAGE = "docs/custom_dataset.md"


@pytest.mark.slow
def test_from_a_folder_of_videos_and_a_csv_to_a_page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_clips(Path("made"), ClipsSpec(training=9, validation=0, seconds=(10.0, 12.0), gap_s=0.2))
    database = json.loads(Path("made/annotations.json").read_text())["database"]
    shutil.move("made/videos", "videos")
    shutil.move("videos/clip_008.mp4", "holiday.mp4")
    rows = [f"{name},{a['segment'][0]},{a['segment'][1]},{a['label']},person {int(name[-1]) // 2}\n"
            for name, video in database.items() if name != "clip_008" for a in video["annotations"]]
    Path("labels.csv").write_text("video,start,end,label,person\n" + "".join(rows))
    first = next(block for block in blocks(PAGE) if block.language == "sh")
    assert "extract_features.py videos" in first.text
    for words in commands(first, tmp_path):
        code, printed = run(words)
        assert code == 0, printed[-2000:]
    content = json.loads(Path("holiday.html").read_text().split('id="data">')[1].split("</script>")[0])
    video, = content["timeline"]["videos"]
    assert video["media"] == Path("holiday.mp4").resolve().as_uri()
    assert video["duration"] == pytest.approx(database["clip_008"]["duration"])
    assert set(content["classes"]) <= set(CLASSES)
    assert video["predictions"][0]["total"] > 0
    results = next(path for folder in entries("ckpt/my_first/eval") for path in [folder / "results.json"])
    assert json.loads(results.read_text())["average_mAP"] > 0
