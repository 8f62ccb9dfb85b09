#!/usr/bin/env python3
"""Run every golden fixture of a folder and print `N passed, M failed` with the largest error per fixture.

    python tools/check_golden.py ../shared/golden [--only model_ train_steps] [--device cuda] [--verbose]

Fixtures hold weights, inputs, outputs and gradients measured on the reference program; dimensions are read from the files.
Errors are shown as a share of the tolerance: 1.00 is the limit.  Informational comparisons are shown, not counted.
With --device cuda only the fixtures that compute there are run, in float32 without TF32, with the same tolerances.
"""
from __future__ import annotations

import argparse
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
from golden import common, datasets, distill, distill_loss, metrics, model, nms, temporalmaxer, training, video
from golden.common import Check

from libs.core.errors import UserError, run_main
from libs.core.files import entries, is_folder
from libs.engine.runtime.machine import device_of
from libs.engine.runtime.precision import matmul_precision

CHECKS: dict[str, Callable[[Path], list[Check]]] = {
    "model_": model.check_model,
    "labels_losses_": model.check_labels_losses,
    "init_stats_": model.check_init_stats,
    "param_groups_": model.check_param_groups,
    "train_steps_": training.check_train_steps,
    "checkpoint_": training.check_checkpoint,
    "lr_": training.check_lr,
    "nms_": nms.check,
    "voting_": nms.check_voting,
    "trident_decode_": model.check_trident_decode,
    "eval_": metrics.check,
    "datasets_": datasets.check,
    "trunc_": datasets.check_crops,
    "distill_model_": distill.check_model,
    "distill_loss_": distill_loss.check,
    "temporalmaxer_assign_": temporalmaxer.check,
    "i3d_": video.check_i3d,
    "preprocessing": video.check_preprocessing,
    "descriptor": video.check_descriptor,
}
ON_DEVICE = ("model_", "train_steps_", "nms_", "voting_", "trident_decode_", "distill_model_", "distill_loss_")


def run(path: Path, verbose: bool) -> bool | None:
    """Check one fixture and print its line; True: passed, False: failed, None: not covered."""
    check = next((f for prefix, f in CHECKS.items() if path.name.startswith(prefix)), None)
    if check is None:
        print(f"skip  {path.name:42s} no such kind of fixture is known")
        return None
    try:
        results = check(path)
    except Exception as error:
        print(f"FAIL  {path.name:42s} {type(error).__name__}: {error}")
        if verbose:
            traceback.print_exc()
        return False
    counted, informational = ([c for c in results if c.informational is kind] for kind in (False, True))
    failed = [c for c in counted if not c.passed]
    worst = max(counted, key=lambda c: c.error if c.error == c.error else float("inf"), default=None)
    line = f"{len(counted) - len(failed)}/{len(counted)} comparisons"
    if worst is not None:
        line += f", largest error {worst.error:.3f} of the tolerance ({worst.name})"
    if informational:
        line += f"; {len(informational)} informational, {sum(c.passed for c in informational)} agree"
    ok = bool(counted) and not failed
    print(f"{'ok  ' if ok else 'FAIL'}  {path.name:42s} {line}", flush=True)
    for item in failed[:None if verbose else 8]:
        print(f"        {item.name}: {item.error:.3g} of the tolerance")
    if verbose:
        for item in informational:
            print(f"        informational: {item.name}: {item.error:.3g}")
    return ok


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of fixtures")
    parser.add_argument("--only", nargs="+", default=[""], help="only fixtures whose name starts so")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--verbose", action="store_true", help="every failed and informational comparison")
    args = parser.parse_args()
    if not is_folder(args.folder):
        raise UserError(f"{args.folder}: no such folder; name the folder of the fixtures")
    common.device = device_of(args.device)
    files = [p for p in entries(args.folder)
             if p.name.endswith((".npz", ".json", ".pth.tar")) and p.name.startswith(tuple(args.only))
             and (common.device.type == "cpu" or p.name.startswith(ON_DEVICE))]
    torch.set_num_threads(1)  # the fixtures were measured with one
    with matmul_precision("fp32"):
        results = [run(path, args.verbose) for path in files]
    passed, failed = results.count(True), results.count(False)
    print(f"{passed} passed, {failed} failed, {results.count(None)} skipped")
    if not passed and not failed:
        raise UserError(f"{args.folder}: holds no known fixtures")
    return 1 if failed else 0


if __name__ == "__main__":
    run_main(main)
