"""Pictures of the generated clips: backgrounds, and a stick figure in the pose that its action has at a moment.

    canvas = background(rng)                                            (CANVAS height, CANVAS width, 3) uint8 RGB
    draw_figure(canvas, look, pose(look, "wave", seconds, strength))    changes the canvas

Sizes are in pixels of the canvas, which is `MARGIN` larger than the picture on every side, so that the camera can shake.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from libs.datasets.video.flow import flow_library

WIDTH, HEIGHT, MARGIN = 208, 156, 12
CANVAS = (HEIGHT + 2 * MARGIN, WIDTH + 2 * MARGIN)
SHIFT = 4  # binary digits behind the point of OpenCV's coordinates
DOWN, OUT, UP = 0.35, 1.57, 2.7  # angles of a limb from straight down, radians
Pair = tuple[float, float]
BALL, BOX = (235, 120, 30), (40, 90, 220)


@dataclass(frozen=True)
class Look:
    """A figure: colours, height, and where its feet are."""

    skin: tuple[int, int, int]
    shirt: tuple[int, int, int]
    trousers: tuple[int, int, int]
    tall: float
    x: float
    y: float


class Pose(NamedTuple):
    """Angles from straight down (left, right), of forearms against upper arms; shift of the body in heights; thing in a hand."""

    arms: Pair = (DOWN, DOWN)
    elbows: Pair = (0.0, 0.0)
    legs: Pair = (0.15, 0.15)
    shift: Pair = (0.0, 0.0)
    held: str | None = None


def _lift(held: str) -> Callable[[float], Pose]:
    return lambda turns: Pose(arms=(DOWN, DOWN + (UP - DOWN) * (0.5 - 0.5 * np.cos(turns))), held=held)


# action -> (turns per second, pose at an angle of the turn in radians).  hop and sway look alike and move apart; lift_ball and
# lift_box move alike and look apart; wave and kick differ in both.
ACTIONS: dict[str, tuple[float, Callable[[float], Pose]]] = {
    "hop": (1.4, lambda turns: Pose(arms=(OUT, OUT), shift=(0.0, 0.06 * np.sin(turns)))),
    "sway": (1.4, lambda turns: Pose(arms=(OUT, OUT), shift=(0.06 * np.sin(turns), 0.0))),
    "lift_ball": (0.7, _lift("ball")),
    "lift_box": (0.7, _lift("box")),
    "wave": (2.0, lambda turns: Pose(arms=(2.2, DOWN), elbows=(0.5 * np.sin(turns), 0.0))),
    "kick": (1.2, lambda turns: Pose(legs=(0.15, 0.15 + 1.0 * (0.5 - 0.5 * np.cos(turns))))),
}
CLASSES = tuple(ACTIONS)
NO_ACTIONS: dict[str, tuple[float, Callable[[float], Pose]]] = {  # look or move like an action, and are none
    "arms out": (0.0, lambda turns: Pose(arms=(OUT, OUT))),
    "fidget": (1.0, lambda turns: Pose(arms=(DOWN + 0.3 * np.sin(turns), DOWN))),
    "walk": (1.6, lambda turns: Pose(legs=(0.15 + 0.35 * np.sin(turns), 0.15 - 0.35 * np.sin(turns)))),
}


def pose(name: str, seconds: float, strength: float, tempo: float) -> Pose:
    """The pose `seconds` after the beginning of an action, or of what is none; strength 0 (at rest) to 1; tempo: its factor."""
    turns_per_second, at = {**ACTIONS, **NO_ACTIONS}[name]
    full, rest = at(2 * np.pi * turns_per_second * tempo * seconds), Pose()

    def mixed(low: Pair, high: Pair) -> Pair:
        return (1 - strength) * low[0] + strength * high[0], (1 - strength) * low[1] + strength * high[1]

    return Pose(mixed(rest.arms, full.arms), mixed(rest.elbows, full.elbows), mixed(rest.legs, full.legs),
                mixed(rest.shift, full.shift), full.held)


def draw_figure(canvas: np.ndarray, look: Look, at: Pose) -> None:
    """Draw the figure on the canvas (H, W, 3) uint8."""
    tall, thick = look.tall, max(2, round(look.tall / 16))
    hip = np.array([look.x, look.y - 0.46 * tall]) + tall * np.array(at.shift)
    neck = hip - [0, 0.36 * tall]
    for side, leg in zip((-1, 1), at.legs, strict=True):
        _line(canvas, hip, _limb(hip, leg, side, 0.46 * tall), look.trousers, thick)
    _line(canvas, hip, neck, look.shirt, thick + 2)
    for side, arm, elbow in zip((-1, 1), at.arms, at.elbows, strict=True):
        middle = _limb(neck, arm, side, 0.19 * tall)
        hand = _limb(middle, arm + elbow, side, 0.19 * tall)
        _line(canvas, neck, middle, look.shirt, thick)
        _line(canvas, middle, hand, look.skin, thick)
        if side > 0 and at.held:
            draw_thing(canvas, hand, 0.085 * tall, at.held)
    _disc(canvas, neck - [0, 0.09 * tall], 0.085 * tall, look.skin)


def draw_thing(canvas: np.ndarray, centre: Any, size: float, kind: str) -> None:
    """A ball, or a box of the same area, around a point (x, y); size: the ball's radius."""
    if kind == "ball":
        _disc(canvas, centre, size, BALL)
    else:
        half = size * np.sqrt(np.pi) / 2
        corners = np.asarray(centre) + half * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
        flow_library().fillConvexPoly(canvas, _fixed(corners), BOX, flow_library().LINE_AA, SHIFT)


def background(rng: np.random.Generator) -> np.ndarray:
    """One of five kinds of background, (H, W, 3) uint8: plain wall, stripes, tiles, hills, clouds; muted colours."""
    height, width = CANVAS
    one, two = rng.uniform(70, 200, (2, 3))
    y, x = np.mgrid[:height, :width]
    kind = rng.integers(5)
    if kind == 0:
        share = y / height
    elif kind == 1:
        share = (x // rng.integers(12, 30)) % 2 * 0.5
    elif kind == 2:
        side = rng.integers(14, 34)
        share = ((x // side + y // side) % 2) * 0.4
    elif kind == 3:
        share = (y > height * 0.6 + 14 * np.sin(x / rng.uniform(15, 40))).astype(float)
    else:
        coarse = rng.uniform(0, 1, (6, 8)).astype(np.float32)
        share = flow_library().resize(coarse, (width, height), interpolation=flow_library().INTER_CUBIC)
    return np.clip(one + (two - one) * np.clip(share, 0, 1)[..., None], 0, 255).astype(np.uint8)


def random_look(rng: np.random.Generator) -> Look:
    """A figure of any colours, somewhere in the middle of the picture."""
    colours = rng.uniform(20, 235, (2, 3)).astype(int).tolist()
    skin = np.array([225, 180, 150]) * rng.uniform(0.45, 1)
    return Look(tuple(skin.astype(int).tolist()), tuple(colours[0]), tuple(colours[1]), float(rng.uniform(72, 104)),
                float(MARGIN + WIDTH * rng.uniform(0.3, 0.7)), float(MARGIN + HEIGHT * rng.uniform(0.84, 0.94)))


def moved(look: Look, x: float) -> Look:
    """The same figure at another place."""
    return replace(look, x=x)


def _limb(start: np.ndarray, angle: float, side: int, length: float) -> np.ndarray:
    return start + length * np.array([side * np.sin(angle), np.cos(angle)])


def _fixed(points: Any) -> np.ndarray:
    return np.round(np.asarray(points) * (1 << SHIFT)).astype(np.int32)


def _line(canvas: np.ndarray, start: Any, end: Any, colour: tuple[int, int, int], thick: int) -> None:
    cv2 = flow_library()
    cv2.line(canvas, _fixed(start).tolist(), _fixed(end).tolist(), colour, thick, cv2.LINE_AA, SHIFT)


def _disc(canvas: np.ndarray, centre: Any, radius: float, colour: tuple[int, int, int]) -> None:
    cv2 = flow_library()
    cv2.circle(canvas, _fixed(centre).tolist(), int(_fixed(radius)), colour, -1, cv2.LINE_AA, SHIFT)
