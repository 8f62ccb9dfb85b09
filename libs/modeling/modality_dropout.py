"""Whole streams set to zero: at random in training, chosen ones in evaluation."""
from __future__ import annotations

import torch
from torch import Tensor, nn

from libs.core.schema import Config


class ModalityDropout(nn.Module):
    """Streams of features (B, T, C) set to zero, so that one network works with all streams and with some.

    In training: with probability train_cfg.modality_dropout a video loses some of its streams, any choice but none and all being
    equally likely, drawn on the CPU (ModDrop, Neverova et al. 2016).  In evaluation: test_cfg.drop_modalities.
    """

    def __init__(self, config: Config):
        super().__init__()
        spans = config.stream_spans
        self.probability, self.streams = config.train_cfg.modality_dropout, len(spans)
        self.in_test = [spans[name] for name in config.test_cfg.drop_modalities]
        number_C = torch.full((config.model_channels,), self.streams)  # channels of no stream stay
        for i, (start, end) in enumerate(spans.values()):
            number_C[start:end] = i
        self.number_C: Tensor
        self.register_buffer("number_C", number_C, persistent=False)

    def forward(self, feats_BTC: Tensor) -> Tensor:
        if not self.training:
            kept_C = torch.ones_like(self.number_C, dtype=torch.bool)
            for start, end in self.in_test:
                kept_C[start:end] = False
            return torch.where(kept_C, feats_BTC, 0.0) if self.in_test else feats_BTC
        if self.probability == 0:
            return feats_BTC
        B = len(feats_BTC)
        chosen_B = torch.randint(1, 2 ** self.streams - 1, (B,))  # bit i: stream i is lost
        chosen_B = torch.where(torch.rand(B) < self.probability, chosen_B, 0).to(feats_BTC.device)
        lost_BC = chosen_B.unsqueeze(1) >> self.number_C & 1
        return torch.where(lost_BC.unsqueeze(1) > 0, 0.0, feats_BTC)
