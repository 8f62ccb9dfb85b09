"""The embedded demo dataset: small, two-stream, generated on first use, identical everywhere.

`ensure_demo(folder)` makes sure that `folder` holds
    annotations/demo.json          ActivityNet layout, subsets training and validation
    features/<video>.npy           float32 (T, 64): channels [0:32] rgb, [32:64] flow
    demo_manifest.json             version, parameters and file sizes; when they differ, the data are generated again
Signal (per stream a latent space, read out as in libs/datasets/synthetic/planted.py): a scene, noise, actions with a style
per video, amplitudes and boundaries that jitter, and distractors.  Two pairs of classes look nearly alike in rgb, and rgb
envelopes are blurred, so rgb alone is useful but clearly worse; flow tells the pairs apart and has sharp boundaries.
"""
from __future__ import annotations

import json
import os
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from libs.core.errors import UserError, note
from libs.core.files import entries, exists
from libs.core.schema import Config
from libs.datasets.synthetic.planted import LATENT, World, ar1, generator, make_world, overlap, read_out, unit
from libs.utils.files.io import write_json_atomic
from libs.utils.files.staging import Overtaken, staged_folder

VERSION = 1  # of the algorithm below; raise it whenever its output changes
ANNOTATIONS, FEATURES, MANIFEST = "annotations/demo.json", "features", "demo_manifest.json"
FPS, STRIDE, NUM_FRAMES = 25, 8, 16
CLASSES = ("clap", "wave", "pour", "throw", "turn")
MEDIAN_S = (1.6, 2.4, 4.0, 3.0, 9.0)  # typical duration per class
LOOK_ALIKE = ((0, 1), (2, 3))  # pairs that rgb hardly tells apart
RGB_BLUR = 8  # frames that an rgb envelope reaches further on both sides


@dataclass(frozen=True)
class DemoSpec:
    """Size and difficulty of the demo.

    steps: shortest and longest video, feature steps; gap_s: mean pause between two actions, s; touching, overlapping: share
    of actions that start where, or before, the previous one ends; rgb_own: part of a look-alike's rgb prototype that is its
    own; style, amplitude, jitter: rotation of prototypes per video, log-normal spread, boundary noise as a share of the
    duration; distractors: per 100 steps.
    """

    seed: int = 7
    training: int = 40
    validation: int = 20
    channels: int = 32
    steps: tuple[int, int] = (100, 250)
    gap_s: float = 4.0
    touching: float = 0.2
    overlapping: float = 0.2
    rgb_strength: float = 5.5
    flow_strength: float = 4.6
    rgb_own: float = 0.5
    style: float = 0.4
    amplitude: float = 0.3
    jitter: float = 0.06
    distractors: float = 2.0


def ensure_demo(folder: str | os.PathLike, spec: DemoSpec = DemoSpec()) -> None:
    """Generate the demo data in `folder` unless it is there, complete and up to date; safe when several processes do it.

    Raises UserError when `folder` cannot be written or holds something else.
    """
    folder = Path(folder)
    if is_current(folder, spec):
        return
    if entries(folder) and not exists(folder / MANIFEST):
        raise UserError(f"{folder}: holds files that are not the demo's, so the demo is not generated there; "
                        "use `dataset_name: generic` for your own data, or name an empty folder in dataset.json_file")
    try:
        with staged_folder(folder) as new:
            _write(new, spec)
            if is_current(folder, spec):  # another process made it meanwhile
                raise Overtaken
    except Overtaken as error:
        if not is_current(folder, spec):
            raise UserError(f"{folder}: another process writes there at the same time; try again") from error
        return
    note(f"demo data: {spec.training} training and {spec.validation} validation videos written to {folder}")


def ensure_demo_of(config: Config) -> None:
    """`ensure_demo` for a configuration with `dataset_name: demo`; nothing for any other.

    Raises UserError when dataset.json_file or dataset.feat_folder are not those of one demo folder.
    """
    if config.dataset_name != "demo":
        return
    json_file = Path(config.dataset.json_file)
    folder = json_file.parent.parent
    if json_file != folder / ANNOTATIONS:
        raise UserError(f"{config.source}: dataset.json_file: {json_file} is not the demo's; name FOLDER/{ANNOTATIONS}, "
                        "or use `dataset_name: generic` for your own data")
    if not isinstance(config.dataset.feat_folder, str) or Path(config.dataset.feat_folder) != folder / FEATURES:
        raise UserError(f"{config.source}: dataset.feat_folder: {config.dataset.feat_folder} is not the demo's; "
                        f"name {folder / FEATURES}, or use `dataset_name: generic` for your own data")
    ensure_demo(folder)


def is_current(folder: Path, spec: DemoSpec) -> bool:
    """True if `folder` holds every file of the demo with these parameters (sizes are compared, not contents)."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if manifest.get("version") != VERSION or manifest.get("spec") != json.loads(json.dumps(asdict(spec))):
            return False
        return all((folder / name).stat().st_size == size for name, size in manifest["files"].items())
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        return False


def make_demo(spec: DemoSpec) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(annotation document, features (T, 2 * channels) float32 by video id); depends on `spec` alone."""
    world = make_demo_world(spec)
    database, features = {}, {}
    for subset, count in (("training", spec.training), ("validation", spec.validation)):
        for i in range(count):
            name = f"demo_{subset}_{i:03d}"
            rng = generator(spec.seed, zlib.crc32(name.encode()))
            steps = int(rng.integers(spec.steps[0], spec.steps[1] + 1))
            duration = ((steps - 1) * STRIDE + NUM_FRAMES) / FPS
            actions = make_timeline(rng, duration, spec)
            latents = make_latents(rng, steps, actions, world, spec)
            streams = zip(latents, world.mix, world.bias, strict=True)
            features[name] = np.concatenate([read_out(rng, x, mix, bias) for x, mix, bias in streams], axis=1)
            annotations = [{"label": CLASSES[c], "label_id": c, "segment": [s, e]} for s, e, c in actions]
            database[name] = {"subset": subset, "duration": duration, "fps": FPS, "annotations": annotations}
    return {"version": f"demo {VERSION}", "database": database}, features


def make_demo_world(spec: DemoSpec) -> World:
    """The world of the demo's classes; the rgb prototypes of a look-alike pair differ only by a share `rgb_own`."""
    world = make_world(spec.seed, len(CLASSES), spec.channels, spec.channels)
    for a, b in LOOK_ALIKE:
        own = world.p_rgb[b] - world.p_rgb[b] @ world.p_rgb[a] * world.p_rgb[a]
        world.p_rgb[b] = np.sqrt(1 - spec.rgb_own**2) * world.p_rgb[a] + spec.rgb_own * own / np.linalg.norm(own)
    return world


def make_timeline(rng: np.random.Generator, duration: float, spec: DemoSpec) -> list[tuple[float, float, int]]:
    """Actions (start_s, end_s, class) in order of their start, rounded to 1 ms, inside [0, duration]."""
    actions: list[tuple[float, float, int]] = []
    start = rng.exponential(spec.gap_s)
    while True:
        label = int(rng.integers(len(CLASSES)))
        if actions and label == actions[-1][2]:
            label = (label + 1) % len(CLASSES)  # neighbours differ, else touching ones would be a single action
        length = MEDIAN_S[label] * np.exp(rng.normal(0, 0.35))
        fate = rng.random()
        if actions and fate < spec.touching:
            start = actions[-1][1]
        elif actions and fate < spec.touching + spec.overlapping:
            previous_s, previous_e, _ = actions[-1]
            start = previous_e - rng.uniform(0.3, 0.6) * min(previous_e - previous_s, length)
        if start + length > duration:
            return actions
        actions.append((round(float(start), 3), round(float(start + length), 3), label))
        start = max(e for _, e, _ in actions) + 0.5 + rng.exponential(spec.gap_s)


def make_latents(rng: np.random.Generator, steps: int, actions: list[tuple[float, float, int]], world: World,
                 spec: DemoSpec) -> tuple[np.ndarray, np.ndarray]:
    """Latents (steps, LATENT) of the rgb and the flow stream."""
    rgb = 0.5 * np.sqrt(LATENT) * unit(rng, 1) + 0.75 * ar1(rng, steps, 40.0) + 0.55 * ar1(rng, steps, 5.0)
    flow = 0.25 * np.sqrt(LATENT) * unit(rng, 1) + 0.6 * ar1(rng, steps, 15.0) + 0.75 * ar1(rng, steps, 2.5)
    p_rgb = world.p_rgb + spec.style * unit(rng, 1)
    p_flow = world.p_flow + spec.style * unit(rng, 1)
    for start, end, label in actions:
        a_rgb, a_flow = np.exp(rng.normal(0, spec.amplitude, size=2))
        jitter = rng.normal(0, spec.jitter * (end - start), size=2)
        first, last = (start + jitter[0]) * FPS, (end + jitter[1]) * FPS
        last = max(last, first + STRIDE)
        quarter = (last - first) / 4
        phase = _cover(steps, first, first + quarter) - _cover(steps, last - quarter, last)
        onset, offset = _cover(steps, first - 6, first + 6), _cover(steps, last - 6, last + 6)
        rgb += spec.rgb_strength * a_rgb * _cover(steps, first, last, RGB_BLUR) * p_rgb[label]
        flow += spec.flow_strength * a_flow * (_cover(steps, first, last) * p_flow[label] + 0.5 * phase * world.p_phase[label]
                                               + 0.6 * onset * world.onset + 0.6 * offset * world.offset)
    for _ in range(rng.poisson(spec.distractors * steps / 100)):
        length = float(np.exp(rng.normal(1.0, 0.6))) * FPS
        first = rng.uniform(0, steps * STRIDE)
        amplitude, label = np.exp(rng.normal(-0.1, 0.3)), int(rng.integers(len(CLASSES)))
        if rng.random() < 0.5:  # looks like an action, moves like none
            rgb += 0.8 * spec.rgb_strength * amplitude * _cover(steps, first, first + length, RGB_BLUR) * p_rgb[label]
            flow += 0.4 * spec.flow_strength * amplitude * _cover(steps, first, first + length) * unit(rng, 1)
        else:
            rgb += spec.rgb_strength * amplitude * _cover(steps, first, first + length, RGB_BLUR) * unit(rng, 1)
            flow += spec.flow_strength * amplitude * _cover(steps, first, first + length) * unit(rng, 1)
    return rgb, flow


def _cover(steps: int, first: float, last: float, pad: float = 0.0) -> np.ndarray:
    """(steps, 1) share of each feature window that lies in [first, last) frames."""
    return overlap(steps, first, last, pad, STRIDE, NUM_FRAMES)[:, None]


def _write(folder: Path, spec: DemoSpec) -> None:
    document, features = make_demo(spec)
    (folder / FEATURES).mkdir()
    write_json_atomic(folder / ANNOTATIONS, document)
    for name, array in features.items():
        np.save(folder / FEATURES / f"{name}.npy", array)
    names = [ANNOTATIONS, *(f"{FEATURES}/{name}.npy" for name in features)]
    sizes = {name: (folder / name).stat().st_size for name in names}
    write_json_atomic(folder / MANIFEST, {"version": VERSION, "spec": asdict(spec), "files": sizes})
