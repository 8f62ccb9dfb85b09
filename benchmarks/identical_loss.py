#!/usr/bin/env python3
"""Prove that a change of the program changes no number: short trainings and evaluations, recorded and compared bit by bit.

    python benchmarks/identical_loss.py --record FOLDER --jobs 2               before the change
    python benchmarks/identical_loss.py --compare FOLDER --jobs 2              after it: `equal: N cases`, exit code 0
    python benchmarks/identical_loss.py --compare FOLDER --tree DIR --only conv sgd --reordered
    python benchmarks/identical_loss.py --list

Every case trains 20 steps on the CPU with one thread and a fixed seed on data that --record writes to FOLDER/data, and evaluates.
Only command lines and files are used (train.py, eval.py, metrics.jsonl, checkpoints, prediction files), nothing is imported from
the program, so one record judges every later tree; --tree names the checkout to run (default: the one that holds this file).

FOLDER/CASE.json holds every logged value of every step, a digest of every weight and averaged weight by its name in the file, the
digests of predictions.json and predictions.csv, and the mAP; CASE.npz the weights and predictions themselves.  Teachers are the
recorded checkpoints (FOLDER/kept), also in --compare, so that a difference stays in its case.  `resumed` continues a run that the
recorded tree left in the middle of an epoch (FOLDER/half) and must end as an undisturbed one did; `old-checkpoint` evaluates.

--reordered is for a change of the order of sums.  Relative tolerances: losses and gradient norm of the first step 1e-6, of the
later ones 1e-4; scores of predictions 1e-3, their times 1e-3 of a second or of the time (one as low as the lowest of its list may
be missing); weights 1e-3 of the tensor's largest value and at least WEIGHTS_FLOOR, as Adam makes whole steps of tiny gradients.
Biases of attention keys and of the norm before them are left out: a constant added to all scores changes no softmax, their true
gradient is 0, and Adam follows rounding.  In bf16 all is larger (BF16).  mAP is left out: it follows from predictions, in jumps.
"""
from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = {"torch": torch.__version__, "numpy": np.__version__, "threads": 1,
               "CPU capability": torch.backends.cpu.get_cpu_capability()}  # what bits depend on
STEPS, SHOWN, LIMIT_S = 20, 6, 300  # of a case; differences of a case; seconds of a program
FIRST, CURVE, PREDICTED, WEIGHTS, WEIGHTS_FLOOR = 1e-6, 1e-4, 1e-3, 1e-3, 2e-4  # tolerances of --reordered
BF16, LARGEST = 1e3, 0.1  # times the tolerances in bf16, and the largest of them
NO_GRADIENT = ("key.bias", "key_norm.bias")
PREDICTION = [("video", "U40"), ("label", "U40"), ("start", "f8"), ("end", "f8"), ("score", "f8")]
CLASSES, FPS, STRIDE, CHANNELS = ("jump", "turn", "wave"), 25, 8, 32  # channels per stream
Arrays = dict[str, np.ndarray]

# the configuration that every case changes; RECORD/ and WORK/ stand for folders
BASE: dict[str, Any] = {
    "dataset_name": "thumos", "train_split": ["training"], "val_split": ["validation"], "devices": ["cpu"],
    "output_folder": "WORK/", "loader": {"batch_size": 3, "num_workers": 0},
    "dataset": {"json_file": "RECORD/data/annotations.json", "feat_folder": "RECORD/data/both", "file_ext": ".npy",
                "num_classes": 3, "input_dim": 64, "feat_stride": STRIDE, "num_frames": 16, "max_seq_len": 128,
                "trunc_thresh": 0.5, "crop_ratio": [0.8, 1.0], "modalities": {"rgb": [0, 32], "flow": [32, 64]}},
    "model": {"backbone_arch": [2, 1, 2], "regression_range": [[0, 4], [4, 8], [8, 10000]], "n_head": 4, "n_mha_win_size": 9,
              "embd_dim": 32, "fpn_dim": 32, "head_dim": 32},
    "train_cfg": {"init_loss_norm": 20, "clip_grad_l2norm": 1.0, "droppath": 0.1, "ema_warmup": True},
    "test_cfg": {"pre_nms_topk": 200, "min_score": 0.001, "max_seg_num": 40, "voting_thresh": 0.7},
    "opt": {"learning_rate": 0.003, "weight_decay": 0.05, "warmup_epochs": 1, "epochs": 4},
}
SLIM = {"model": {"modalities": ["rgb"], "backbone_type": "convnext", "block_kernel_size": 5, "head_type": "separable",
                  "embd_dim": 24, "fpn_dim": 24, "head_dim": 24}, "train_cfg": {"droppath": 0}, "dataset": {"crop_align": 4}}
TEACHER = {"teachers": [{"checkpoint": "RECORD/kept/transformer.pth.tar"}]}
MADE_UP = {"modalities": ["rgb"], "hallucinator": "rgb2flow", "hallucinated": ["flow"]}


def merged(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """Mappings merge, everything else is replaced."""
    return base | {key: merged(base[key], value) if isinstance(value, dict) and isinstance(base.get(key), dict) else value
                   for key, value in change.items()}


class Case(NamedTuple):
    """A training and its evaluation: what it changes in BASE, options of train.py."""

    name: str
    about: str
    changes: dict[str, Any] = {}  # noqa: RUF012 - never changed
    options: tuple[str, ...] = ()
    processes: int = 1
    kind: str = "train"  # or resume: a half-finished run; evaluate: a kept checkpoint, the one in `options`

    @property
    def needs(self) -> list[str]:
        """The cases whose checkpoints it reads."""
        return re.findall(r"RECORD/kept/([\w-]+)\.pth", json.dumps(self))


def stage(name: str, about: str, model: dict[str, Any], *teachers: str, start: str | None = None) -> Case:
    """A stage of the published chain; `teachers`: cases."""
    entries = [{"name": t, "checkpoint": f"RECORD/kept/{t}.pth.tar"} for t in teachers]
    distill = {"preset": "c2ms", "stage": name, "teachers": entries, "init_from": start}
    return Case(name.replace("_", "-"), f"published chain: {about}", {"model": model, "distill": distill})


CASES = {case.name: case for case in (
    Case("transformer", "local attention, identity neck, as for THUMOS14; teacher of other cases"),
    Case("fpn-relative", "fpn neck from level 1, relative positions, one global level",
         {"model": {"fpn_type": "fpn", "fpn_dim": 24, "fpn_start_level": 1, "regression_range": [[0, 8], [8, 10000]],
                    "use_rel_pe": True, "n_mha_win_size": [9, 5, -1]}, "train_cfg": {"dropout": 0.1}}),
    Case("conv", "convolutional backbone", {"model": {"backbone_type": "conv"}}),
    Case("convnext", "convnext backbone, separable heads", merged(SLIM, {"model": {"modalities": None}})),
    Case("pooling", "max pooling by 4, gate over time",
         {"model": {"branch_type": "max_pool", "scale_factor": 4, "temporal_gate": "post_norm"}}),
    Case("class-agnostic", "as for ActivityNet: one class, stretched features, automatic loss weight, class scores from outside",
         {"dataset_name": "anet", "dataset": {"num_classes": 1, "force_upsampling": True, "default_fps": FPS},
          "model": {"use_abs_pe": True, "n_mha_win_size": [7, 7, -1]}, "train_cfg": {"loss_weight": 0, "label_smoothing": 0.1},
          "test_cfg": {"multiclass_nms": False, "voting_thresh": 0.9, "ext_score_file": "RECORD/data/scores.json"}}),
    Case("list-inputs", "two feature folders, an input and a width for each",
         {"dataset": {"feat_folder": ["RECORD/data/rgb", "RECORD/data/flow"], "input_dim": [32, 32], "modalities": None},
          "model": {"embd_dim": [24, 8]}}),
    Case("folders-fusion", "streams in folders of their own, one resampled; gated fusion",
         {"dataset": {"feat_folder": "", "modalities": {"rgb": {"folder": "RECORD/data/rgb", "dim": 32},
                                                        "flow": {"folder": "RECORD/data/slow", "dim": 16, "resample": "linear"}}},
          "model": {"modalities": ["rgb", "flow"], "fusion": "gated"}}),
    Case("bf16", "training in bfloat16", {"train_cfg": {"precision": "bf16"}}),
    Case("buckets", "similar lengths, reading processes, cache", {"loader": {"bucket": 2, "num_workers": 2, "cache": "ram"}}),
    Case("published-padding", "batches as long as max_seq_len", {"loader": {"padding": "max_seq_len"}}),
    Case("accumulation", "three batches per step", {"loader": {"batch_size": 1}, "opt": {"accumulation_steps": 3}}),
    Case("two-processes", "two processes, gloo", {"opt": {"epochs": 8, "warmup_epochs": 2}}, processes=2),
    Case("eval-freq", "evaluation in training, batches in evaluation, slow average",
         {"train_cfg": {"ema_warmup": False, "ema_decay": 0.9}, "test_cfg": {"batch_size": 2}}, ("--eval-freq", "2")),
    Case("init-from", "fine-tuning of a recorded checkpoint", {}, ("--init-from", "RECORD/kept/transformer.pth.tar")),
    Case("sgd", "SGD, multistep, positives anywhere, hard NMS, raw weights",
         {"opt": {"type": "SGD", "learning_rate": 0.02, "schedule_type": "multistep", "schedule_steps": [1, 3]},
          "train_cfg": {"center_sample": "none"}, "test_cfg": {"nms_method": "hard", "weights": "raw"}}),
    Case("sgd-conv", "SGD, convolutions, dropout of channels, no warm-up, no clipping",
         {"model": {"backbone_type": "conv"}, "train_cfg": {"input_dropout": 0.1, "clip_grad_l2norm": -1},
          "opt": {"type": "SGD", "learning_rate": 0.01, "warmup": False, "epochs": 5}}),
    Case("corrected-cache", "a student, cached outputs of its teacher",
         {**SLIM, "distill": {**TEACHER, "outputs": "cache", "cache_folder": "WORK/cache"}}),
    Case("corrected-unlabelled", "a student that meets videos without annotations too",
         {**SLIM, "unlabelled_split": ["extra"], "loader": {"batch_size": 5}, "distill": TEACHER}),
    Case("corrected-blended", "blended videos, a hallucinator, gated fusion, terms of features, SGD",
         {"model": {**MADE_UP, "hallucinator": "separable", "fusion": "gated"}, "opt": {"type": "SGD", "learning_rate": 0.005},
          "distill": {**TEACHER, "mixup": 0.3, "pyramid": {"weight": 0.5}, "stem": {"weight": 0.5}}}),
    stage("structure_teacher", "two streams", {"modalities": ["rgb", "flow"], "backbone_type": "conv"}, "transformer"),
    stage("cross_modal", "flow is made up", {**MADE_UP, "backbone_type": "conv"}, "structure-teacher", start="structure-teacher"),
    stage("cross_structure", "depthwise convolutions", {**MADE_UP, "backbone_type": "conv_dw"}, "cross-modal"),
    stage("multi_teacher", "two teachers", {**MADE_UP, "backbone_type": "conv_dw"}, "transformer", "structure-teacher",
          start="structure-teacher"),
    Case("resumed", "a run of the recorded tree, stopped in the middle of an epoch, goes on",
         {"train_split": ["training", "extra"], "loader": {"batch_size": 2}, "opt": {"epochs": 1}}, kind="resume"),
    Case("old-checkpoint", "one of the recorded tree is evaluated", {}, ("RECORD/kept/transformer.pth.tar",), kind="evaluate"),
)}


class Refused(Exception):
    """Bad input, or a program that fails: one line."""


def write_data(folder: Path) -> None:
    """Annotations, features (rgb, flow, both side by side, and a slow stream) and class scores from outside."""
    rng, database, scores = np.random.default_rng(20), {}, {}
    signals = rng.normal(size=(len(CLASSES), 2 * CHANNELS)).astype(np.float32)
    for video in [f"{name}_{i:02d}" for name, count in (("training", 12), ("extra", 8), ("validation", 4)) for i in range(count)]:
        steps, place, segments = int(rng.integers(40, 200)), 3, []
        feats = rng.normal(size=(steps, 2 * CHANNELS)).astype(np.float32)
        while place < steps - 4:
            end, label = min(place + int(rng.integers(2, 24)), steps - 1), int(rng.integers(len(CLASSES)))
            feats[place:end] += signals[label]
            times = [(step * STRIDE + 8) / FPS for step in (place, end)]
            segments.append({"segment": times, "label": CLASSES[label], "label_id": label})
            place = end + int(rng.integers(-1, 20))
        database[video] = {"subset": video[:-3], "duration": (steps * STRIDE + 16) / FPS, "fps": FPS, "annotations": segments}
        scores[video] = [float(x) for x in rng.random(len(CLASSES)).round(4)]
        parts = {"both": feats, "rgb": feats[:, :CHANNELS], "flow": feats[:, CHANNELS:], "slow": feats[::2, ::4]}
        for name, part in parts.items():
            (folder / name).mkdir(parents=True, exist_ok=True)
            np.save(folder / name / f"{video}.npy", np.ascontiguousarray(part))
    write_json(folder / "scores.json", {"results": scores})
    write_json(folder / "annotations.json", {"database": database})  # last: it tells that the data are whole


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, sort_keys=True, indent=1) + "\n", encoding="utf-8")


class Runner(NamedTuple):
    """Runs cases with the programs of `tree`; `record` holds data and kept files, `work` is a scratch folder."""

    tree: Path
    record: Path
    work: Path

    def run(self, case: Case, keep: bool) -> tuple[dict[str, Any], Arrays]:
        """What a case leaves: its record and its arrays.  `keep`: it is being recorded, so leave what other cases need too."""
        place = self.work / case.name
        place.mkdir()
        record: dict[str, Any] = {"settings": merged(BASE, case.changes)}
        text = json.dumps([record["settings"], case.options])
        settings, options = json.loads(text.replace("RECORD/", f"{self.record}/").replace("WORK/", f"{place}/"))
        config, run, results = place / "c.yaml", place / "c_x", place / "eval"
        config.write_text(json.dumps(settings), encoding="utf-8")  # JSON is YAML
        checkpoint = Path(*options[:1])
        if case.kind != "evaluate":
            if case.kind == "resume" and keep:
                self._keep_half(config, place / "c_half")
            elif case.kind == "resume":
                shutil.copytree(self.record / "half", run)
                options += ["--resume", "auto"]
            self._start(case, "train.py", config, "--output", "x", *options, processes=case.processes)
            lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
            record |= {"step": [x for x in lines if "lr" in x], "evaluation": [x for x in lines if "lr" not in x]}
            if len(record["step"]) != STEPS:
                raise Refused(f"{case.name}: {len(record['step'])} steps in metrics.jsonl, {STEPS} expected")
            checkpoint = max(run.glob("epoch_*.pth.tar"))
        content = torch.load(checkpoint, weights_only=True)
        record["checkpoint"] = {"keys": sorted(content), "epoch": content["epoch"]}
        arrays: Arrays = {}
        for part, key in (("weights", "state_dict"), ("averages", "state_dict_ema")):
            values = {name: value.numpy() for name, value in content[key].items()}
            record[part] = {k: sha256(f"{x.dtype} {x.shape} ".encode() + x.tobytes()).hexdigest() for k, x in values.items()}
            arrays |= {f"{part}: {name}": value for name, value in values.items()}
        self._start(case, "eval.py", config, checkpoint, "--output", results)
        record["predictions"] = {name: sha256((results / name).read_bytes()).hexdigest()
                                 for name in ("predictions.json", "predictions.csv")}
        scores = json.loads((results / "results.json").read_text(encoding="utf-8"))
        about = ("checkpoint", "config", "confidence", "conditions")  # paths, and what follows from the rest
        record["scores"] = {key: value for key, value in scores.items() if key not in about}
        if keep and any(case.name in other.needs for other in CASES.values()):
            (self.record / "kept").mkdir(exist_ok=True)
            shutil.copy(checkpoint, self.record / "kept" / f"{case.name}.pth.tar")
        found = json.loads((results / "predictions.json").read_text(encoding="utf-8"))["results"]
        rows = [(video, row["label"], *row["segment"], row["score"]) for video in found for row in found[video]]
        return record, arrays | {"rows": np.array(rows, PREDICTION)}

    def _command(self, script: str, *arguments: Any, processes: int = 1) -> dict[str, Any]:
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
        paths = os.pathsep.join(filter(None, [str(self.tree), os.environ.get("PYTHONPATH")]))
        env = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        return {"args": [sys.executable, *launcher, str(self.tree / script), *map(str, arguments)], "cwd": self.tree, "env": env}

    def _start(self, case: Case, *command: Any, processes: int = 1) -> None:
        done = subprocess.run(**self._command(*command, processes=processes), capture_output=True, text=True, check=False,
                              timeout=LIMIT_S)
        if done.returncode:
            lines = ["no message", *filter(str.strip, done.stderr.splitlines())]
            reason = next((line for line in lines if line.startswith("error: ")), lines[-1])
            raise Refused(f"{case.name}: {command[0]} ended with exit code {done.returncode}: {reason}")

    def _keep_half(self, config: Path, run: Path) -> None:
        """Stop a run by SIGTERM in its second epoch, after which step is left to chance, and keep its folder."""
        left, code = run / "interrupted.pth.tar", 0
        command = self._command("train.py", config, "--output", "half", "-c", 1, "--save-minutes", "0.000001")
        for _ in range(5):
            shutil.rmtree(run, ignore_errors=True)
            process = subprocess.Popen(**command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            while process.poll() is None and not ((run / "epoch_001.pth.tar").exists() and left.exists()):
                time.sleep(0.001)
            time.sleep(0.1)  # the file of the first epoch's middle goes a moment after the epoch's comes
            process.send_signal(signal.SIGTERM)
            code = process.wait(LIMIT_S)
            if code == 75 and left.exists() and torch.load(left, weights_only=True)["training"]["data_order"]["next_step"]:
                shutil.rmtree(self.record / "half", ignore_errors=True)
                shutil.copytree(run, self.record / "half")
                return
        raise Refused(f"resumed: no run could be stopped in the middle of an epoch; the last one ended with exit code {code}")


def flat(record: dict[str, Any]) -> dict[str, Any]:
    """'step 3: cls_loss', 'weights: module.x.weight' and so on, and the values; settings left out."""
    entries = [(f"{name} {i}", content) for name in ("step", "evaluation") for i, content in enumerate(record.get(name, ()), 1)]
    entries += [(name, content) for name, content in record.items() if isinstance(content, dict) and name != "settings"]
    return {f"{where}: {key}": value for where, content in entries for key, value in content.items()}


def differences(old: dict[str, Any], new: dict[str, Any], arrays: tuple[Arrays, Arrays], reordered: bool) -> Iterator[str]:
    """What differs between a record and the present, with both values; `arrays`: recorded ones, present ones."""
    scale = BF16 if old["settings"]["train_cfg"].get("precision") == "bf16" else 1.0
    before, after = flat(old), flat(new)
    for where in {**before, **after}:
        a, b = before.get(where, "missing"), after.get(where, "missing")
        if a == b or repr(a) == repr(b) or (reordered and where.startswith(("predictions", "scores", "evaluation"))):
            continue
        x, y = np.asarray(arrays[0].get(where, a)), np.asarray(arrays[1].get(where, b))
        apart = float(np.abs(x - y).max()) if x.shape == y.shape and x.dtype.kind == y.dtype.kind == "f" else None
        if reordered and apart is not None:
            share = FIRST if where.startswith("step 1:") else CURVE if where.startswith("step") else WEIGHTS
            allowed = min(scale * share, LARGEST) * float(np.abs(x).max())
            if where.startswith(("weights", "averages")):
                allowed = max(allowed, min(scale * WEIGHTS_FLOOR, LARGEST))
            if (apart <= allowed and not where.endswith(": lr")) or where.endswith(NO_GRADIENT):
                continue
        yield f"{where}: recorded {a!r}, now {b!r}" + (f" (largest difference {apart:.3g})" if apart is not None else "")
    one, other = (part["rows"] for part in arrays)
    if reordered:
        tolerance = min(scale * PREDICTED, LARGEST)
        yield from (f"prediction {row}: recorded, not found now" for row in without_counterpart(one, other, tolerance))
        yield from (f"prediction {row}: found now, not recorded" for row in without_counterpart(other, one, tolerance))
        return
    for i in range(max(len(one), len(other))):
        if (a := one[i:i + 1].tolist()) != (b := other[i:i + 1].tolist()):
            yield f"prediction {i + 1}: recorded {a}, now {b}"


def without_counterpart(one: np.ndarray, other: np.ndarray, tolerance: float) -> Iterator[tuple]:
    """Rows of `one` that `other` does not have for that video and label, those beside the lowest score of a list left out."""
    for row in one:
        near = (other["video"] == row["video"]) & (other["label"] == row["label"])
        near &= np.abs(other["score"] - row["score"]) <= tolerance * row["score"]
        for name in ("start", "end"):
            near &= np.abs(other[name] - row[name]) <= tolerance * max(1.0, abs(row[name]))
        if not near.any() and row["score"] > one["score"][one["video"] == row["video"]].min() * (1 + tolerance):
            yield row.item()


def record_all(runner: Runner, cases: Sequence[Case], jobs: int) -> int:
    """Run the cases, each after those that it needs, and write what they leave."""
    folder = runner.record
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()) and not (folder / "environment.json").exists():
        raise Refused(f"{folder}: holds files that are no record; name an empty folder")
    write_json(folder / "environment.json", ENVIRONMENT)
    if not (folder / "data" / "annotations.json").exists():
        write_data(folder / "data")
    left = list(cases)
    with ThreadPoolExecutor(jobs) as pool:
        while left:
            ready = [case for case in left if not {c.name for c in left} & set(case.needs)]
            left = [case for case in left if case not in ready]
            for case, (record, arrays) in zip(ready, pool.map(lambda case: runner.run(case, keep=True), ready), strict=True):
                np.savez_compressed(folder / f"{case.name}.npz", **arrays)
                write_json(folder / f"{case.name}.json", record)
                print(f"{case.name}: recorded", flush=True)
    print(f"recorded: {len(cases)} cases")
    return 0


def compare_all(runner: Runner, cases: Sequence[Case], jobs: int, reordered: bool) -> int:
    """Run the cases and print what differs from the record; 1 if anything does."""
    folder, different = runner.record, []
    try:
        before = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
        records = {case.name: json.loads((folder / f"{case.name}.json").read_text(encoding="utf-8")) for case in cases}
    except (OSError, ValueError) as error:
        raise Refused(f"{folder}: holds no whole record of these cases ({error}); write one with --record") from error
    for key in [key for key in ENVIRONMENT if before.get(key) != ENVIRONMENT[key]]:
        print(f"warning: recorded with {key} {before.get(key)}, here it is {ENVIRONMENT[key]}: bits may differ", file=sys.stderr)
    if changed := [case.name for case in cases if records[case.name]["settings"] != merged(BASE, case.changes)]:
        raise Refused(f"{folder}: {', '.join(changed)}: recorded with other settings; record them again with --only")

    def judge(case: Case) -> list[str]:
        try:
            record, new = runner.run(case, keep=False)
        except (Refused, subprocess.TimeoutExpired) as error:
            return [str(error)]
        with np.load(folder / f"{case.name}.npz") as arrays:
            old = dict(arrays)
        return [f"{case.name}: {line}" for line in differences(records[case.name], record, (old, new), reordered)]

    with ThreadPoolExecutor(jobs) as pool:
        for case, found in zip(cases, pool.map(judge, cases), strict=True):
            print(f"{case.name}: {len(found) or 'no'} differences", *found[:SHOWN], sep="\n    ", flush=True)
            different += [case.name] * bool(found)
    many = f"{len(cases)} cases"
    print(f"different: {len(different)} of {many}: {', '.join(different)}" if different else f"equal: {many}")
    return int(bool(different))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--record", type=Path, metavar="FOLDER", help="run the cases and write what they leave")
    what.add_argument("--compare", type=Path, metavar="FOLDER", help="run the cases and compare with what was recorded")
    what.add_argument("--list", action="store_true", help="name the cases")
    parser.add_argument("--tree", type=Path, default=ROOT, metavar="DIR", help="the checkout to run (that of this file)")
    parser.add_argument("--only", nargs="+", default=[], metavar="CASE", help="only these cases")
    parser.add_argument("--jobs", type=int, choices=range(1, 65), default=1, metavar="N", help="cases at a time (1)")
    parser.add_argument("--reordered", action="store_true", help="with --compare: allow for another order of sums")
    args = parser.parse_args()
    if args.list:
        print("\n".join(f"{case.name:22}{case.about}" for case in CASES.values()))
        return 0
    try:
        tree, record = args.tree.resolve(), (args.record or args.compare).resolve()
        if not all((tree / name).is_file() for name in ("train.py", "eval.py")):
            raise Refused(f"--tree {args.tree}: holds no train.py and eval.py; name a checkout of the repository")
        if unknown := [name for name in args.only if name not in CASES]:
            raise Refused(f"--only {unknown[0]}: no such case; they are {', '.join(CASES)}")
        cases = [case for case in CASES.values() if case.name in (args.only or CASES)]
        with tempfile.TemporaryDirectory() as work:
            runner = Runner(tree, record, Path(work))
            return record_all(runner, cases, args.jobs) if args.record else compare_all(runner, cases, args.jobs, args.reordered)
    except (Refused, subprocess.TimeoutExpired) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
