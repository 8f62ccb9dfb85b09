"""Detections from an ONNX graph with numpy and onnxruntime alone.

    python tools/export.py pretrained/demo_student.pth.tar --format onnx --with-decode -o demo_student.onnx
    python examples/onnx_inference.py demo_student.onnx pretrained/demo_video.npy 25        (the last number: frames per second)

Prints start (s), end (s), score and label by descending score: what tools/predict.py finds.  Does the usual, per-class soft-NMS.
"""
import json
import sys

import numpy as np
import onnxruntime


def detect(session: onnxruntime.InferenceSession, feats: np.ndarray, fps: float) -> list[tuple[float, float, float, str]]:
    """Features (steps, channels) of one video -> (start s, end s, score, label)."""
    about = json.loads(session.get_modelmeta().custom_metadata_map["tal"])
    cfg, grid, pad = about["test_cfg"], about["grid"], about["padding"]
    last = ((len(feats) - 1) * grid["feat_stride"] + grid["num_frames"]) / fps
    feats = feats[::grid["downsample_rate"]]
    steps, channels = feats.shape
    if cfg["nms_method"] != "soft" or not cfg["multiclass_nms"] or cfg["multiclass_voting"] or grid["force_upsampling"]:
        raise SystemExit("this example does per-class soft-NMS without voting, on features that are not resized")
    padded = pad["max_seq_len"] if steps <= pad["max_seq_len"] else -(-steps // pad["factor"]) * pad["factor"]
    if padded - steps >= pad["margin"] and not pad["always"]:  # shorter, with the same outputs
        padded = min(padded, -(-(steps + pad["margin"]) // pad["stride"]) * pad["stride"])
    x = np.zeros((1, padded, channels), np.float32)
    x[0, :steps] = feats
    mask = np.arange(padded)[None] < steps
    scores, segments = (y[0] for y in session.run(["scores", "segments"], {"feats": x, "mask": mask}))
    found, ends = [], np.cumsum([padded // s for s in about["strides"]])[:-1]
    for score, segment in zip(np.split(scores, ends), np.split(segments, ends), strict=True):  # the best of each FPN level
        top = np.argsort(-score, axis=None, kind="stable")[:cfg["pre_nms_topk"]]
        top = top[score.flat[top] > cfg["pre_nms_thresh"]]
        found.append(np.column_stack([score.flat[top], segment[top // score.shape[1]], top % score.shape[1]]))
    found = np.concatenate(found)
    found = found[found[:, 2] - found[:, 1] > cfg["duration_thresh"]]
    kept = []
    for label in np.unique(found[:, 3]):
        s, a, b = found[found[:, 3] == label, :3].T
        picked = 0
        while len(s) and picked < cfg["max_seg_num"]:  # gaussian soft-NMS
            i, picked = s.argmax(), picked + 1
            kept.append((a[i], b[i], s[i], int(label)))
            overlap = np.maximum(np.minimum(b, b[i]) - np.maximum(a, a[i]), 0)
            iou = overlap / (b - a + b[i] - a[i] + 2e-6 - overlap)
            s = s * np.exp(-iou**2 / cfg["nms_sigma"])
            keep = (s >= cfg["min_score"]) & (np.arange(len(s)) != i)
            s, a, b = s[keep], a[keep], b[keep]
    kept = sorted(kept, key=lambda row: -row[2])[:cfg["max_seg_num"]]
    seconds = [np.clip((np.array(k[:2]) * grid["feat_stride"] * grid["downsample_rate"] + grid["num_frames"] / 2) / fps, 0, last)
               for k in kept]
    return [(float(a), float(b), float(k[2]), about["labels"][k[3]]) for (a, b), k in zip(seconds, kept, strict=True)]


if __name__ == "__main__":
    session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
    for start, end, score, label in detect(session, np.load(sys.argv[2]), float(sys.argv[3])):
        print(f"{start:8.2f} {end:8.2f} {score:.3f} {label}")
