"""What the commands of the pages need, generated small: videos, exports of annotation tools, archives, narrow configurations.

The files have the names, layouts, rates and widths that the pages speak of; only numbers of videos and of weights are smaller.
"""
from __future__ import annotations

import io
import json
import shutil
import zipfile
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from doc_commands import ROOT, run

from libs.core.config import from_dict, load_config, to_dict
from libs.datasets.features.provenance import extractor_of
from libs.datasets.video.extractors import create
from libs.engine.runs.checkpoint import save_checkpoint
from libs.engine.runs.run_folder import run_folder
from libs.modeling.model import build_model

ACTIVITIES = ("WALKING", "WALKING_UPSTAIRS", "WALKING_DOWNSTAIRS", "SITTING", "STANDING", "LAYING", "STAND_TO_SIT",
              "SIT_TO_STAND", "SIT_TO_LIE", "LIE_TO_SIT", "STAND_TO_LIE", "LIE_TO_STAND")
RECORDINGS = ("exp01_user01", "exp02_user01", "exp03_user02", "exp04_user02", "exp05_user03", "exp06_user03", "exp07_user09",
              "exp08_user12", "exp09_user16", "exp10_user21", "exp11_user27")
NARROW = {"embd_dim": 8, "fpn_dim": 8, "head_dim": 8}
SHORT = {  # the configuration of the repository, and what makes it small; numbers of epochs stay where file names tell them
    "demo": {"model": NARROW, "loader": {"batch_size": 8}},
    "hapt": {"model": NARROW, "loader": {"batch_size": 4}},
    "planted": {"model": NARROW, "loader": {"batch_size": 40}},
}
STUDENT_WIDTH = {"embd_dim": 12, "fpn_dim": 12, "head_dim": 12}


def write(folder: Path) -> None:
    """Fill an empty folder with all of it."""
    shutil.copytree(ROOT / "pretrained", folder / "pretrained")
    configurations(folder)
    hapt_archive(folder / "HAPT.zip")
    (folder / "thumos14.json").write_text(json.dumps({"database": thumos_annotations()}))
    videos = [f"run_{i}" for i in range(1, 6)]
    (folder / "videos").mkdir()
    for i, name in enumerate(videos):
        film(folder / f"videos/{name}.mp4", i)
    film(folder / "holiday.mp4", 0)
    video_detector(folder / "ckpt/video_first/epoch_001.pth.tar")
    annotation_exports(folder, videos)
    example = torch.zeros(1, 64, 300), torch.ones(1, 64, dtype=torch.bool)
    torch.export.save(torch.export.export(Heads(), example), folder / "hapt.pt2")


class Heads(torch.nn.Module):
    """A program with the inputs and outputs that tools/export.py gives a network: 12 classes, one point a step."""

    def forward(self, feats: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return feats[..., :12] * mask[..., None], feats[..., :2] * mask[..., None], mask


def configurations(folder: Path) -> None:
    """The repository's, with a narrower network."""
    shutil.copytree(ROOT / "configs", folder / "configs")
    for name, change in SHORT.items():
        (folder / f"configs/{name}.yaml").write_text(json.dumps({"_base_": str(ROOT / f"configs/{name}.yaml"), **change}))
    student = folder / "configs/distill/demo/student.yaml"
    shutil.move(student, student.with_name("_student.yaml"))
    student.write_text(json.dumps({"_base_": "_student.yaml", "model": STUDENT_WIDTH}))


def hapt_archive(path: Path) -> None:
    """Recordings of 44 s in the published layout, each with five activities."""
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("activity_labels.txt", "".join(f"{i} {name}\n" for i, name in enumerate(ACTIVITIES, 1)))
        rows = []
        for i, name in enumerate(RECORDINGS):
            exp, user = int(name[3:5]), int(name[-2:])
            rows += [f"{exp} {user} {(5 * i + k) % 12 + 1} {420 * k + 20} {420 * k + 380}\n" for k in range(5)]
            for sensor in ("acc", "gyro"):
                out = io.StringIO()
                np.savetxt(out, rng.standard_normal((2200, 3)), fmt="%.3f")
                archive.writestr(f"RawData/{sensor}_{name}.txt", out.getvalue())
        archive.writestr("RawData/labels.txt", "".join(rows))


def thumos_annotations() -> dict[str, Any]:
    """42 validation and 42 test videos of 12 s, two of the 20 classes in each."""
    def item(start: float, label: int) -> dict[str, Any]:
        return {"segment": [start, start + 3], "label": f"class{label:02d}", "label_id": label}
    return {f"video_{subset}_{i:07d}": {"subset": subset.capitalize(), "duration": 12.0, "fps": 25.0,
                                        "annotations": [item(1.0, i % 20), item(6.0, (i + 7) % 20)]}
            for subset in ("validation", "test") for i in range(42)}


def film(path: Path, seed: int) -> None:
    """Four seconds of changing grey at 25 frames per second."""
    import av
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 160, 128, "yuv420p"
        for k in range(100):
            frame = av.VideoFrame.from_ndarray(np.full((128, 160, 3), (40 * seed + 2 * k) % 256, np.uint8), format="rgb24")
            frame.pts, frame.time_base = k, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def video_detector(path: Path) -> None:
    """A new network for the features of `descriptor`, as train.py leaves it."""
    record = extractor_of(create("descriptor", {}).describe(), "")
    config = from_dict({"devices": ["cpu"], "dataset_name": "generic", "model": {**NARROW, "n_head": 1, "modalities": ["rgb"]},
                        "dataset": {"json_file": "a.json", "feat_folder": "features", "input_dim": 657, "feat_stride": 4,
                                    "num_frames": 16, "num_classes": 1, "extractor": record,
                                    "modalities": {"rgb": [0, 232], "flow": [232, 657]}}})
    weights = build_model(config).state_dict()
    save_checkpoint(path, 1, weights, weights, {}, {}, {"config": to_dict(config), "labels": {0: "jump"}})


def annotation_exports(folder: Path, videos: list[str]) -> None:
    """labels.csv, elan/, lengths.csv, a Label Studio project and a FiftyOne export, all about the same videos."""
    rows = [f"{v},{s},{s + 1.2},{label},person {v[-1]}\n" for v in videos for s, label in ((0.4, "jump"), (2.1, "throw"))]
    (folder / "labels.csv").write_text("video,start,end,label,person\n" + "".join(rows))
    (folder / "lengths.csv").write_text("video,duration,fps\n" + "".join(f"{v},4.0,25\n" for v in videos))
    (folder / "elan").mkdir()
    for v in videos:
        (folder / f"elan/{v}.eaf").write_text(
            f'<?xml version="1.0" encoding="UTF-8"?><ANNOTATION_DOCUMENT><HEADER TIME_UNITS="milliseconds"><MEDIA_DESCRIPTOR '
            f'MEDIA_URL="file:///films/{v}.mp4" MIME_TYPE="video/mp4"/></HEADER><TIME_ORDER><TIME_SLOT TIME_SLOT_ID="a" '
            'TIME_VALUE="400"/><TIME_SLOT TIME_SLOT_ID="b" TIME_VALUE="1600"/></TIME_ORDER><TIER TIER_ID="actions"><ANNOTATION>'
            '<ALIGNABLE_ANNOTATION ANNOTATION_ID="x" TIME_SLOT_REF1="a" TIME_SLOT_REF2="b"><ANNOTATION_VALUE>jump'
            "</ANNOTATION_VALUE></ALIGNABLE_ANNOTATION></ANNOTATION></TIER></ANNOTATION_DOCUMENT>")
    tasks = [{"id": i, "data": {"video": f"/data/upload/1/{v}.mp4"}, "annotations": [{"id": i, "result": [
        {"type": "timelinelabels", "value": {"ranges": [{"start": 11, "end": 40}], "timelinelabels": ["jump"]}}]}]}
        for i, v in enumerate(videos)]
    (folder / "project-1.json").write_text(json.dumps(tasks))
    (folder / "export").mkdir()
    (folder / "export/labels.json").write_text(json.dumps({"classes": ["jump"], "labels": {
        v: [{"label": 0, "support": [11, 40]}] for v in videos}}))


def given(page: str) -> dict[str, Any]:
    """Names that the python blocks of a page use without defining them."""
    if page == "docs/inference.md":
        return {"feats": np.random.default_rng(0).standard_normal((240, 300)).astype(np.float32)}
    if page == "docs/export.md":
        return {"feats": torch.zeros(1, 64, 300), "mask": torch.ones(1, 64, dtype=torch.bool)}
    return {}


def before(words: list[str]) -> None:
    """What must be there, or not be there, before a command runs: the pages are stories of their own that share names."""
    script = words[1]
    if script == "tools/convert_annotations.py":
        Path(words[words.index("-o") + 1]).unlink(missing_ok=True)
    if script == "tools/check_dataset.py":
        Path(words[words.index("--write") + 1]).unlink(missing_ok=True)
    if script == "train.py" and "--resume" not in words:
        config = load_config(words[2])
        shutil.rmtree(run_folder(config, words[words.index("--output") + 1]), ignore_errors=True)
    if "ckpt/planted_first" in " ".join(words) and not Path("ckpt/planted_first").exists():  # the page tells another's story on
        assert run(["python", "train.py", "configs/planted.yaml", "--output", "first"])[0] == 0


def more(words: list[str]) -> list[str]:
    """Further words: the configuration that the dataset check suggests has the size of real training, and five videos are too few
    to leave some for validation."""
    if words[1:3] == ["eval.py", "ckpt/my_first"]:
        return ["--set", "val_split=[training]"]
    if words[1] not in ("train.py", "eval.py") or "configs/my.yaml" not in words:
        return []
    return ["--set", *(f"model.{key}={value}" for key, value in NARROW.items()), "opt.early_stop_epochs=1"]
