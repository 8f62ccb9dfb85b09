"""Detections from an ONNX graph with numpy and onnxruntime alone.

    python tools/export.py pretrained/demo_student.pth.tar --format onnx --with-decode -o demo_student.onnx
    python examples/onnx_inference.py demo_student.onnx pretrained/demo_video.npy 25

Prints start (s), end (s), score and label by descending score: what tools/predict.py finds.  Does the usual, per-class soft-NMS.
Copy `read_graph`, `read_features` and `detect`: they raise BadInput, with what to do about it, for everything that does not fit.
"""
import argparse
import json

import numpy as np
import onnxruntime


class BadInput(ValueError):
    """A file or a number that cannot be used; the message names it and the remedy."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("graph", metavar="GRAPH", help="ONNX file of tools/export.py --format onnx --with-decode")
    parser.add_argument("features", metavar="FEATURES", help=".npy file (steps, channels) of one video")
    parser.add_argument("fps", metavar="FPS", type=float, help="frames per second of that video")
    args = parser.parse_args()
    try:
        found = detect(read_graph(args.graph), read_features(args.features), args.fps)
    except BadInput as error:
        parser.exit(2, f"error: {error}\n")
    for start, end, score, label in found:
        print(f"{start:8.2f} {end:8.2f} {score:.3f} {label}")


def read_graph(path: str) -> onnxruntime.InferenceSession:
    """The graph of a file, ready to run on the CPU."""
    try:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        settings_of(session)
    except BadInput as error:
        raise BadInput(f"{path}: {error}") from error
    except Exception as error:  # onnxruntime's own types, which have no common base
        raise BadInput(f"{path}: cannot be read as an ONNX graph ({line(error)}); name first the file that tools/export.py has "
                       "written, then the features") from error
    return session


def settings_of(session: onnxruntime.InferenceSession) -> dict:
    """What tools/export.py has written into the graph about padding, feature grid, classes and NMS."""
    try:
        about = json.loads(session.get_modelmeta().custom_metadata_map["tal"])
        version, outputs, cfg, grid = about["version"], about["outputs"], about["test_cfg"], about["grid"]
    except (KeyError, TypeError, ValueError) as error:
        raise BadInput("holds no settings of the network (`tal`); export it with tools/export.py --format onnx") from error
    if version != 1:
        raise BadInput(f"its settings have version {version}, this program reads version 1; export it again")
    if outputs != ["scores", "segments"]:
        raise BadInput(f"its outputs are {', '.join(outputs)}; export it with --with-decode")
    if cfg["nms_method"] != "soft" or not cfg["multiclass_nms"] or cfg["multiclass_voting"] or grid["force_upsampling"]:
        raise BadInput("this program does per-class soft-NMS without voting, on features that are not resized; export it with "
                       "--set test_cfg.nms_method=soft test_cfg.multiclass_nms=true test_cfg.multiclass_voting=false")
    return about


def read_features(path: str) -> np.ndarray:
    """The array of a .npy file; Python objects in it are refused, since reading them runs code."""
    try:
        feats = np.load(path, allow_pickle=False)
    except Exception as error:  # nearly anything, for foreign and damaged files
        raise BadInput(f"{path}: cannot be read as features ({line(error)}); name a .npy file of numbers") from error
    if not isinstance(feats, np.ndarray):
        raise BadInput(f"{path}: holds several arrays ({', '.join(feats.files[:5])}); save the features alone, with numpy.save")
    return feats


def checked(feats: np.ndarray, fps: float, about: dict) -> np.ndarray:
    """The features as float32; BadInput unless they are finite numbers (steps, channels) that fit the graph, and fps a rate."""
    channels, longest = about["channels"], about["padding"]["max_seq_len"]
    if not 1e-3 <= fps <= 1e6:
        raise BadInput(f"{fps:g} frames per second: use the video's rate, between 0.001 and 1,000,000")
    if feats.ndim != 2 or feats.dtype.kind not in "fiu" or not feats.size:
        raise BadInput(f"the features have shape {feats.shape} and type {feats.dtype}; expected numbers (steps, channels)")
    if feats.shape[1] != channels:
        hint = "they look transposed" if feats.shape[0] == channels else "use the features that it was trained on"
        raise BadInput(f"the features have shape {feats.shape}, but the graph takes (steps, {channels}); {hint}")
    with np.errstate(over="ignore"):
        feats = feats.astype(np.float32)
    if not np.isfinite(feats).all():
        row, column = np.argwhere(~np.isfinite(feats))[0]
        raise BadInput(f"the features are NaN or infinite, first in row {row}, channel {column}; extract them again")
    one_length = about["padding"]["always"] or about["padding"]["stretched_positions"]
    if one_length and -(-len(feats) // about["grid"]["downsample_rate"]) > longest:
        raise BadInput(f"the features have {len(feats)} steps; this graph takes at most {longest}: cut the video")
    return feats


def detect(session: onnxruntime.InferenceSession, feats: np.ndarray, fps: float) -> list[tuple[float, float, float, str]]:
    """Features (steps, channels) of one video -> (start s, end s, score, label)."""
    about = settings_of(session)
    cfg, grid, pad = about["test_cfg"], about["grid"], about["padding"]
    feats = checked(feats, fps, about)
    last = ((len(feats) - 1) * grid["feat_stride"] + grid["num_frames"]) / fps
    feats = feats[::grid["downsample_rate"]]
    steps = len(feats)
    padded = pad["max_seq_len"] if steps <= pad["max_seq_len"] else -(-steps // pad["factor"]) * pad["factor"]
    if padded - steps >= pad["margin"] and not pad["always"]:  # shorter, with the same outputs
        padded = min(padded, -(-(steps + pad["margin"]) // pad["stride"]) * pad["stride"])
    x = np.zeros((1, padded, about["channels"]), np.float32)
    x[0, :steps] = feats
    mask = np.arange(padded)[None] < steps
    scores, segments = (y[0] for y in session.run(["scores", "segments"], {"feats": x, "mask": mask}))
    if not (np.isfinite(scores).all() and np.isfinite(segments).all()):
        raise BadInput(f"the network's outputs are not finite; the features reach {np.abs(feats).max():g}: extract them again")
    found, ends = [], np.cumsum([padded // s for s in about["strides"]])[:-1]
    for score, segment in zip(np.split(scores, ends), np.split(segments, ends), strict=True):  # the best of each FPN level
        top = np.argsort(-score, axis=None, kind="stable")[:cfg["pre_nms_topk"]]
        top = top[score.flat[top] > cfg["pre_nms_thresh"]]
        if segment.ndim == 2:  # the same for all classes
            segment = segment[:, None].repeat(score.shape[1], axis=1)
        found.append(np.column_stack([score.flat[top], segment.reshape(-1, 2)[top], top % score.shape[1]]))
    found = np.concatenate(found)
    found = found[found[:, 2] - found[:, 1] > cfg["duration_thresh"]]
    kept = sorted(soft_nms(found, cfg), key=lambda row: -row[2])[:cfg["max_seg_num"]]
    scale, centre = grid["feat_stride"] * grid["downsample_rate"], grid["num_frames"] / 2
    seconds = [np.clip((np.array(k[:2]) * scale + centre) / fps, 0, last) for k in kept]
    return [(float(a), float(b), float(k[2]), about["labels"][k[3]]) for (a, b), k in zip(seconds, kept, strict=True)]


def soft_nms(found: np.ndarray, cfg: dict) -> list[tuple[float, float, float, int]]:
    """Gaussian soft-NMS of each class: rows (score, start, end, label) -> (start, end, decayed score, label)."""
    kept = []
    for label in np.unique(found[:, 3]):
        s, a, b = found[found[:, 3] == label, :3].T
        picked = 0
        while len(s) and picked < cfg["max_seg_num"]:
            i, picked = s.argmax(), picked + 1
            kept.append((a[i], b[i], s[i], int(label)))
            overlap = np.maximum(np.minimum(b, b[i]) - np.maximum(a, a[i]), 0)
            iou = overlap / (b - a + b[i] - a[i] + 2e-6 - overlap)
            s = s * np.exp(-iou**2 / cfg["nms_sigma"])
            keep = (s >= cfg["min_score"]) & (np.arange(len(s)) != i)
            s, a, b = s[keep], a[keep], b[keep]
    return kept


def line(error: Exception) -> str:
    """The message of an exception in one short line."""
    return " ".join(str(error).split())[:200] or type(error).__name__


if __name__ == "__main__":
    main()
