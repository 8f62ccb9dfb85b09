"""THUMOS14-shaped two-stream features with a planted signal for real annotations, for full-size runs without the real features.

Feature t covers frames [4 t, 4 t + 16), T = floor((duration * fps - 16) / 4) + 1.  Each stream lives in a latent space of fixed
size, so the difficulty does not depend on the width; channels are a random non-negative read-out of it:

    latent(t) = scene + shot(t) + slow and fast AR(1) noise + actions(t) + distractors(t)
    x(t)      = relu(bias + latent(t) @ mix + white noise)

* rgb: the pairs of SHARED_RGB have the same prototype (only flow tells them apart) and a blurred envelope (48 frames).
* flow: one prototype per class, an exact envelope, a class-specific phase (first against last quarter), on- and offset pulses.
* nuisance: a style per video, log-normal amplitudes, 6 % of the instances nearly lack one stream and a share `faint` nearly lack
  both, jittered boundaries, and distractors, a share `decoys` of which look like an action in rgb only.

PRESETS names three settings.  `classic` came first: RGB alone is far below both streams, mostly because distractors look like
actions in it.  `gap` has what is published for I3D features of THUMOS14 with one detector (TriDet; average mAP .3:.7: RGB 59.0,
flow 63.7, both 68.8): ActionFormer of width 128 reaches 58.8, 63.9 and 68.8, the means of worlds 0, 1 and 2
(benchmarks/results/planted_gap.json).  `strong_flow`, used before it, has flow alone at the level of both.

Everything is a function of (seed, video id), independent of which subset is written; values are multiples of 2**-12, so files
are bit-identical across BLAS builds but for exact ties.  The order of the random draws is part of the format: keep it.
"""
from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from libs.datasets.prepare.thumos import NUM_FRAMES, STRIDE

SHARED_RGB = ((5, 6), (4, 7), (10, 18), (11, 14), (12, 15), (0, 17))  # label ids of thumos14.json
LATENT = 32
RGB_BLUR = 16  # frames that an rgb envelope reaches further on both sides


@dataclass(frozen=True)
class Difficulty:
    """Settings of the planted signal; the defaults are those of the first generator."""

    strength: float = 1.0  # action evidence
    rgb_strength: float = 1.0  # a further factor on rgb evidence
    hard: float = 1.0  # nuisance level, 0: none
    flow_strength: float = 1.0  # a further factor on flow evidence
    faint: float = 0.0  # share of the instances that nearly lack both streams
    alike: int = len(SHARED_RGB)  # pairs of classes that look alike in rgb
    decoys: float = 0.5  # share of the distractors that look like an action in rgb


PRESETS = {"classic": Difficulty(),
           "strong_flow": Difficulty(rgb_strength=16.0, flow_strength=2.35, faint=0.195, alike=0, decoys=0.0),
           "gap": Difficulty(rgb_strength=22.0, flow_strength=1.85, faint=0.16, alike=0, decoys=0.0)}


@dataclass(frozen=True)
class World:
    """Parameters shared by all videos: unit prototypes (K, LATENT); per stream a read-out (LATENT, D) and a bias (D,)."""

    p_rgb: np.ndarray
    p_flow: np.ndarray
    p_phase: np.ndarray
    onset: np.ndarray
    offset: np.ndarray
    shared: tuple[tuple[int, int], ...]
    mix: tuple[np.ndarray, ...]
    bias: tuple[np.ndarray, ...]


def generator(*key: int) -> np.random.Generator:
    """A random generator that depends on the key alone."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(key)))


def unit(rng: np.random.Generator, n: int, k: int = LATENT) -> np.ndarray:
    """(n, k) random directions of length 1."""
    v = rng.standard_normal((n, k))
    return v / np.linalg.norm(v, axis=1, keepdims=True)


def ar1(rng: np.random.Generator, steps: int, tau: float) -> np.ndarray:
    """(steps, LATENT) stationary AR(1) noise of unit variance with a time constant of tau steps."""
    decay = float(np.exp(-1.0 / tau))
    noise = rng.standard_normal((steps, LATENT)) * np.sqrt(1 - decay * decay)
    out = np.empty((steps, LATENT))
    current = rng.standard_normal(LATENT)
    for t in range(steps):
        current = decay * current + noise[t]
        out[t] = current
    return out


def overlap(steps: int, first: float, last: float, pad: float, stride: float = STRIDE,
            num_frames: float = NUM_FRAMES) -> np.ndarray:
    """(steps,) share of the window [stride t - pad, stride t + num_frames + pad) that lies in [first, last), frames."""
    start = stride * np.arange(steps) - pad
    end = start + num_frames + 2 * pad
    return np.clip(np.minimum(end, last) - np.maximum(start, first), 0, None) / (num_frames + 2 * pad)


def read_out(rng: np.random.Generator, latent: np.ndarray, mix: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """(T, D) float32 channels of a latent (T, LATENT): non-negative, multiples of 2**-12."""
    x = latent @ mix
    x += bias
    x += 0.03 * rng.standard_normal(x.shape, dtype=np.float32)
    np.maximum(x, 0, out=x)
    return (np.round(x * 4096.0) / 4096.0).astype(np.float32)


def make_read_outs(seed: int, dims: tuple[int, int]) -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]]:
    """(mix, bias) per stream; they have random generators of their own, so that the latent world is the same for any width."""
    mix, bias = [], []
    for j, d in enumerate(dims):
        rng = generator(seed, 888, j, d)
        mix.append(rng.standard_normal((LATENT, d)) * (0.16 / np.sqrt(LATENT)))
        bias.append(0.12 + rng.gamma(2.0, 0.05, size=d))
    return tuple(mix), tuple(bias)


def make_world(seed: int, num_classes: int, d_rgb: int, d_flow: int, alike: int = len(SHARED_RGB)) -> World:
    """The shared world of `num_classes` classes with d_rgb and d_flow channels (one may be 0), `alike` pairs of SHARED_RGB."""
    rng = generator(seed, 777)
    p_rgb, p_flow, p_phase = (unit(rng, num_classes) for _ in range(3))
    onset, offset = unit(rng, 2)
    shared = tuple((a, b) for a, b in SHARED_RGB[:alike] if a < num_classes and b < num_classes)
    for a, b in shared:
        p_rgb[b] = p_rgb[a]
    mix, bias = make_read_outs(seed, (d_rgb, d_flow))
    return World(p_rgb, p_flow, p_phase, onset, offset, shared, mix, bias)


def make_video(world: World, seed: int, video: str, steps: int, events: list[tuple[float, float, int]], fps: float,
               level: Difficulty, stride: float = STRIDE, num_frames: float = NUM_FRAMES) -> np.ndarray:
    """(steps, D) float32 features, rgb before flow; `events` are (start_s, end_s, label id).

    Feature t covers frames [stride t, stride t + num_frames); all other lengths in frames and steps are as for THUMOS14.
    """
    key, hard = zlib.crc32(video.encode()), level.hard
    rng, chance = generator(seed, key), generator(seed, key, 1)  # a generator of its own: faint instances change no other draw

    def share(first: float, last: float, pad: float = 0) -> np.ndarray:
        return overlap(steps, first, last, pad, stride, num_frames)

    rgb, flow = _background(rng, steps)
    s_rgb, s_flow = 4.0 * level.strength * level.rgb_strength, 4.6 * level.strength * level.flow_strength
    p_rgb = world.p_rgb + 0.35 * hard * unit(rng, 1)
    p_flow = world.p_flow + 0.35 * hard * unit(rng, 1)
    for (start, end), labels in _grouped(events):
        a_rgb, a_flow = np.exp(rng.normal(0, 0.30 * hard, size=2))
        fate = rng.random()
        if fate < 0.03 * hard:
            a_rgb *= 0.15
        elif fate < 0.06 * hard:
            a_flow *= 0.15
        if chance.random() < level.faint:
            a_rgb, a_flow = 0.15 * a_rgb, 0.15 * a_flow
        jitter = rng.normal(0, 0.06 * hard * min(end - start, 4.0), size=2)  # annotated boundaries are not exact
        first = (start + jitter[0]) * fps
        last = max((end + jitter[1]) * fps, first + 3)
        quarter = (last - first) / 4
        phase = share(first, first + quarter) - share(last - quarter, last)
        onset = share(first - 4, first + 4) * (num_frames / 8.0)
        offset = share(last - 4, last + 4) * (num_frames / 8.0)
        rgb += (s_rgb * a_rgb) * share(first, last, RGB_BLUR)[:, None] * p_rgb[labels].mean(0)
        flow += (s_flow * a_flow) * (share(first, last)[:, None] * p_flow[labels].mean(0)
                                     + 0.5 * phase[:, None] * world.p_phase[labels].mean(0)
                                     + 0.6 * onset[:, None] * world.onset
                                     + 0.6 * offset[:, None] * world.offset)
    _add_distractors(rng, rgb, flow, p_rgb, level, s_rgb, s_flow, fps, stride, share)
    streams = zip((rgb, flow), world.mix, world.bias, strict=True)
    return np.ascontiguousarray(np.concatenate([read_out(rng, x, mix, bias) for x, mix, bias in streams if mix.shape[1]], axis=1))


def pick(database: dict[str, dict[str, Any]], subset: str, count: int, seed: int = 0) -> list[str]:
    """Sorted ids of `count` videos of a subset (negative: all): at least max(1, count // (2 * classes)) of every class.

    Classes come rarest first, videos in an order of the seed (0: of their crc32), the rest in that order too.
    """
    def order(video: str) -> tuple[int, str]:
        crc = zlib.crc32(video.encode())  # of a text with the seed before it, it would give many seeds almost the same videos
        return (int(generator(seed, crc).integers(2**32)) if seed else crc, video)

    ids = sorted((k for k, v in database.items() if v["subset"].lower() == subset), key=order)
    if count < 0 or count >= len(ids):
        return sorted(ids)
    of_class: dict[int, list[str]] = {}
    for video in ids:
        for label in {a["label_id"] for a in database[video]["annotations"]}:
            of_class.setdefault(label, []).append(video)
    want = max(1, count // (2 * max(1, len(of_class))))
    chosen: list[str] = []
    for label in sorted(of_class, key=lambda c: (len(of_class[c]), c)):
        for video in of_class[label]:
            if sum(c in of_class[label] for c in chosen) >= want:
                break
            if video not in chosen:
                chosen.append(video)
    chosen += [k for k in ids if k not in chosen]
    return sorted(chosen[:count])


def _background(rng: np.random.Generator, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Latents (steps, LATENT) of rgb and flow without events: scene, noise, and shots of about 60 steps."""
    rgb = 0.9 * unit(rng, 1) * np.sqrt(LATENT) * 0.6 + 0.75 * ar1(rng, steps, 40.0) + 0.55 * ar1(rng, steps, 5.0)
    flow = 0.4 * unit(rng, 1) * np.sqrt(LATENT) * 0.6 + 0.6 * ar1(rng, steps, 15.0) + 0.75 * ar1(rng, steps, 2.5)
    t = 0
    while t < steps:
        n = int(rng.geometric(1 / 60.0)) + 8
        rgb[t:t + n] += 0.6 * rng.standard_normal(LATENT)
        flow[t:t + n] += 0.3 * rng.standard_normal(LATENT)
        t += n
    return rgb, flow


def _grouped(events: list[tuple[float, float, int]]) -> list[tuple[tuple[float, float], list[int]]]:
    """Events grouped by boundaries: a segment with two labels (CliffDiving is also Diving) is one event."""
    groups: dict[tuple[float, float], set[int]] = {}
    for start, end, label in events:
        groups.setdefault((round(start, 3), round(end, 3)), set()).add(label)
    return [(key, sorted(groups[key])) for key in sorted(groups)]


def _add_distractors(rng: np.random.Generator, rgb: np.ndarray, flow: np.ndarray, p_rgb: np.ndarray, level: Difficulty,
                     s_rgb: float, s_flow: float, fps: float, stride: float, share: Callable[..., np.ndarray]) -> None:
    """Add about one distractor per 100 steps to both latents in place."""
    steps = len(rgb)
    duration = steps * stride / fps
    for _ in range(rng.poisson(steps / 100.0 * level.hard)):
        length = float(np.exp(rng.normal(1.1, 0.7)))
        start = rng.uniform(0, max(duration - length, 0.1))
        first, last = start * fps, (start + length) * fps
        in_rgb, in_flow = (share(first, last, pad)[:, None] for pad in (RGB_BLUR, 0))
        amplitude = np.exp(rng.normal(-0.1, 0.3))
        if rng.random() < level.decoys:
            label = int(rng.integers(len(p_rgb)))
            rgb += (0.8 * s_rgb * amplitude) * in_rgb * p_rgb[label]
            flow += (0.4 * s_flow * amplitude) * in_flow * unit(rng, 1)
        else:
            rgb += (s_rgb * amplitude) * in_rgb * unit(rng, 1)
            flow += (s_flow * amplitude) * in_flow * unit(rng, 1)
