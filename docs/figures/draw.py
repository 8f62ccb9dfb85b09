#!/usr/bin/env python3
"""The figures of README.md and docs/faq.md that this project draws itself.

    python train.py configs/demo.yaml --output first
    python docs/figures/draw.py ckpt/demo_first

timeline.png: one validation video of the demo, predictions under their ground truth (what TensorBoard shows while training).
grid.svg: seconds against the feature grid, computed with libs/datasets/grid.py.
"""
from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from libs.core.errors import run_main
from libs.datasets.annotations import load_annotations
from libs.datasets.grid import regular_grid
from libs.engine.api import load_model
from libs.utils.timeline_image import timeline_image

HERE = Path(__file__).resolve().parent
FPS, STRIDE, WINDOW, VECTORS = 25.0, 8, 16, 7  # those of the demo
SEGMENT = (0.8, 2.0)  # seconds


def timeline(checkpoint: str, video: str, threshold: float) -> None:
    """Write timeline.png: the detections of one demo video with scores of at least `threshold`."""
    truth = load_annotations("data/demo/annotations/demo.json")
    names = {i: name for name, i in truth.label_ids.items()}
    entry = truth.videos[video]
    found = load_model(checkpoint, device="cpu").predict(f"data/demo/features/{video}.npy", fps=entry.fps).above(threshold)
    segments = np.stack([found.t_start, found.t_end], axis=1)
    labels = np.array([truth.label_ids[name] for name in found.label])
    title = f"{video}: ground truth (dark) over predictions (height: score, at least {threshold:g}); seconds"
    picture = timeline_image(title, (entry.segments, entry.labels), (segments, labels, found.score), names)
    Image.fromarray(picture).quantize(32).save(HERE / "timeline.png", optimize=True)


def grid() -> None:
    """Write grid.svg: frames, the windows of the first vectors, their centres, and one segment in both units."""
    to = regular_grid(STRIDE, WINDOW, FPS)
    left, frame = 120, 740 / ((VECTORS - 1) * STRIDE + WINDOW)
    lines = ['<svg xmlns="http://www.w3.org/2000/svg" '
             f'viewBox="0 0 880 {150 + 22 * VECTORS}" font-family="sans-serif" font-size="12">',
             '<rect width="100%" height="100%" fill="white"/>',
             '<text x="8" y="30">frame</text>', '<text x="8" y="52">seconds</text>']
    for f in range(0, (VECTORS - 1) * STRIDE + WINDOW + 1, STRIDE):
        x = left + f * frame
        lines += [f'<path d="M{x:.1f} 36V{80 + 22 * VECTORS}" stroke="#d9dee5"/>',
                  f'<text x="{x:.1f}" y="30" text-anchor="middle">{f}</text>',
                  f'<text x="{x:.1f}" y="52" text-anchor="middle">{f / FPS:g}</text>']
    for t in range(VECTORS):
        x, y = left + t * STRIDE * frame, 66 + 22 * t
        centre = left + float(to.grid_to_seconds(np.float64(t))) * FPS * frame
        lines += [f'<text x="8" y="{y + 11}">vector {t}</text>',
                  f'<rect x="{x:.1f}" y="{y}" width="{WINDOW * frame:.1f}" height="14" fill="#9ec9e8" stroke="#0b4f8a"/>',
                  f'<circle cx="{centre:.1f}" cy="{y + 7}" r="4" fill="#d55e00"/>']
    y = 84 + 22 * VECTORS
    start, end = (left + s * FPS * frame for s in SEGMENT)
    units = " to ".join(f"{g:g}" for g in to.seconds_to_grid(np.array(SEGMENT)))
    label = f"{SEGMENT[0]:g} to {SEGMENT[1]:g} s = grid {units}"
    note = (f"feat_stride {STRIDE}, num_frames {WINDOW}, {FPS:g} frames per second; dots: centres, "
            f"(t x {STRIDE} + {WINDOW} / 2) / {FPS:g} s")
    lines += [f'<rect x="{start:.1f}" y="{y}" width="{end - start:.1f}" height="14" fill="#1f3a5f"/>',
              f'<text x="8" y="{y + 11}">segment</text>',
              f'<text x="{start - 8:.1f}" y="{y + 11}" text-anchor="end">{label}</text>',
              f'<text x="{left}" y="{y + 40}">{note}</text>', "</svg>"]
    (HERE / "grid.svg").write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="?", default="ckpt/demo_first", help="a run of configs/demo.yaml (ckpt/demo_first)")
    parser.add_argument("--video", default="demo_validation_003")
    parser.add_argument("--threshold", type=float, default=0.1, metavar="S", help="least score drawn (0.1)")
    args = parser.parse_args()
    timeline(args.checkpoint, args.video, args.threshold)
    grid()


if __name__ == "__main__":
    run_main(main)
