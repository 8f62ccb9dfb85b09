"""The top level: keys of no section, the sections, and what follows from several keys."""
from __future__ import annotations

# ruff: noqa: E501, RUF009  (a table: one key per line; `key` makes an immutable field)
import dataclasses
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Literal

from libs.core.coerce import key
from libs.core.schema.dataset import DatasetConfig, FolderModality, LoaderConfig
from libs.core.schema.distill import DistillConfig
from libs.core.schema.inference import TestConfig
from libs.core.schema.model import ModelConfig
from libs.core.schema.training import OptConfig, TrainConfig
from libs.core.schema.values import Ints, as_tuple


@dataclass(frozen=True)
class Config:
    """The whole configuration; immutable.  `source` is the YAML file that it came from (for messages)."""

    init_rand_seed: int = key(1234567891, "seed of everything random in training", low=0, high=2**63 - 1)
    fold: int | None = key(None, "(ours) number that replaces {fold} in every text of the configuration, e.g. dataset.json_file: ./data/my/fold{fold}.json", low=0)
    dataset_name: str = key("epic", "dataset preset")
    devices: tuple[str, ...] = key(("cuda:0",), "cuda:N, cpu or auto; under torchrun cuda (or cuda:0) gives every process of a machine its own GPU, a list names one per process")
    train_split: tuple[str, ...] = key(("training",), "annotation subsets to train on, lower case")
    val_split: tuple[str, ...] = key(("validation",), "annotation subset to evaluate on, lower case")
    unlabelled_split: tuple[str, ...] = key((), "(ours) subsets of further training videos whose annotations are not used (there may be none): they train on teacher outputs alone; left out without teachers")
    model_name: Literal["LocPointTransformer", "TriDet", "TemporalMaxerArchitecture"] = key("LocPointTransformer", "published program (ActionFormer, TriDet, TemporalMaxer) whose defaults hold for keys that are not set, see [below](#published-programs)")
    output_folder: str = key("./ckpt/", "where runs are written")
    dataset: DatasetConfig = key(DatasetConfig, "dataset")
    loader: LoaderConfig = key(LoaderConfig, "batches")
    model: ModelConfig = key(ModelConfig, "network")
    train_cfg: TrainConfig = key(TrainConfig, "training")
    test_cfg: TestConfig = key(TestConfig, "inference")
    opt: OptConfig = key(OptConfig, "optimisation")
    distill: DistillConfig = key(DistillConfig, "(ours) distillation")
    source: str = dataclasses.field(default="", compare=False, metadata={"doc": "", "internal": True})

    def modality_dim(self, name: str) -> int:
        """Channels of one entry of dataset.modalities."""
        entry = (self.dataset.modalities or {})[name]
        return entry.dim if isinstance(entry, FolderModality) else entry[1] - entry[0]

    @property
    def model_input_dim(self) -> Ints:
        """Channels that the model reads: dataset.input_dim, or those of its modalities."""
        if self.model.modalities is None:
            return self.dataset.input_dim
        return sum(self.modality_dim(name) for name in self.model.modalities)

    @property
    def model_channels(self) -> int:
        """Channels that the model reads, all inputs together."""
        return sum(as_tuple(self.model_input_dim))

    @property
    def stream_spans(self) -> dict[str, tuple[int, int]]:
        """Name -> (first channel, end) of each declared stream in what the model reads."""
        if self.model.modalities is None:
            return {name: m for name, m in (self.dataset.modalities or {}).items() if not isinstance(m, FolderModality)}
        ends = list(accumulate(map(self.modality_dim, self.model.modalities), initial=0))
        return dict(zip(self.model.modalities, pairwise(ends), strict=True))

    @property
    def file_channels(self) -> int:
        """Channels of dataset.feat_folder's files, all folders together."""
        return sum(as_tuple(self.dataset.input_dim))

    @property
    def backbone_input_dim(self) -> Ints:
        """Channels that the backbone sees: what the model reads, then what it hallucinates."""
        made_up = sum(self.modality_dim(name) for name in self.model.hallucinated)
        return self.model_input_dim if not made_up else self.model_channels + made_up

    @property
    def level_strides(self) -> tuple[int, ...]:
        """Strides of the FPN levels that have heads, in grid steps, fine to coarse."""
        model = self.model
        return tuple(model.scale_factor ** level for level in range(model.fpn_start_level, model.backbone_arch[2] + 1))

    @property
    def padding_counts(self) -> bool:
        """Whether statistics include padding, so that only the published length gives the published outputs (F5, F24)."""
        model = self.model
        in_neck = model.fpn_type == "identity" and model.fpn_norm == "groupnorm"
        return not model.masked_stats and (model.backbone_type == "SGP" or in_neck)

    @property
    def level_windows(self) -> tuple[int, ...]:
        """Window of backbone levels 0 .. arch[2] (stem level first): of the SGP convolutions, else of attention."""
        model = self.model
        win, levels = model.n_sgp_win_size if model.backbone_type == "SGP" else model.n_mha_win_size, model.backbone_arch[2] + 1
        return win if isinstance(win, tuple) else (win,) * levels

    def videos_per_step(self, processes: int = 1) -> int:
        """Training videos whose gradients make up one step."""
        return self.loader.batch_size * self.opt.accumulation_steps * processes

    @property
    def total_epochs(self) -> int:
        """Epochs that training runs, warm-up included."""
        total = self.opt.epochs + (self.opt.warmup_epochs if self.opt.warmup else 0)
        return min(total, self.opt.early_stop_epochs) if self.opt.early_stop_epochs else total
