"""Relations between keys: impossible combinations name the key and the remedy, unusual ones load."""
from __future__ import annotations

from pathlib import Path

import pytest
from config_files import message, small

from libs.core.config import from_dict, load_config, to_dict, with_overrides
from libs.core.errors import UserError
from libs.core.relations.checks import check_trainable
from libs.core.relations.network import max_div_factor
from libs.core.schema import Config


@pytest.mark.parametrize(("overrides", "parts"), [
    (["dataset.json_file="], ["dataset.json_file", "expected text"]),
    (["dataset.json_file=''"], ["dataset.json_file", "is not set"]),
    (["dataset.feat_folder=[]"], ["dataset.feat_folder", "is not set"]),
    (["dataset.feat_folder=[a/rgb, a/flow, ./a/rgb]"], ["dataset.feat_folder", "./a/rgb twice", "name it once"]),
    (["output_folder=''"], ["output_folder", "is empty"]),
    (["val_split=[]"], ["val_split", "names no subset"]),
    (["devices=[]"], ["devices", "is empty"]),
    (["devices=gpu"], ["'gpu' is not a device", "cuda:N"]),
    (["devices=[cuda:0,cpu]"], ["'cpu' in a list of several", "one GPU per process"]),
    (["devices=[cuda:1,cuda:01]"], ["names a GPU twice"]),
    (["opt.lr_scaling=sqrt"], ["opt.lr_reference_batch", "lr_scaling is sqrt", "e.g. 8"]),
    (["model.n_mha_win_size=18"], ["18 is even", "use 17 or 19"]),
    (["model.n_mha_win_size=2"], ["use 1 or 3"]),
    (["model.n_mha_win_size=[19,19,19,19,19]"], ["has 5 windows", "6 levels"]),
    (["model.n_mha_win_size=[19,19,19,19,19,8]"], ["use 7 or 9"]),
    (["dataset.max_seq_len=2300"], ["2300 is not a multiple", "stride 32", "2272 or 2304"]),
    (["dataset.max_seq_len=20"], ["use 32"]),
    (["model.backbone_arch=[2,2,6]"], ["model.regression_range", "has 6 ranges", "7 levels"]),
    (["model.fpn_start_level=1"], ["has 6 ranges", "5 levels"]),
    (["model.fpn_start_level=6"], ["leaves no level"]),
    (["model.regression_range=[[0,4],[8,4],[1,2],[1,2],[1,2],[1,2]]"], ["[8, 4] is empty"]),
    (["model.n_head=5"], ["5 heads do not divide the width 512", "use 4"]),
    (["model.fpn_dim=256"], ["256 differs from the backbone's width 512", "fpn_dim: 512", "fpn_type: fpn"]),
    (["model.embd_dim=[256,256]"], ["[256, 256] does not fit", "2304"]),
    (["dataset.input_dim=[1024,1280]"], ["512 does not fit"]),
    (["dataset.input_dim=[1024,1280]", "model.embd_dim=[256,128,128]"], ["a list of the same length"]),
    (["model.backbone_arch=[0,2,5]"], ["0 embedding convs"]),
    (["model.embd_kernel_size=4"], ["model.embd_kernel_size", "use 3 or 5"]),
    (["model.head_kernel_size=2"], ["model.head_kernel_size", "use 1 or 3"]),
    (["model.use_rel_pe=true"], ["model.use_rel_pe", "every window"]),
    (["dataset.crop_ratio=[1.0,0.9]"], ["write [0.9, 1.0]"]),
    (["dataset.tiou_thresholds=[0.5,0.3]"], ["strictly ascending"]),
    (["train_cfg.head_empty_cls=[3,97]"], ["97 is not a class", "0 to 96"]),
    (["opt.schedule_type=multistep"], ["opt.schedule_steps", "strictly ascending"]),
    (["model.backbone_type=SGP"], ["model.sgp_mlp_dim", "is not set", "e.g. 768"]),
    (["model.backbone_type=SGP", "model.n_sgp_win_size=-1"], ["model.n_sgp_win_size", "-1", "1"]),
    (["model.backbone_type=SGP", "model.n_sgp_win_size=4"], ["model.n_sgp_win_size", "use 3 or 5"]),
    (["model.backbone_type=SGP", "model.sgp_mlp_dim=9", "model.n_sgp_win_size=[3,3]"], ["model.n_sgp_win_size", "has 2 windows"]),
    (["model.backbone_type=SGP", "model.sgp_mlp_dim=9", "model.embd_dim=500", "model.fpn_dim=500"],
     ["model.embd_dim", "use 496"]),
    (["model.backbone_type=SGP", "model.sgp_mlp_dim=9", "model.scale_factor=3", "dataset.max_seq_len=2430"],
     ["model.scale_factor", "3 is odd", "use 2 or 4", "downsample_type: avg"]),
    (["model.backbone_type=SGP", "model.sgp_mlp_dim=9", "loader.bucket=4"],
     ["loader.bucket", "statistics over padding", "bucket: 0, or model.masked_stats: true"]),
    (["model.num_bins=8"], ["model.num_bins", "8 belongs to the trident head", "use_trident_head: true"]),
    (["model.trident_border=valid"], ["model.trident_border", "valid belongs to the trident head"]),
    (["model.use_trident_head=true", "model.offset_bias=1"], ["model.offset_bias", "bins", "set it to 0"]),
    (["model.boudary_kernel_size=5"], ["model.boudary_kernel_size", "use_trident_head: true"]),
    (["model.use_trident_head=true", "model.boudary_kernel_size=4"], ["model.boudary_kernel_size", "use 3 or 5"]),
    (["model.iou_weight_power=0.2"], ["model.iou_weight_power", "use_trident_head: true"]),
    (["train_cfg.cuda_graphs=true", "model.input_noise=0.1"], ["train_cfg.cuda_graphs", "model.input_noise"]),
    (["train_cfg.cuda_graphs=true", "model.use_trident_head=true"], ["train_cfg.cuda_graphs", "model.use_trident_head"]),
    (["opt.eta_min=0.01"], ["opt.eta_min", "not below opt.learning_rate", "e.g. 1e-05"]),
    (["opt.epochs=0", "opt.warmup=false"], ["nothing would be trained"]),
])
def test_impossible_combinations(tmp_path: Path, overrides: list[str], parts: list[str]) -> None:
    got = message(small(tmp_path), *overrides)
    for part in parts:
        assert part in got, got


@pytest.mark.parametrize("overrides", [
    ["dataset.max_seq_len=2272", "model.n_mha_win_size=19"],  # not a multiple of 576: no need of ours
    ["model.backbone_type=conv", "model.n_head=7", "model.use_rel_pe=true"],  # the conv backbone has no attention
    ["model.use_rel_pe=true", "model.n_mha_win_size=[7,7,7,7,7,-1]"],
    ["model.fpn_type=fpn", "model.fpn_dim=64"],
    ["dataset.input_dim=[1024,1280]", "model.embd_dim=[256,256]"],
    ["dataset.crop_ratio=[0.5,0.5]"],
    ["opt.epochs=0"],  # warm-up alone
    ["model.backbone_arch=[0,2,5]", "dataset.input_dim=512"],
    ["devices=cuda"], ["devices=cuda:11"],
    ["model.fpn_start_level=2", "model.regression_range=[[0,4],[2,8],[4,16],[8,10000]]"],
])
def test_unusual_but_possible_combinations(tmp_path: Path, overrides: list[str]) -> None:
    assert isinstance(load_config(small(tmp_path), overrides), Config)


@pytest.mark.parametrize("weight", ["0", "-1"])
def test_accumulation_with_the_automatic_loss_weight_is_refused_for_training_alone(tmp_path: Path, weight: str) -> None:
    path, both = small(tmp_path), [f"train_cfg.loss_weight={weight}", "opt.accumulation_steps=2"]
    for part in (str(path), "opt.accumulation_steps (from --set opt.accumulation_steps=2): 2", f"train_cfg.loss_weight: {weight}",
                 "a positive number", "opt.accumulation_steps: 1"):
        assert part in message(path, *both)
    trained_before = with_overrides(load_config(path, both[:1]), both[1:])  # as of a checkpoint that predicts
    assert from_dict(to_dict(trained_before)) == trained_before
    with pytest.raises(UserError, match=r"opt\.accumulation_steps"):
        check_trainable(trained_before)
    assert load_config(path, ["opt.accumulation_steps=2"]).opt.accumulation_steps == 2


def test_max_div_factor_is_the_least_common_multiple(tmp_path: Path) -> None:
    def factor(*overrides: str) -> int:
        return max_div_factor(load_config(small(tmp_path), overrides))

    assert factor("model.n_mha_win_size=19") == 576  # thumos, as published
    assert factor("model.n_mha_win_size=9") == 256  # epic
    assert factor("model.n_mha_win_size=[7,7,7,7,7,-1]") == 96  # anet
    assert factor("model.n_mha_win_size=[11,11,11,11,-1,-1]") == 160  # the maximum would be 80
    assert factor() == 32
