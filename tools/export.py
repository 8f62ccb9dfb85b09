#!/usr/bin/env python3
"""Export a network as an ONNX or torch.export graph, compared with PyTorch on several lengths before it is written.

    python tools/export.py pretrained/demo_student.pth.tar --format onnx --with-decode -o demo_student.onnx
    python tools/export.py ckpt/hapt_first --format torch_export
    python tools/export.py pretrained/CHECKPOINT.pth.tar --config configs/thumos_i3d.yaml --format onnx

The graph takes any number of videos of any length (padded to a multiple of the coarsest stride, see docs/export.md).  It has no
NMS: examples/onnx_inference.py adds it with NumPy and onnxruntime.  For ONNX: pip install -e '.[export]'.
"""
from __future__ import annotations

import argparse
from pathlib import Path

from libs.core.errors import UserError, note, run_main
from libs.engine.api import load_model
from libs.engine.deploy.export import FORMATS, TOLERANCE, export
from libs.utils.files.io import check_writable
from libs.utils.tables import format_table


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ckpt", metavar="CKPT", help="checkpoint file, or a run's folder (its last epoch)")
    parser.add_argument("--format", required=True, choices=tuple(FORMATS), help="onnx, or torch_export (.pt2)")
    parser.add_argument("--with-decode", action="store_true", help="outputs are scores and segments, not logits and offsets")
    parser.add_argument("-o", "--output", type=Path, metavar="OUT", help="file to write (beside the checkpoint)")
    parser.add_argument("--lengths", type=int, nargs="+", metavar="T", help="feature steps to compare at (five, short to long)")
    parser.add_argument("--config", help="YAML configuration of a checkpoint that holds none")
    parser.add_argument("--labels", type=Path, metavar="FILE", help="class names: annotation JSON, JSON list, or one per line")
    parser.add_argument("-epoch", "--epoch", type=int, metavar="N", help="epoch to load from a folder")
    parser.add_argument("--weights", choices=("ema", "raw"), help="averaged or raw weights (test_cfg.weights)")
    parser.add_argument("--set", nargs="+", default=[], action="extend", metavar="KEY=VALUE", help="override configuration keys")
    return parser.parse_args()


def main() -> None:
    args = parse()
    if bad := [n for n in args.lengths or () if n < 1]:
        raise UserError(f"--lengths {bad[0]}: use numbers of feature steps from 1 on")
    model = load_model(args.ckpt, config=args.config, labels=args.labels, weights=args.weights, epoch=args.epoch, device="cpu",
                       overrides=args.set)
    ending = FORMATS[args.format]
    path = args.output or model.checkpoint.with_name(model.checkpoint.name.removesuffix(".pth.tar") + ending)
    if path.suffix != ending:
        raise UserError(f"{path}: a file of --format {args.format} ends in {ending}; name it so")
    check_writable(path)
    differences = export(model.model, model.config, model.label_names, path, args.format, args.with_decode, args.lengths, note)
    print(format_table([(steps, f"{difference:.1e}") for steps, difference in differences.items()],
                       ["steps", "largest difference to PyTorch"], left=["largest difference to PyTorch"]))
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB, {model.weights} weights of {model.checkpoint}, all below {TOLERANCE:g}")


if __name__ == "__main__":
    run_main(main)
