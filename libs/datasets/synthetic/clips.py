"""Short generated videos of a stick figure with their annotations: a dataset that starts from pixels.

`make_clips(folder, spec)` makes sure that `folder` holds
    videos/<clip>.mp4       untrimmed, 208 x 156 pixels, 25 frames per second
    annotations.json        ActivityNet layout, subsets training and validation
Six actions (libs/datasets/synthetic/figures.py), of which two look alike and move apart and two move alike and look apart;
pauses, things that look or move like an action, a bystander, a passing ball, cameras that shake, five kinds of background, a
figure of its own in every clip.  A clip depends on the seed and its number alone; pictures can differ in their last bits between
versions of OpenCV and FFmpeg.
"""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from libs.core.errors import UserError
from libs.core.files import exists, is_file
from libs.datasets.synthetic.figures import (
    CLASSES,
    HEIGHT,
    MARGIN,
    NO_ACTIONS,
    WIDTH,
    Look,
    Pose,
    background,
    draw_figure,
    draw_thing,
    moved,
    pose,
    random_look,
)
from libs.datasets.synthetic.planted import ar1, generator
from libs.datasets.video.encoding import encoder_library, write_video
from libs.datasets.video.flow import flow_library
from libs.utils.files.io import read_json, write_json_atomic
from libs.utils.progress import Progress, no_progress

VERSION = 1  # of what is drawn; raise it whenever the pictures or times change
VIDEOS, ANNOTATIONS = "videos", "annotations.json"
FPS = 25
PLACES = (MARGIN + 0.2 * WIDTH, MARGIN + 0.8 * WIDTH)  # of the figure, pixels
RAMP_S = 0.24  # of an action's begin and end


@dataclass(frozen=True)
class ClipsSpec:
    """Which clips: a seed, numbers of clips, and the number of the first (clips of other numbers are other clips).

    seconds: shortest and longest clip; gap_s: mean pause; decoys: share of the pauses that are filled with something like an
    action; tempo: log-normal spread of speeds and durations; shake: strongest shake of the camera, pixels.
    """

    seed: int = 11
    training: int = 32
    validation: int = 12
    first: int = 0
    seconds: tuple[float, float] = (24.0, 34.0)
    gap_s: float = 0.6
    decoys: float = 0.5
    tempo: float = 0.2
    shake: float = 2.5


class Event(NamedTuple):
    """An action, or what is none: its name, from when to when (s), and the factor on its speed."""

    name: str
    start_s: float
    end_s: float
    tempo: float


def make_clips(folder: Path, spec: ClipsSpec = ClipsSpec(), progress: Progress = no_progress) -> int:
    """Write the clips that are not there yet, and their annotations last; returns the number of clips written.

    progress(clips done, of how many).  Raises UserError for a folder with other annotations, and as `write_video`.
    """
    encoder_library()
    flow_library()
    document = annotation_document(spec)
    file = folder / ANNOTATIONS
    if exists(file) and read_json(file, "annotation file") != document:
        raise UserError(f"{file}: belongs to other clips, or to other data; choose another folder, or remove {folder} to have "
                        "clips of these options there")
    paths = {spec.first + i: folder / VIDEOS / f"{name}.mp4" for i, name in enumerate(document["database"])}
    todo = [number for number, path in paths.items() if not (exists(file) and is_file(path))]
    for done, number in enumerate(todo, 1):
        pictures = enumerate(draw_clip(spec, number))
        write_video(paths[number], ((picture, Fraction(k, FPS)) for k, picture in pictures), Fraction(FPS))
        progress(done, len(todo))
    write_json_atomic(file, document)
    return len(todo)


def annotation_document(spec: ClipsSpec) -> dict[str, Any]:
    """The annotation document; durations are whole numbers of frames."""
    database = {}
    for i in range(spec.training + spec.validation):
        frames, events = timeline(spec, spec.first + i)
        database[f"clip_{spec.first + i:03d}"] = {
            "subset": "training" if i < spec.training else "validation", "duration": frames / FPS, "fps": FPS,
            "annotations": [{"segment": [e.start_s, e.end_s], "label": e.name, "label_id": CLASSES.index(e.name)}
                            for e in events if e.name in CLASSES]}
    return {"version": f"clips {VERSION}", "spec": {**asdict(spec), "seconds": list(spec.seconds)}, "database": database}


def timeline(spec: ClipsSpec, number: int) -> tuple[int, list[Event]]:
    """(frames, events in order of time) of a clip; times are multiples of 1 / FPS s."""
    rng = generator(spec.seed, number, 0)
    frames = round(FPS * rng.uniform(*spec.seconds))
    events: list[Event] = []
    at = 0.3 + rng.exponential(spec.gap_s)
    while True:
        decoy = rng.random() < spec.decoys / 2
        name = str(rng.choice(list(NO_ACTIONS) if decoy else list(CLASSES)))
        end = at + 2.4 * np.exp(rng.normal(0, 0.3))
        if end > frames / FPS - 0.2:
            return frames, events
        events.append(Event(name, round(at * FPS) / FPS, round(end * FPS) / FPS, float(np.exp(rng.normal(0, spec.tempo)))))
        at = end + 0.4 + rng.exponential(spec.gap_s)


def draw_clip(spec: ClipsSpec, number: int) -> Iterator[np.ndarray]:
    """The pictures (156, 208, 3) uint8 RGB of a clip."""
    cv2 = flow_library()
    rng = generator(spec.seed, number, 1)
    frames, events = timeline(spec, number)
    scene, look, ball = background(rng), random_look(rng), _passing_ball(rng, frames)
    if rng.random() < 0.4:
        draw_figure(scene, moved(random_look(rng), float(MARGIN + WIDTH * rng.choice([0.08, 0.92]))), Pose())
    amount = spec.shake * rng.choice([0.0, 0.4, 1.0])
    shake = np.clip(amount * ar1(rng, frames, 6.0)[:, :2], -MARGIN, MARGIN)
    for k in range(frames):
        canvas = scene.copy()
        if ball is not None:
            draw_thing(canvas, ball[k], 6.0, "ball")
        look = _draw_events(canvas, look, events, k / FPS)
        x, y = MARGIN + shake[k]
        yield cv2.warpAffine(canvas, np.array([[1, 0, -x], [0, 1, -y]], np.float32), (WIDTH, HEIGHT), flags=cv2.INTER_LINEAR,
                             borderMode=cv2.BORDER_REPLICATE)


def _draw_events(canvas: np.ndarray, look: Look, events: list[Event], seconds: float) -> Look:
    """Draw the figure at a moment; returns it at its place after that (it walks)."""
    now = next((e for e in events if e.start_s <= seconds < e.end_s), None)
    if now is None:
        draw_figure(canvas, look, Pose())
        return look
    strength = min(1.0, (seconds - now.start_s) / RAMP_S, (now.end_s - seconds) / RAMP_S)
    if now.name == "walk":
        step = strength if round(now.start_s * FPS) % 2 else -strength
        look = moved(look, float(np.clip(look.x + step, *PLACES)))
    draw_figure(canvas, look, pose(now.name, seconds - now.start_s, strength, now.tempo))
    return look


def _passing_ball(rng: np.random.Generator, frames: int) -> np.ndarray | None:
    """(frames, 2) centre of a ball that rolls through every other clip once, in pixels."""
    start, speed, right = rng.uniform(0, 0.8) * frames, rng.uniform(1.5, 4), rng.random() < 0.5
    x = (np.arange(frames) - start) * speed - 20
    place = np.stack([x if right else WIDTH + 2 * MARGIN - x, np.full(frames, MARGIN + HEIGHT * rng.uniform(0.1, 0.95))], axis=1)
    return place if rng.random() < 0.5 else None
