"""The table of a chain: one row per stage with results: score, gain by distillation, cost.

    rows = table_rows(chain_results(chain, finished))    numbers, for JSON
    print(markdown(rows, stage_tests(results)))
"""
from __future__ import annotations

import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from libs.core.errors import note
from libs.core.schema import Config
from libs.engine.deploy.cost import Cost, feature_flops, measure
from libs.engine.experiments.chain import Chain
from libs.engine.experiments.paired import MEANING, Evaluation, paired_line, paired_tests
from libs.engine.experiments.repeats import Repeat, by_unit, fold_details
from libs.engine.runs.checkpoint import load_checkpoint
from libs.utils.tables import format_table

TEACHER, ALONE = "teacher", "student_alone"  # the stages between which the gap is measured
ORDER = (TEACHER, "baseline", ALONE, "student", "structure_teacher", "cross_modal", "cross_structure", "multi_teacher")
LATENCY_RUNS = 5
HEAD = ("stage", "reads", "learns from", "starts from", "epochs x iterations = steps", "average mAP", "of {units}",
        f"minus {ALONE}", "of {units}", "gap recovered %", "params M", "GFLOP", f"% of {TEACHER}'s", "CPU ms")
FEATURES_HEAD = ("features GFLOP", f"with features, % of {TEACHER}'s")
SPREADS = {"standard_deviation": " ± {:.2f}", "seed_deviation": " (± {:.2f})"}


@dataclass(frozen=True)
class StageResults:
    """Results of a stage's finished runs; average mAP in percent by fold and seed, `steps` of one run."""

    stage: str
    config: Config
    teachers: tuple[str, ...]  # stages, or checkpoints from elsewhere
    init: str  # "random", or one of the teachers
    steps: int
    average_mAP: Mapping[Repeat, float]
    files: Mapping[Repeat, tuple[Config, Path]] = field(default_factory=dict)  # of each run: its configuration, its results.json


def chain_results(chain: Chain, planned: Collection[str] = ()) -> list[StageResults]:
    """Results of every finished run, by stage in the order of `ORDER`, then by name.

    Runs whose configuration has changed since are left out, with a note; those of `planned` have been checked already.
    Raises UserError for files that cannot be read.
    """
    found: dict[str, StageResults] = {}
    for label, run in chain.runs.items():
        if not run.done:
            continue
        if label not in planned and (changes := run.changes()):
            note(f"note: {run.folder}: left out of the table, its configuration has changed since: {'; '.join(changes)}")
            continue
        earlier = found.get(run.stage)  # other seeds and folds
        values = {**(earlier.average_mAP if earlier else {}), run.repeat: run.average_mAP()}
        files = {**(earlier.files if earlier else {}), run.repeat: (run.config, run.own_results)}
        steps = earlier.steps if earlier else (load_checkpoint(run.last).training or {})["iteration"]
        sources = chain.source_names(run)
        first = run.config.distill.init_from
        init = "random" if first is None else sources[[name for name, _ in run.teacher_paths].index(first)]
        found[run.stage] = StageResults(run.stage, run.config, tuple(sources), init, steps, values, files)
    return sorted(found.values(), key=lambda r: (ORDER.index(r.stage) if r.stage in ORDER else len(ORDER), r.stage))


def cpu_cost(config: Config) -> Cost:
    """Cost of a stage's network at dataset.max_seq_len on the CPU, the median of `LATENCY_RUNS` forward passes."""
    return measure(config, config.dataset.max_seq_len, "cpu", LATENCY_RUNS)


def table_rows(results: Sequence[StageResults], cost: Callable[[Config], Any] = cpu_cost) -> list[dict[str, Any]]:
    """One row of plain values per stage; None for numbers that need more seeds or another stage's results.

    average_mAP, standard_deviation (of a sample, n - 1), difference (to student_alone, run by run): percent points by seed, with
    folds by fold as means over seeds, and then `runs` has the mAP of every run and `seed_deviation` the spread inside folds.
    gap_recovered: 100 (stage - student_alone) / (teacher - student_alone), means over the runs that all three have, None
    unless the teacher is better.  feature_flops: behind the features of a sequence; whole_of_teacher: those and the network's,
    over the teacher's; None without dataset.feature_gflop.  `cost(config)` has params, flops, latency_ms, length, threads,
    machine.
    """
    maps = {r.stage: r.average_mAP for r in results}
    costs = {r.stage: cost(r.config) for r in results}
    features = {r.stage: costs[r.stage].length * sum(known.values()) for r in results if (known := feature_flops(r.config))}
    wholes = {stage: flops + costs[stage].flops for stage, flops in features.items()}
    rows = []
    for r in results:
        average, c = by_unit(r.average_mAP), costs[r.stage]
        values = list(average.values())
        difference = by_unit({run: v - maps[ALONE][run] for run, v in r.average_mAP.items() if run in maps.get(ALONE, ())})
        rows.append({
            "stage": r.stage, "modalities": _modalities(r.config), "hallucinated": list(r.config.model.hallucinated),
            "teachers": list(r.teachers), "init": r.init, "epochs": r.config.total_epochs,
            "iterations_per_epoch": r.steps // r.config.total_epochs, "steps": r.steps, "weights": r.config.test_cfg.weights,
            "average_mAP": average, "mean": statistics.mean(values),
            "standard_deviation": statistics.stdev(values) if len(values) > 1 else None, **fold_details(r.average_mAP),
            "difference": difference,
            "mean_difference": statistics.mean(difference.values()) if difference else None,
            "gap_recovered": _gap_recovered(r.average_mAP, maps.get(TEACHER, {}), maps.get(ALONE, {})),
            "params": c.params, "flops": c.flops,
            "flops_of_teacher": c.flops / costs[TEACHER].flops if TEACHER in costs else None,
            "feature_flops": features.get(r.stage),
            "whole_of_teacher": wholes[r.stage] / wholes[TEACHER] if {r.stage, TEACHER} <= set(wholes) else None,
            "length": c.length, "latency_ms": c.latency_ms, "threads": c.threads, "machine": c.machine})
    return rows


def stage_tests(results: Sequence[StageResults]) -> list[dict[str, Any]]:
    """`paired_tests` of every stage against student_alone, or against the first stage if that is not there."""
    methods = {r.stage: {run: Evaluation(r.average_mAP[run], *files) for run, files in r.files.items()} for r in results}
    return paired_tests(methods, ALONE if ALONE in methods else results[0].stage)


def markdown(rows: Sequence[Mapping[str, Any]], tests: Sequence[Mapping[str, Any]] = ()) -> str:
    """The rows as a markdown table, what its columns mean, and a line for each of the `stage_tests`."""
    units = sorted({int(unit) for row in rows for unit in row["average_mAP"]})
    kind = "folds" if "runs" in rows[0] else "seeds"
    head = [cell.format(units=f"{kind} {', '.join(map(str, units))}") for cell in HEAD]
    known = any(row["feature_flops"] is not None for row in rows)
    cells = [_cells(row, units) + (_feature_cells(row) if known else []) for row in rows]
    text = format_table(cells, [*head, *(FEATURES_HEAD if known else ())], markdown=True)
    over = "folds, each the mean of its seeds (in brackets: over the seeds of a fold)" if kind == "folds" else "seeds"
    weights, lengths = ({str(row[key]) for row in rows} for key in ("weights", "length"))
    machine = f"{rows[0]['machine']}, {rows[0]['threads']} threads"
    return (f"{text}\n\nAverage mAP: percent, {' or '.join(sorted(weights))} weights of the last epoch, mean ± standard "
            f"deviation over {over}.\nGap recovered: (stage - {ALONE}) / ({TEACHER} - {ALONE}), over runs that all three have.\n"
            f"GFLOP (a multiply-add is 2) and CPU ms (median of {LATENCY_RUNS} forward passes; {machine}): the network alone, "
            f"one sequence of {' or '.join(sorted(lengths, key=int))} feature vectors.\n"
            + ("Features: extracting those vectors (dataset.feature_gflop), without the optical flow itself.\n" if known else "")
            + (f"\n{MEANING.format(units=kind)}\n" if tests else "") + "".join(f"- {paired_line(test)}\n" for test in tests))


def _cells(row: Mapping[str, Any], units: Sequence[int]) -> list[str]:
    def each(values: Mapping[str, float], form: str) -> str:
        return " ".join(_number(values.get(str(unit)), form) for unit in units)

    hallucinated = f" (+ {', '.join(row['hallucinated'])} made up)" if row["hallucinated"] else ""
    spread = "".join(text.format(row[key]) for key, text in SPREADS.items() if row.get(key) is not None)
    share = row["flops_of_teacher"]
    return [row["stage"], ", ".join(row["modalities"]) + hallucinated, ", ".join(row["teachers"]) or "-", row["init"],
            f"{row['epochs']} x {row['iterations_per_epoch']} = {row['steps']}",
            f"{row['mean']:.2f}{spread}", each(row["average_mAP"], ".2f"),
            _number(row["mean_difference"], "+.2f"), each(row["difference"], "+.2f"), _number(row["gap_recovered"], ".0f"),
            f"{row['params'] / 1e6:.3f}", f"{row['flops'] / 1e9:.3f}", _number(None if share is None else 100 * share, ".1f"),
            f"{row['latency_ms']:.1f}"]


def _feature_cells(row: Mapping[str, Any]) -> list[str]:
    flops, share = row["feature_flops"], row["whole_of_teacher"]
    return [_number(None if flops is None else flops / 1e9, ".0f"), _number(None if share is None else 100 * share, ".1f")]


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _modalities(config: Config) -> list[str]:
    return list(config.model.modalities or config.dataset.modalities or ("all",))


def _gap_recovered(own: Mapping[Repeat, float], teacher: Mapping[Repeat, float], alone: Mapping[Repeat, float]) -> float | None:
    common = [run for run in own if run in teacher and run in alone]
    if not common:
        return None
    units = (by_unit({run: values[run] for run in common}) for values in (own, teacher, alone))
    mean, high, low = (statistics.mean(unit.values()) for unit in units)
    return 100 * (mean - low) / (high - low) if high > low else None
