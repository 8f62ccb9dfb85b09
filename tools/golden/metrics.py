"""Golden checks of the evaluator: eval_seed*.npz (ActivityNet protocol and score fusion) and the detections oracle."""
from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np

from golden.common import Check, agree, compare, load, text
from libs.utils.evaluation.metrics import evaluate_detections, unique_rank_scores
from libs.utils.evaluation.predictions import Detections, GroundTruth, read_predictions
from libs.utils.evaluation.score_fusion import fuse_external_scores
from libs.utils.evaluation.thumos_protocol import evaluate_thumos14, load_thumos14_folder
from libs.utils.files.io import read_json

# `ties` follows an unstable sort; `collision` counts unknown classes as other classes (SPEC section 11, rows 46 and 47)
INFORMATIONAL = ("ties", "collision")
TOLERANCE = 1e-9
PERCENT = 100.0
FUSED_CASE = "anet_tious"


def check(path: Path) -> list[Check]:
    """All comparisons of one eval_seed*.npz."""
    fixture = load(path)
    checks: list[Check] = []
    for case in sorted({name.split("/")[0] for name in fixture if name.endswith("/gt_json")}):
        checks += _check_case(case, {name.split("/")[1]: v for name, v in fixture.items() if name.startswith(f"{case}/")})
    for case in sorted({name.split("/")[0] for name in fixture if name.startswith("fusion_")}):
        checks += _check_fusion(case, fixture)
    return checks


def check_oracle(folder: Path) -> list[Check]:
    """Every number of `folder`/oracle.json (percent, tolerance 1e-9) for `folder`/detections/<name>.csv.gz.

    Ground truth: `folder`/annotation_test, the official files.  The raw-score entries of the ActivityNet protocol depend on
    how an unstable sort orders equal scores, so they are informational.
    """
    official = load_thumos14_folder(folder / "annotation_test")
    names = {i: name for name, i in official.label_ids.items()}
    checks: list[Check] = []
    for case, entry in read_json(folder / "oracle.json", "oracle").items():
        if not isinstance(entry, dict) or "n_detections" not in entry:
            continue
        detections = read_predictions(folder / "detections" / f"{case}.csv.gz", official.label_ids)
        checks.append(compare(f"{case}/n_detections", len(detections), entry["n_detections"]))
        for kind in ("th14_official_protocol", "th14_official_matlab_output"):
            want = entry[kind]
            got = evaluate_thumos14(detections, official.ground_truth, [want["tiou"]], official.ambiguous, names)
            per_class = got.as_dict()["per_class_AP"]
            checks.append(compare(f"{case}/{kind}/mean_recall", got.mean_recall[0, 0], want["mean_recall"], atol=TOLERANCE))
            checks += _compare_percent(f"{case}/{kind}", {"mAP": (got.mAP[0], want["mAP"]), **{
                f"AP {name}": (per_class[name][0], ap) for name, ap in want["per_class_AP"].items()}})
            if "mAP_without_ambiguous_handling" in want:
                got = evaluate_thumos14(detections, official.ground_truth, [want["tiou"]])
                checks += _compare_percent(f"{case}/{kind}", {
                    "mAP without Ambiguous": (got.mAP[0], want["mAP_without_ambiguous_handling"])})
        for kind, informational in (("raw_scores", True), ("unique_rank_scores", False)):
            want = entry.get(f"anet_protocol_upstream_{kind}")
            if want is None:
                continue
            score = detections.score if kind == "raw_scores" else unique_rank_scores(detections.score)
            rows = Detections(detections.video_id, detections.t_start, detections.t_end, detections.label, score)
            got = evaluate_detections(rows, official.ground_truth, want["tiou"], label_names=names)
            checks.append(compare(f"{case}/anet_{kind}/counts", [got.counts["predictions"], got.counts["ground_truth"]],
                                  [want["n_pred"], want["n_gt"]]))
            checks += _compare_percent(f"{case}/anet_{kind}", {
                "mAP": (got.mAP, want["mAP"]), "average_mAP": (got.average_mAP, want["average_mAP"]),
                "recall@1x": (got.mean_recall[:, 0], want["recall_at_1x"]),
                "recall@5x": (got.mean_recall[:, 1], want["recall_at_5x"]),
                **{f"AP {name}": (got.as_dict()["per_class_AP"][name], ap) for name, ap in want["per_class_AP"].items()},
            }, informational)
    return checks


def _compare_percent(prefix: str, pairs: dict, informational: bool = False) -> list[Check]:
    return [compare(f"{prefix}/{name}", PERCENT * np.asarray(got), want, atol=TOLERANCE, informational=informational)
            for name, (got, want) in pairs.items()]


def _check_case(case: str, values: dict[str, np.ndarray]) -> list[Check]:
    ground_truth = GroundTruth.from_videos(
        (video, [a["segment"] for a in entry["annotations"]], [a["label_id"] for a in entry["annotations"]])
        for video, entry in text(values["gt_json"])["database"].items() if entry["subset"].lower() == "test")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the collision case has unknown classes on purpose
        scores = evaluate_detections(_detections(values), ground_truth, values["tiou"])
    index = {int(label): place for label, place in text(values["activity_index"]).items()}
    kwargs = {"atol": TOLERANCE, "informational": case in INFORMATIONAL}
    return [compare(f"{case}/activity_index", scores.class_ids, sorted(index, key=index.get)),
            compare(f"{case}/ap", scores.AP, values["ap"], **kwargs),
            compare(f"{case}/mAP", scores.mAP, values["mAP"], **kwargs),
            compare(f"{case}/avg_mAP", scores.average_mAP, values["avg_mAP"], **kwargs),
            compare(f"{case}/recall", scores.recall, values["recall"], **kwargs),
            compare(f"{case}/mRecall", scores.mean_recall, values["mRecall"], **kwargs)]


def _check_fusion(case: str, fixture: dict[str, np.ndarray]) -> list[Check]:
    """`case` is fusion_<num_pred>_<topk>, made from the predictions of the anet_tious case."""
    num_pred, topk = map(int, case.split("_")[1:])
    external = {video: np.array(v) for video, v in text(fixture["fusion/cls_json"])["results"].items()}
    source = {name.split("/")[1]: v for name, v in fixture.items() if name.startswith(f"{FUSED_CASE}/")}
    fused = fuse_external_scores(_detections(source), external, num_pred, topk)
    want = {name.split("/")[1]: v for name, v in fixture.items() if name.startswith(f"{case}/")}
    same_videos = fused.video_id.tolist() == text(want["video_id"])
    return [agree(f"{case}/video_id", same_videos),
            compare(f"{case}/label", fused.label, want["label"]),
            compare(f"{case}/t-start", fused.t_start, want["t-start"]),
            compare(f"{case}/t-end", fused.t_end, want["t-end"]),
            compare(f"{case}/score", fused.score, want["score"], rtol=TOLERANCE)]


def _detections(values: dict[str, np.ndarray]) -> Detections:
    return Detections.from_arrays(text(values["video_id"]), values["t-start"], values["t-end"], values["label"], values["score"])
