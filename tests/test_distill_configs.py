"""The shipped chains of distillation (configs/distill): they load, fit together, share a schedule, and cost what they should."""
from __future__ import annotations

import re
from pathlib import Path

import pytest

from libs.core.config import config_diff, load_config
from libs.core.schema import Config
from libs.engine.deploy.cost import count
from libs.engine.distill.teachers import check_teacher
from libs.modeling.losses.distillation import resolve

ROOT = Path(__file__).resolve().parents[1]
KEPT = {"thumos": "rgb", "planted": "rgb", "demo": "rgb", "hapt": "acc", "salads": "rgb"}  # the modality that a student reads
MISSING = {"thumos": "flow", "planted": "flow", "demo": "flow", "hapt": "gyro", "salads": "accel"}
VIDEOS = {"planted": (40, 160), "hapt": (36, 0), "salads": (40, 0)}  # annotated training videos, and more without annotations
STEPS = {"planted": (800, 100), "hapt": (360, 54), "salads": (600, 100)}  # of a run without a student, and of every warm-up
PATIENCE = {"planted": 2, "hapt": 3, "salads": 3, "thumos": 3, "demo": 3}  # times these steps: students, long teachers
TWO_STREAM = ("teacher", "teacher_long", "few_teacher", "structure_teacher")
PUBLISHED = {  # stage -> teachers, where the student starts, backbone, whether it makes up the missing modality (SPEC section 12)
    "teacher": ([], None, "convTransformer", False),
    "structure_teacher": (["teacher"], None, "conv", False),
    "cross_modal": (["structure_teacher"], "structure_teacher", "conv", True),
    "cross_structure": (["cross_modal"], None, "conv_dw", True),
    "multi_teacher": (["teacher", "structure_teacher"], "structure_teacher", "conv_dw", True),
}
STAGES = (*PUBLISHED, "baseline", "student", "student_alone")
FILES = sorted((ROOT / "configs" / "distill").glob("*/*.yaml"))
FOLD = {"salads": ["fold=2"]}  # of the folders whose data have folds


@pytest.fixture(params=sorted(KEPT))
def chain(request: pytest.FixtureRequest) -> tuple[str, dict[str, Config]]:
    """(name of a folder, stage -> configuration)."""
    folder = ROOT / "configs" / "distill" / request.param
    return request.param, {p.stem: load_config(p, FOLD.get(folder.name, [])) for p in sorted(folder.glob("[!_]*.yaml"))}


def stage_of(checkpoint: str, config: Config) -> str:
    """The stage whose run a teacher's checkpoint is: <output_folder>/<stage>_{run}."""
    match = re.fullmatch(re.escape(config.output_folder) + r"([a-z_]+)_\{run\}", checkpoint)
    assert match, f"{config.source}: {checkpoint} is no run in {config.output_folder}"
    return match[1]


def test_every_folder_is_known() -> None:
    assert {p.parent.name for p in FILES} == {*KEPT, "clips"}  # clips: a demo, without the published stages
    assert all(p.parent.parent == ROOT / "configs" / "distill" for p in FILES)


@pytest.mark.parametrize("path", FILES, ids=lambda p: "/".join(p.parts[-2:]))
def test_it_loads_and_writes_to_its_own_folder(path: Path) -> None:
    config = load_config(path, FOLD.get(path.parent.name, []))
    assert config.output_folder == f"./ckpt/distill/{path.parent.name}/"
    if config.distill.outputs == "cache":
        assert config.distill.cache_folder == f"{config.output_folder}cache"


def test_teachers_are_runs_of_the_same_chain_and_fit(chain: tuple[str, dict[str, Config]]) -> None:
    _, stages = chain
    assert set(STAGES) <= set(stages)
    for name, config in stages.items():
        for entry in config.distill.teachers:
            source = stage_of(entry.checkpoint, config)
            assert source in stages, f"{name}: no stage {source}"
            assert source != name
            assert (entry.config, entry.weights) == (None, "ema")
            check_teacher(config, stages[source], name)


def test_the_published_stages_are_those_of_the_table(chain: tuple[str, dict[str, Config]]) -> None:
    folder, stages = chain
    for name, (teachers, start, backbone, hallucinates) in PUBLISHED.items():
        config = stages[name]
        sources = {t.name: stage_of(t.checkpoint, config) for t in config.distill.teachers}
        assert list(sources.values()) == teachers, name
        assert sources.get(config.distill.init_from) == start, name
        assert config.model.backbone_type == backbone, name
        assert config.model.hallucinator == ("rgb2flow" if hallucinates else "none"), name
        assert config.model.hallucinated == ((MISSING[folder],) if hallucinates else ()), name
        if teachers:
            assert (config.distill.preset, config.distill.stage) == ("c2ms", name)
            assert config.distill.outputs == "online"
            for source in teachers:  # no projection exists in the published losses
                assert config.model.embd_dim == stages[source].model.embd_dim
                assert config.model.fpn_dim == stages[source].model.fpn_dim


def test_only_the_two_stream_stages_read_the_missing_modality(chain: tuple[str, dict[str, Config]]) -> None:
    folder, stages = chain
    both = (KEPT[folder], MISSING[folder])
    for name, config in stages.items():
        assert tuple(config.dataset.modalities) == both
        if name in TWO_STREAM:
            assert set(config.model.modalities or config.dataset.modalities) == set(both), name
        else:
            assert config.model.modalities == ((MISSING if name == MISSING[folder] else KEPT)[folder],), name
    low, high = stages["student"].dataset.modalities[KEPT[folder]]
    assert stages["student"].model_input_dim == high - low < stages["teacher"].model_input_dim


def steps_per_epoch(folder: str, config: Config) -> int:
    """Training videos over the batch size, part batches dropped; without teachers unlabelled videos are left out."""
    annotated, more = VIDEOS[folder]
    share = config.train_cfg.labelled_share
    seen = annotated + (more if config.unlabelled_split else 0) if config.distill.teachers else round(annotated * share)
    return seen // config.loader.batch_size


def test_every_stage_has_the_same_data_and_schedule_and_students_more_steps(chain: tuple[str, dict[str, Config]]) -> None:
    folder, stages = chain
    teacher = stages["teacher"]
    for name, config in stages.items():
        schedule = {key for key in config_diff(config, teacher) if key.startswith("opt.")}
        times = PATIENCE[folder] if re.search("student|alone|patient|long|few", name) else 1
        if folder in VIDEOS:  # runs that see more, or fewer, videos per epoch have other epochs, but equal steps
            steps = steps_per_epoch(folder, config)
            assert schedule <= {"opt.epochs", "opt.warmup_epochs"}, name
            assert config.total_epochs * steps == times * STEPS[folder][0], name
            assert abs(config.opt.warmup_epochs * steps - STEPS[folder][1]) <= 2, name
        else:
            assert schedule <= {"opt.epochs"}, name
            assert config.total_epochs == times * teacher.total_epochs, name
        assert config.loader == teacher.loader, name
        assert config.test_cfg == teacher.test_cfg, name
        assert (config.train_split, config.val_split) == (teacher.train_split, teacher.val_split), name
        for key in ("json_file", "feat_folder", "max_seq_len", "crop_ratio", "trunc_thresh", "feat_stride"):
            assert getattr(config.dataset, key) == getattr(teacher.dataset, key), (name, key)
        assert config.train_cfg.ema_decay == teacher.train_cfg.ema_decay, name


def test_the_student_and_the_one_that_learns_alone_differ_in_teachers_and_blend(chain: tuple[str, dict[str, Config]]) -> None:
    folder, stages = chain
    student, alone = stages["student"], stages["student_alone"]
    labelled = stages.get("student_labelled", student)  # on the annotated videos alone
    assert alone.distill.teachers == ()
    assert len(student.distill.teachers) >= 1
    assert set(config_diff(labelled, alone)) == {"distill.teachers", "distill.mixup", "train_cfg.mixup"}
    assert (labelled.distill.mixup, labelled.train_cfg.mixup) == (0.5, 0)  # videos are blended in both,
    assert (alone.distill.mixup, alone.train_cfg.mixup) == (0, 0.2)  # in the way that serves them best
    more = set() if folder != "planted" else {"unlabelled_split", "opt.epochs", "opt.warmup_epochs", "distill.teachers"}
    assert set(config_diff(student, labelled)) == more
    assert student.distill.preset == "corrected"
    assert all(getattr(resolve(student).cls, key) for key in ("weight", "mask"))
    baseline, teacher = stages["baseline"].model, stages["teacher"].model
    assert {f: (getattr(baseline, f), getattr(teacher, f)) for f in vars(teacher) if getattr(baseline, f) != getattr(teacher, f)
            }.keys() == {"modalities"}


@pytest.mark.parametrize("folder", ["hapt", "salads"])
def test_scarce_labels_differ_in_the_share_of_labels_and_the_length_of_an_epoch(folder: str) -> None:
    scarce, alone, student = (load_config(ROOT / "configs" / "distill" / folder / f"{stage}.yaml", FOLD.get(folder, []))
                              for stage in ("scarce_student", "scarce_alone", "student"))
    assert config_diff(student, scarce) == {"train_cfg.labelled_share": (1.0, 0.25), "distill.pseudo_labels": (0.0, 1.0)}
    assert set(config_diff(scarce, alone)) == {"distill.teachers", "distill.mixup", "distill.pseudo_labels", "train_cfg.mixup",
                                               "opt.epochs", "opt.warmup_epochs"}
    assert alone.distill.teachers == ()


@pytest.mark.parametrize(("stage", "params_m", "gflop"), [
    ("teacher", 29.25, 90.5), ("structure_teacher", 30.47, 91.2), ("cross_modal", 36.76, 120.2), ("cross_structure", 19.52, 79.5),
    ("multi_teacher", 19.52, 79.5)])
def test_published_sizes_on_thumos(stage: str, params_m: float, gflop: float) -> None:
    """SPEC section 12, table of sizes: 2304 steps of two-stream I3D features."""
    cost = count(load_config(ROOT / "configs" / "distill" / "thumos" / f"{stage}.yaml"), 2304)
    assert round(cost.params / 1e6, 2) == params_m
    assert cost.flops / 1e9 == pytest.approx(gflop, rel=0.01)


@pytest.mark.parametrize("folder", sorted(KEPT))
def test_the_student_costs_at_most_a_quarter_of_the_teacher(folder: str) -> None:
    teacher, student = (count(load_config(ROOT / "configs" / "distill" / folder / f"{s}.yaml", FOLD.get(folder, [])))
                        for s in ("teacher", "student"))
    assert student.flops <= teacher.flops / 4
    assert student.params < teacher.params


@pytest.mark.parametrize("preset", ["corrected", "c2ms"])
def test_the_documented_defaults_are_those_of_the_program(preset: str) -> None:
    """The table "Defaults of the presets" of docs/distillation_method.md, row by row."""
    text = (ROOT / "docs" / "distillation_method.md").read_text(encoding="utf-8")
    column = ["corrected", "c2ms"].index(preset)
    rows = [[cell.strip(" `") for cell in line.strip().strip("|").split("|")] for line in text.splitlines()
            if re.match(r"\| `distill\.[a-z.]*_?[a-z]*` \| `", line)]
    base = load_config(ROOT / "configs" / "distill" / "demo" / "cross_modal.yaml",
                       [f"distill.preset={preset}", "distill.stage=null"])
    settings, seen = resolve(base), set()
    for key, *cells in rows:
        value = settings
        for name in key.split(".")[1:]:
            value = getattr(value, name)
        shown = str(value).lower() if isinstance(value, (bool, str)) else f"{value:g}"
        assert cells[column] == shown, key
        seen.add(key)
    terms = {"cls": ("weight", "temperature", "loss", "focus", "mask", "reduction"),
             "offsets": ("weight", "loss", "points", "score_thresh", "mask", "reduction"),
             **dict.fromkeys(("stem", "pyramid", "inputs"), ("weight", "mask"))}
    assert seen == {"distill.det_weight", "distill.weight", *(f"distill.{t}.{k}" for t, keys in terms.items() for k in keys)}
