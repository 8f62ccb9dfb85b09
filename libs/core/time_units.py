"""The likely unit of times that are not seconds, from the length of their videos."""
from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from libs.core.errors import UserError

FAR_OUTSIDE = 1.5  # video lengths: times that reach beyond are in another unit
LEAST_VIDEOS = 5  # before early times are taken for another unit: in a few videos all actions may really be early
MOST = 0.95  # of the videos: a few may have wrong times besides
MAX_FPS = 125  # of the frames that times may count where the fps is unknown
LEAST_SEGMENTS = 3  # before they are said to lie outside their videos
ROUNDING = 1.02
REMEDIES = {"frames": "divide by the fps", "milliseconds": "divide by 1000", "minutes": "multiply by 60",
            "shares of the duration": "multiply by the duration"}


def other_units(ends: Mapping[str, float], spans_s: Mapping[str, float], fps: Mapping[str, float]) -> dict[str, str]:
    """Videos whose times are not in seconds -> their likely unit, a key of REMEDIES.

    ends: latest time per video; spans_s: its length in seconds; fps: its frames per second, where known.
    """
    videos = [vid for vid in ends if vid in spans_s]
    latest, spans = np.array([ends[vid] for vid in videos]), np.array([spans_s[vid] for vid in videos])
    ratios = latest / spans
    shares, minutes = (latest <= 1) & (spans > 3), ratios * 60 <= ROUNDING
    if len(videos) >= LEAST_VIDEOS and max(shares.mean(), minutes.mean()) >= MOST:
        are_shares = minutes.mean() < MOST or (shares.mean() >= MOST and np.median(spans) > 60)
        unit, fit = ("shares of the duration", shares) if are_shares else ("minutes", minutes)
        return {vid: unit for vid, fits in zip(videos, fit.tolist(), strict=True) if fits}
    late = [vid for vid, ratio in zip(videos, ratios, strict=True) if FAR_OUTSIDE < ratio <= 1000 * ROUNDING]
    # early segments in milliseconds may fit the number of frames, never the reverse
    fitting = sum(ends[vid] <= ROUNDING * spans_s[vid] * fps.get(vid, MAX_FPS) for vid in late)
    return dict.fromkeys(late, "frames" if 2 * fitting >= len(late) else "milliseconds")


def refuse_other_unit(path: str, segments: Mapping[str, np.ndarray], spans_s: Mapping[str, float],
                      fps: Mapping[str, float]) -> None:
    """UserError if most segments lie outside their videos, or all so early that their times must be in another unit.

    path: of the annotations; segments: (N, 2) per video, in seconds if they are right; spans_s, fps: as for `other_units`.
    """
    annotated = {vid: times for vid, times in segments.items() if len(times) and vid in spans_s}
    ends = {vid: float(times.max()) for vid, times in annotated.items()}
    found = other_units(ends, spans_s, fps)
    units = list(found.values())
    unit = max(units, key=units.count) if units else ""
    total = sum(map(len, annotated.values()))
    outside = sum(int(((times[:, 0] >= spans_s[vid]) | (times[:, 1] > FAR_OUTSIDE * spans_s[vid])).sum())
                  for vid, times in annotated.items())
    if unit in ("minutes", "shares of the duration"):
        what = f"{sum(len(annotated[vid]) for vid in found)} of {total} segments lie at the very start of their videos"
    elif total >= LEAST_SEGMENTS and outside > total / 2:
        what = f"{outside} of {total} segments lie outside their videos"
    else:
        return
    vid = max(found or annotated, key=lambda vid: ends[vid] / spans_s[vid])
    remedy = f"the times look like {unit}: {REMEDIES[unit]}" if unit else "correct them, or the durations"
    raise UserError(f"{path}: {what} (those of video {vid!r} reach to {ends[vid]:g}, the video to {spans_s[vid]:g} s); {remedy}; "
                    "segments and durations are in seconds")
