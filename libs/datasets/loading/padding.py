"""The padded length of a batch: `Padding` computes it from the lengths of its videos.

In the published network, padding leaks into the outputs at a video's last points (SPEC items 12 and 15), so the padded length
changes them.  `Padding` gives the shortest length whose valid outputs equal those at the published length.
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from libs.core.relations.distillation import TERMS
from libs.core.relations.network import max_div_factor
from libs.core.schema import Config

BF16_MULTIPLE = 256  # of evaluation: bf16 kernels are built per length, which takes longer than the padding


@dataclass(frozen=True)
class Padding:
    """Padding rule of a network; all lengths in grid steps.

    max_seq_len, factor: published lengths are max_seq_len, and beyond it multiples of `factor`; stride: of the coarsest level;
    margin: padded steps that give the last points of a video, at every level, the outputs of the published length;
    stretched_positions: position embeddings are interpolated to the length; always: pad to the published length; alike: pad all
    parts of a batch to one length, since losses include padding; multiple: pad further, to a multiple of this, where that does
    not change the outputs.
    """

    max_seq_len: int
    factor: int
    stride: int
    margin: int
    stretched_positions: bool = False
    always: bool = False
    alike: bool = False
    multiple: int = 1

    def published(self, length: int) -> int:
        """The length to which the published program pads a video of `length` steps."""
        return self.max_seq_len if length <= self.max_seq_len else _round_up(length, self.factor)

    def exact_only(self, length: int) -> bool:
        """Whether only the published length gives the published outputs: no room for the margin, or stretched positions."""
        stretched = self.stretched_positions and length > self.max_seq_len
        return self.always or stretched or self.published(length) - length < self.margin

    def shortest(self, length: int) -> int:
        """The shortest padded length with the outputs of the published one."""
        if self.exact_only(length):
            return self.published(length)
        return min(self.published(length), _round_up(length + self.margin, self.stride))

    def allows(self, length: int, padded: int) -> bool:
        """Whether a video of `length` steps has the published outputs in a batch of `padded` steps (at least `shortest`)."""
        if self.exact_only(length):
            return padded == self.published(length)
        return padded <= self.max_seq_len or not self.stretched_positions  # beyond, its position embeddings would be interpolated

    def fits(self, lengths: Sequence[int]) -> bool:
        """Whether videos of these lengths may share a batch: one padded length gives each its published outputs."""
        padded = max(self.shortest(n) for n in lengths)
        return all(self.allows(n, padded) for n in lengths)

    def of_batch(self, lengths: Sequence[int]) -> int:
        """The padded length of a batch; ValueError if the videos need different ones (see `fits`)."""
        padded = max(self.shortest(n) for n in lengths)
        wider = _round_up(padded, math.lcm(self.multiple, self.stride))
        if padded <= self.max_seq_len < wider:
            wider = self.max_seq_len
        if all(self.allows(n, wider) for n in lengths):
            return wider
        for n in lengths:
            if not self.allows(n, padded):
                raise ValueError(f"a video of {n} steps needs {self.published(n)}, not {padded}: batch it apart")
        return padded


def padding_of(config: Config, training: bool = False) -> Padding:
    """The padding rule of a configuration (SPEC section 11, rows 12 and 13; section 12 for the losses of preset c2ms)."""
    model, distill = config.model, config.distill
    coarsest = config.level_strides[-1]
    half_kernel = max(model.embd_kernel_size, model.head_kernel_size, model.boudary_kernel_size, 3) // 2
    # padding leaks through the published hallucinator's two convolutions, and through its time gate without limit
    margin = max(half_kernel * coarsest, 2 + half_kernel if model.hallucinator == "rgb2flow" else 0)
    unmasked = bool(distill.teachers) and distill.preset == "c2ms"
    longest = training and (config.loader.padding == "max_seq_len" or unmasked)
    always = longest or config.padding_counts or model.temporal_gate == "published"
    alike = bool(distill.teachers) and any(getattr(distill, term).mask is False for term in TERMS)
    multiple = config.loader.pad_multiple if training else BF16_MULTIPLE if config.test_cfg.precision == "bf16" else 1
    return Padding(config.dataset.max_seq_len, max_div_factor(config), coarsest, margin,
                   model.use_abs_pe and model.backbone_type in ("convTransformer", "SGP"), always, alike, multiple)


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
