"""The documentation is right: links lead somewhere, commands fit their programs, code runs, JSON and YAML are read."""
from __future__ import annotations

import json
import re

import doc_stand_ins as stand_ins
import pytest
import yaml
from doc_commands import ROOT, Block, anchors, blocks, check, commands, inline_commands, links, pages, run

from libs.core.config import load_config
from libs.datasets.synthetic.demo import DemoSpec, ensure_demo

PAGES = pages()
LANGUAGES = {"sh", "python", "yaml", "json", "text", ""}  # the last two: output


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_and_headings(page):
    for line, target in links(page):
        path, _, anchor = target.partition("#")
        goal = (ROOT / page).parent / path if path else ROOT / page
        assert goal.exists(), f"{page}:{line}: {target}"
        if anchor and goal.suffix == ".md":
            assert anchor in anchors(str(goal.resolve().relative_to(ROOT))), f"{page}:{line}: {target}"


def test_python_files_that_are_named_exist():
    """In pages, docstrings and comments: `libs/...py` and the like from the root, `metrics.py` and the like anywhere."""
    folders = ("libs", "tools", "benchmarks", "tests", "examples", "configs", "docs")
    python = [path.relative_to(ROOT) for folder in folders for path in (ROOT / folder).rglob("*.py")]
    python += [path.relative_to(ROOT) for path in ROOT.glob("*.py")]
    known = {"/".join(path.parts[i:]) for path in python for i in range(len(path.parts))}
    yaml_files = [path.relative_to(ROOT) for path in (ROOT / "configs").rglob("*.yaml")]
    wrong = []
    for page in [*PAGES, *(path for path in python if path.parts[0] != "tests"), *yaml_files]:
        for number, line in enumerate((ROOT / page).read_text(encoding="utf-8").splitlines(), 1):
            named = re.findall(r"(?<![\w/.{}*<>-])[\w/.-]*\w\.py\b", line)
            wrong += [f"{page}:{number}: {name}" for name in named if name not in known]
    assert not wrong, "\n".join(wrong)


def test_every_page_is_linked_from_the_index():
    linked = {target.partition("#")[0] for _, target in links("docs/README.md")}
    assert {p.name for p in (ROOT / "docs").glob("*.md")} - {"README.md"} <= linked


@pytest.mark.parametrize("page", PAGES)
def test_every_command_fits_its_program(page, tmp_path, monkeypatch):
    (tmp_path / "docs").mkdir()  # the target of a redirection
    found = blocks(page)
    assert {b.language for b in found} <= LANGUAGES
    wrong = []
    monkeypatch.chdir(ROOT)
    for block in [b for b in found if b.language == "sh"] + inline_commands(page):
        for words in commands(block, tmp_path):
            try:
                check(words)
            except AssertionError as error:
                wrong.append(f"{page}:{block.line}: {' '.join(words)}\n    {error}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks/results").glob("*.json")), ids=lambda path: path.stem)
def test_commands_of_results_fit_their_programs(path, tmp_path):
    text = "\n".join(json.loads(path.read_text(encoding="utf-8"))["commands"]) + "\n"
    for words in commands(Block(path.name, 0, "sh", text), tmp_path):
        check(words)


@pytest.mark.parametrize("page", PAGES)
def test_json_blocks_are_json(page):
    for block in blocks(page):
        if block.language == "json":
            json.loads(block.text)


@pytest.mark.parametrize("page", PAGES)
def test_yaml_blocks_are_configurations(page, tmp_path):
    """A whole one by itself; a part over the published setting, or over a student's if it is about teachers."""
    for block in blocks(page):
        if block.language != "yaml":
            continue
        content = yaml.safe_load(block.text) or {}  # nothing but a comment for the editor
        if "dataset_name" not in content:
            base = "configs/distill/thumos/student.yaml" if "distill" in content else "configs/thumos_i3d.yaml"
            content = {"_base_": str(ROOT / base), **content}
        path = tmp_path / "block.yaml"
        path.write_text(yaml.safe_dump(content))
        load_config(path)


# commands that only test_every_command_fits_its_program reads, and why
NOT_RUN = {
    r"^(make|pip|tensorboard) ": "set-up, or a server",
    r"^srun ": "a cluster's program",
    r"^torchrun ": "processes of their own: tests/engine/{experiments/test_launch,training/test_parallel_training}.py",
    r"run_seeds.py|run_distill.py": "processes of their own: tests/cli/test_run_seeds.py, tests/cli/test_run_distill.py",
    r"reproduce.py": "a whole training: tests/cli/test_reproduce.py",
    r"robustness.py": "needs the runs of run_distill.py: tests/cli/test_robustness_script.py",
    r"^python benchmarks/": "hours: tests/test_kill_resume.py",
    r"tools/prepare_(thumos|multithumos|anet|epic|ego4d|hacs|salads).py": "official archives: tests/datasets/test_prepare_*.py",
    r"configs/(thumos|multithumos|anet|epic|ego4d|salads)|data/(anet|planted_ego4d)|fuse_actions.py":
        "full size, other people's data: tests/test_published_configs.py, tests/datasets/prepare/test_prepare_epic.py",
    r"cost.py configs/distill/thumos": "full size: tests/engine/deploy/test_cost.py",
    r"--preset gap": "more videos than the stand-in has: tests/datasets/synthetic/test_planted.py",
    r"tools/export.py|onnx_inference.py": "a third of a minute each: tests/engine/deploy/test_export.py",
    r"rgb_imagenet.pt": "published weights, TV-L1: tests/datasets/video/test_i3d.py",
    r"compare_features.py": "official features: tests/datasets/features/test_compare.py",
    r"--extractor (torchvision|transformers):":
        "packages and weights of others: tests/datasets/video/test_torchvision_networks.py, test_transformers_folder.py",
    r"data/clips": "44 rendered videos: tests/datasets/synthetic/test_clips.py, tests/cli/test_raw_video.py",
    r"interrupted.pth.tar": "a stopped run: tests/engine/runtime/test_stop_signals.py",
}


@pytest.mark.slow
def test_code_runs(tmp_path, monkeypatch):
    """Commands and python blocks of the README and the pages in docs/, in order, on generated stand-ins, in an empty folder."""
    stand_ins.write(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ensure_demo, "__defaults__", (DemoSpec(training=8, validation=4),))
    wrong, left, ran = [], set(), 0
    for page in [p for p in PAGES if p == "README.md" or p.startswith("docs/")]:
        for block in sorted(blocks(page), key=lambda b: b.language != "python"):  # features.md: code writes what commands read
            where = f"{page}:{block.line}"
            if block.language == "python":
                try:
                    exec(compile(block.text, where, "exec"), {"__name__": "page", **stand_ins.given(page)})
                except Exception as error:
                    wrong.append(f"{where}: {type(error).__name__}: {error}")
            for words in commands(block, tmp_path) if block.language == "sh" else []:
                line = " ".join(words)
                if skipped := {p for p in NOT_RUN if re.search(p, line)}:
                    left |= skipped
                    continue
                stand_ins.before(words)
                code, printed = run([*words, *stand_ins.more(words)])
                ran += 1
                if code:
                    wrong.append(f"{where}: {line}: exit code {code}\n{printed[-1500:]}")
    assert not wrong, "\n".join(wrong)
    assert left == set(NOT_RUN), "NOT_RUN names what no page has"
    assert ran > 40


@pytest.mark.parametrize(("name", "path"), [
    ("BACKBONES", "libs/modeling/backbones.py"), ("NECKS", "libs/modeling/necks.py"),
    ("TERMS", "libs/core/relations/distillation.py"),
    ("PRESETS", "libs/datasets/presets.py"), ("OPENERS", "libs/datasets/features/formats.py"),
    ("FORMATS", "libs/datasets/convert/readers.py"), ("PER_VIDEO", "libs/utils/evaluation/writers.py")])
def test_contributing_names_tables_that_exist(name, path):
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert f"`{name}`" in text
    assert f"`{path}`" in text
    assert re.search(rf"^{name}\b.*=", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE)
