"""Raw video against its fixtures: I3D (i3d_*_seed<S>.npz), preprocessing.npz and descriptor.npz; weights and clips by recipe."""
from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import torch

from golden.common import Check, agree, compare, load
from libs.core.errors import UserError
from libs.datasets.video.extractors.descriptor import APPEARANCE, EPS, GRID, LOBES, SLICES, parts, vectors
from libs.datasets.video.extractors.i3d import FLOW_RULES, crops, long_enough, ten_crops
from libs.datasets.video.flow import BOUND, flow_levels
from libs.datasets.video.i3d_network import InceptionI3D
from libs.datasets.video.one_video import clips

TOLERANCE = {"atol": 1e-4}  # float32 on any processor, of values up to 30; measured: 1.3e-5
SUM_TOLERANCE = {"atol": 1e-9, "rtol": 1e-9}
STATS_TOLERANCE = {"atol": 1e-4, "rtol": 1e-4}  # the fixture's are of a float64 run


def uniform(name: str, seed: int, count: int) -> np.ndarray:
    """(count,) float64 in [0, 1), the same with every NumPy."""
    words = np.random.PCG64([seed, zlib.crc32(name.encode())]).random_raw(count)
    return (words >> np.uint64(11)) * 2.0**-53


def recipe_weights(network: InceptionI3D, seed: int) -> dict[str, torch.Tensor]:
    """State dict by recipe, as old files have it: without the counters of batch norm."""
    state = {}
    for name, tensor in network.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        u = uniform(name, seed, tensor.numel()).reshape(tensor.shape)
        if name.endswith("conv3d.weight"):
            u = (2 * u - 1) * np.sqrt(6 / np.prod(tensor.shape[1:]))
        elif name.endswith("bn.weight"):
            u = 0.75 + 0.5 * u
        elif name.endswith("running_var"):
            u = 0.5 + u
        else:
            u = (0.2 if name.endswith("conv3d.bias") else 0.4) * (u - 0.5)
        state[name] = torch.from_numpy(u.astype(np.float32))
    return state


def recipe_clip(name: str, seed: int, shape: tuple[int, int, int, int]) -> np.ndarray:
    """(C, T, H, W) uint8: coarse blocks of 2 x 32 x 32 and fine noise."""
    c, t, h, w = shape
    blocks = (c, -(-t // 2), -(-h // 32), -(-w // 32))
    coarse = np.floor(256 * uniform(f"{name}/coarse", seed, int(np.prod(blocks)))).reshape(blocks)
    coarse = coarse.repeat(2, 1).repeat(32, 2).repeat(32, 3)[:, :t, :h, :w]
    fine = np.floor(256 * uniform(f"{name}/fine", seed, c * t * h * w)).reshape(shape)
    return ((3 * coarse + fine) // 4).astype(np.uint8)


def check_i3d(path: Path) -> list[Check]:
    """Shapes, statistics of every endpoint, features and logits of every clip."""
    data = load(path)
    seed, channels, names = int(data["seed"]), int(data["in_channels"]), data["names"].tolist()
    network = InceptionI3D(channels).eval()
    state = recipe_weights(network, seed)
    checks = [agree("names", sorted(state) == sorted(names)),
              compare("first parameters", [state[n].flatten()[0] for n in names], data["parameter_first"]),
              compare("sums of parameters", [state[n].double().sum() for n in names], data["parameter_sum"], **SUM_TOLERANCE)]
    network.load_state_dict(state)
    for case in data["cases"].tolist():
        t, h, w = map(int, case.split("x"))
        clip = recipe_clip(f"{'rgb' if channels == 3 else 'flow'}/{case}", seed, (channels, t, h, w))
        checks += _case(data, case, network, torch.from_numpy((clip * 2.0 / 255 - 1).astype(np.float32)))
    return checks


def _case(data: dict[str, np.ndarray], case: str, network: InceptionI3D, clip: torch.Tensor) -> list[Check]:
    checks = [compare(f"{case} input sum", clip.double().sum(), data[f"{case}/input_sum"], rtol=1e-9, atol=1e-6),
              compare(f"{case} input", clip.flatten()[:8], data[f"{case}/input_first"])]

    def seen(i: int, name: str, output: torch.Tensor) -> None:
        wide = output[0].double()
        stats = [wide.mean(), wide.std(correction=0), wide.max(), (wide > 0).double().mean()]
        checks.append(compare(f"{case} shape of {name}", output.shape[1:], data[f"{case}/shape/{name}"]))
        checks.append(compare(f"{case} statistics of {name}", stats, data[f"{case}/endpoint_stats"][i], **STATS_TOLERANCE))
        checks.append(compare(f"{case} means of {name}", wide.mean((1, 2, 3)), data[f"{case}/channel_mean/{name}"], **TOLERANCE))
    hooks = [network.get_submodule(name).register_forward_hook(lambda _module, _x, output, i=i, name=name: seen(i, name, output))
             for i, name in enumerate(data["endpoints"].tolist())]
    with torch.inference_mode():
        features = network(clip[None])
        logits = network.classify(features)
    for hook in hooks:
        hook.remove()
    return checks + [compare(f"{case} {kind}", value[0], data[f"{case}/{kind}{run}"], **TOLERANCE)
                     for kind, value in (("feature", features), ("logits", logits)) for run in ("", "_f32")]


def check_preprocessing(path: Path) -> list[Check]:
    """Flow to levels and levels to the network's input, bit for bit; crops; which chunks a video gives."""
    data = load(path)
    levels = {rule: flow_levels(data["flow/value"], BOUND, rule) for rule in FLOW_RULES}
    inputs = {rule: _input(value) for rule, value in levels.items()}
    checks = [compare("flow to bytes", levels["bytes"], data["flow/byte"]),
              compare("flow, bytes to input", inputs["bytes"], data["flow/float32"]),
              compare("flow, bytes to input, float64", inputs["bytes"], data["flow/float64"], atol=1e-7),
              compare("flow to levels", levels["video_features"], data["flow/video_features_level"]),
              compare("flow, levels to input", inputs["video_features"], data["flow/video_features_float32"], atol=2e-7),
              compare("RGB to input", _input(data["rgb/byte"]), data["rgb/float32"])]
    for key in (key for key in data if key.startswith("crops/")):
        size, side = key.split("/")[1:]
        height, width = map(int, size.split("x"))
        checks.append(compare(f"crops of {size}", np.array(ten_crops(height, width, int(side))), data[key]))
        checks.append(_crops_in_frame(size, height, width, int(side), data[key.replace("crops", "crops_in_frame")]))
    return checks + [_chunks(row) for row in data["chunks/table"].tolist()] + [
        compare("chunk starts", np.array([c[0] for c in clips(range(103), 16, 4)]), data["chunks/starts_103_16_4"])]


def _input(levels: np.ndarray) -> torch.Tensor:
    """Levels (N) as the network gets them, from images of one row."""
    return crops(torch.from_numpy(levels[None, None, None, :, None]), len(levels), "squeeze")[0, 0, 0, 0]


def _crops_in_frame(size: str, height: int, width: int, side: int, boxes: np.ndarray) -> Check:
    """The pixels of ten crops are those of boxes of the frame, mirrored afterwards."""
    frame = torch.arange(height * width, dtype=torch.float64).reshape(1, 1, height, width, 1)
    taken = crops(frame, side, "ten")[:, 0, 0]
    whole = _input(frame.flatten().numpy()).reshape(height, width)
    parts = [whole[top:top + side, left:left + side] for top, left, _ in boxes.tolist()]
    expected = [part.flip(-1) if mirrored else part for part, (_, _, mirrored) in zip(parts, boxes.tolist(), strict=True)]
    return compare(f"pixels of the crops of {size}", taken, torch.stack(expected))


def _chunks(row: list[int]) -> Check:
    """Windows of a video by decoded frames, with the first frame dropped and without; -1: refused."""
    decoded, stored, window, stride, vectors, last, kept = row
    try:
        found = list(clips(long_enough(range(1, decoded), window, 1, f"{decoded} frames"), window, stride))
    except UserError:
        found = []
    got = (decoded - 1, len(found) if found else -1, found[-1][0] - 1 if found else -1,
           len(list(clips(range(decoded), window, stride))) if decoded >= window else 0)
    return agree(f"chunks of {decoded} frames, window {window}, stride {stride}", got == (stored, vectors, last, kept))


def check_descriptor(path: Path) -> list[Check]:
    """Parts of frame 0 and their means, vectors of a window for both powers, votes of a uniform flow."""
    data = load(path)
    still = float(data["zero"])
    checks = [agree("constants", [data[key].item() for key in ("grid", "bins", "eps")] == [GRID, LOBES, EPS])]
    for tag in sorted({key.split("/")[0] for key in data if key.endswith("/shape")}):
        frames, height, width = data[f"{tag}/shape"].tolist()
        grey, lab, flow, calm = (recipe_clip(f"descr/{tag}/{kind}", 0, (n, frames, height, width)).transpose(1, 2, 3, 0)
                                 for kind, n in (("grey", 1), ("lab", 3), ("flow", 2), ("still", 1)))
        pixels = (flow / 16 - 8) / np.where(calm < 100, 64, 1)
        found = np.stack([parts(g[..., 0], colour, move, still) for g, colour, move in zip(grey, lab, pixels, strict=True)])
        for name, where in SLICES.items():
            checks.append(compare(f"{tag} {name} of frame 0", found[0, ..., where], data[f"{tag}/{name}_frame0"], atol=1e-5))
            checks.append(compare(f"{tag} mean {name}", found[..., where].mean(0), data[f"{tag}/{name}_mean"], atol=1e-5))
        for power in (1, 0.5):
            whole, = vectors(found[None], power)
            for kind, values in (("appearance", whole[:APPEARANCE]), ("motion", whole[APPEARANCE:])):
                checks.append(compare(f"{tag} {kind}, power {power}", values, data[f"{tag}/{kind}_power{power}"], atol=1e-5))
    grey, lab = np.zeros((40, 40), np.uint8), np.zeros((40, 40, 3), np.uint8)
    angles = np.deg2rad(data["directions/degrees"])
    uniform_flow = [parts(grey, lab, np.full((40, 40, 2), (np.cos(a), np.sin(a))), still)[0, 0, SLICES["hof"]] for a in angles]
    return [*checks, compare("votes of directions", np.stack(uniform_flow), data["directions/hof"], atol=1e-5)]
