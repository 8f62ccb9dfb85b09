"""The network of a configuration, new or with the weights of a checkpoint; its size is checked before memory is taken.

    model = load_network(config, checkpoint, "ema")
"""
from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Collection

import torch
from torch import Tensor

from libs.core.errors import UserError, note
from libs.core.schema import Config
from libs.datasets.features.cache import available_memory
from libs.engine.runs.checkpoint import Checkpoint, fitting_weights, own_config
from libs.modeling.blocks.sgp import dead_blocks
from libs.modeling.model import LocPointTransformer, build_model

FIRST_CONV = "backbone.embd.0."  # its weights have a column per channel of the input
SIZES = "dataset.num_classes, dataset.max_seq_len (with model.use_abs_pe) or the widths in model"


def load_network(config: Config, checkpoint: Checkpoint, which: str) -> LocPointTransformer:
    """The network with the `ema` or `raw` weights of a checkpoint; raises as `fitting_weights` and `new_network`."""
    weights = fitting_weights(_without_memory(config), checkpoint, which)
    model = new_network(config)
    model.load_state_dict(weights)
    note_dead_blocks(model, str(checkpoint.path))
    return model


def note_dead_blocks(model: LocPointTransformer, source: str) -> None:
    """One line if the convolutions of SGP blocks are zero: they learn nothing."""
    if count := dead_blocks(model):
        note(f"note: {source}: the convolutions of {count} SGP blocks are zero and stay zero in training (model.init_conv_vars: "
             "0, as in the published THUMOS14 and EPIC models); evaluation skips them; train with e.g. model.init_conv_vars: 0.1 "
             "for convolutions that learn")


def new_network(config: Config, empty_classes: Collection[int] = ()) -> LocPointTransformer:
    """`build_model`; UserError for a network that the memory cannot hold."""
    shapes = _without_memory(config)
    needed = sum(t.numel() * t.element_size() for t in itertools.chain(shapes.parameters(), shapes.buffers()))
    available = available_memory(torch.device("cpu"))
    if needed > available:
        raise UserError(f"{config.source}: its network takes {needed / 2**30:.2f} GiB, but {available / 2**30:.2f} GiB of memory "
                        f"are available; lower {SIZES}")
    return build_model(config, empty_classes)


def of_streams(checkpoint: Checkpoint, config: Config) -> Checkpoint:
    """A checkpoint whose first convolution reads all streams that `config` reads, reduced to these, for `copy_matching`.

    To it the streams that are left out count as zero.  Other checkpoints are returned as they are.
    """
    source = own_config(checkpoint)
    if source is None or any(c.model.fusion != "none" or c.model.hallucinator != "none" or isinstance(c.model_input_dim, tuple)
                             for c in (source, config)):
        return checkpoint
    spans, names = source.stream_spans, list(config.stream_spans)
    if names == list(spans) or not names or not set(names) <= spans.keys():
        return checkpoint
    columns = torch.cat([torch.arange(*spans[name]) for name in names])
    if len(columns) != config.model_channels or any(b - a != config.modality_dim(n) for n, (a, b) in spans.items() if n in names):
        return checkpoint

    def reduced(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: w.index_select(0 if "depth_conv" in name else 1, columns)
                if name.startswith(FIRST_CONV) and w.dim() == 3 and source.model_channels in w.shape[:2] else w
                for name, w in weights.items()}
    averaged = checkpoint.weights_ema
    return dataclasses.replace(checkpoint, weights=reduced(checkpoint.weights),
                               weights_ema=None if averaged is None else reduced(averaged))


def _without_memory(config: Config) -> LocPointTransformer:
    """The network on torch's meta device: shapes only."""
    try:
        with torch.device("meta"):
            return build_model(config)
    except (RuntimeError, OverflowError, TypeError) as error:  # sizes beyond 64 bits
        reason = " ".join(str(error).split())[:100]
        raise UserError(f"{config.source}: its network cannot be built ({reason}); lower {SIZES}") from error
