#!/usr/bin/env python3
"""robustness.svg of docs/distillation.md, from benchmarks/results/robustness_*.json.

    python docs/figures/robustness.py
"""
from __future__ import annotations

import json
from pathlib import Path

from libs.core.errors import run_main
from libs.utils.plotting import COLOURS, subplots, svg

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parents[1] / "benchmarks" / "results"
DATASETS = {"salads": "50 Salads, split 2", "hapt": "HAPT", "planted": "planted, world 1"}
MODELS = {"teacher": "two-stream teacher", "student_alone": "student alone", "student": "student, taught",
          "student_robust": "taught, with frame drops"}
CORRUPTIONS = ("noise", "windows", "channels", "jitter", "blur", "gap_zeros", "gap_noise", "gap_other", "gap_frozen")


def main() -> None:
    figure, panels = subplots(1, len(DATASETS), 3.8, 3.2)
    for ax, (name, title) in zip(panels, DATASETS.items(), strict=True):
        rows = json.loads((RESULTS / f"robustness_{name}.json").read_text(encoding="utf-8"))["rows"]
        for i, (model, label) in enumerate(MODELS.items()):
            kept = [100 * rows[model][corruption] / rows[model]["clean"] for corruption in CORRUPTIONS]
            ax.plot(kept, range(len(CORRUPTIONS)), "o-", color=COLOURS[i], label=label, markersize=4, linewidth=1)
        ax.set(title=title, xlabel="% of the clean average mAP", xlim=(35, 105), ylim=(len(CORRUPTIONS) - 0.5, -0.5))
        ax.set_yticks(range(len(CORRUPTIONS)), CORRUPTIONS if ax is panels[0] else [""] * len(CORRUPTIONS))
        ax.grid(axis="x", color="#d9dee5")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(MODELS), frameon=False)
    (HERE / "robustness.svg").write_text(svg(figure), encoding="utf-8")


if __name__ == "__main__":
    run_main(main)
