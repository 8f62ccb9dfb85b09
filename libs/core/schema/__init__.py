"""All configuration keys: type, default and one-line meaning.  Defaults are the published ones.

One file per group of sections.  `libs.core.config` reads YAML into these frozen dataclasses; `libs.core.relations` checks
relations between keys.  Keys marked "(ours)" do not exist in the published configuration; their defaults keep the published
behaviour unless noted otherwise.
"""
from libs.core.schema.config import Config
from libs.core.schema.dataset import FPS_LIMITS, MOST_FRAMES, DatasetConfig, ExtractorConfig, FolderModality
from libs.core.schema.distill import PART, ClsTerm, DistillConfig, FeatureTerm, OffsetTerm, TeacherConfig
from libs.core.schema.inference import TestConfig
from libs.core.schema.model import AssignerConfig, ModelConfig
from libs.core.schema.training import OptConfig, TrainConfig
from libs.core.schema.values import PRECISIONS, as_tuple

__all__ = [
    "FPS_LIMITS", "MOST_FRAMES", "PART", "PRECISIONS", "AssignerConfig", "ClsTerm", "Config", "DatasetConfig", "DistillConfig",
    "ExtractorConfig", "FeatureTerm", "FolderModality", "ModelConfig", "OffsetTerm", "OptConfig", "TeacherConfig", "TestConfig",
    "TrainConfig", "as_tuple",
]
