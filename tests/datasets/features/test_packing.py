"""Packed features: the same samples and the same training as from separate files, and nothing wrong after a kill or damage."""
from __future__ import annotations

import json
import os

import h5py
import numpy as np
import pytest
import torch
import yaml
from helpers import VALIDATION, item, one_error, run_script, write_config, write_data

import tools.pack_features as script
import train
from libs.core.config import load_config
from libs.core.errors import UserError
from libs.datasets.dataset import TalDataset
from libs.datasets.features import packed, packing
from libs.datasets.features.store import FeatureStore
from libs.datasets.loader import batches, training_loader
from libs.engine.runs.checkpoint import load_checkpoint


@pytest.fixture
def data(tmp_path):
    return write_data(tmp_path / "data")


def several_streams(data, folder):
    """Two joined folders and audio windows of their own length; the sections of a configuration that reads all."""
    rng = np.random.default_rng(1)
    for name in ("extra", "audio"):
        (folder / name).mkdir()
    for path in data.features.glob("*.npy"):
        steps = len(np.load(path))
        np.save(folder / "extra" / path.name, rng.standard_normal((steps, 2)))  # float64
        np.save(folder / "audio" / f"a_{path.name}", rng.standard_normal((steps // 2 + 1, 3)).astype(np.float32))
    audio = {"folder": str(folder / "audio"), "dim": 3, "resample": "linear", "file_prefix": "a_"}
    dataset = {"feat_folder": [str(data.features), str(folder / "extra")], "input_dim": 8,
               "modalities": {"rgb": [0, 4], "flow": [4, 8], "audio": audio}}
    return {"dataset": dataset, "model": {"modalities": ["audio", "flow", "rgb"]}}


def packing_run(capsys, config, out, *more):
    """Exit code, stdout and stderr of the script."""
    return run_script(capsys, script.main, "pack_features.py", str(config), "--out", str(out), *more)


def pack(config, out, *more, capsys):
    """Run the script; the --set arguments that it prints."""
    code, printed, err = packing_run(capsys, config, out, *more)
    assert code == 0, err
    return [part.strip(" '") for part in printed.splitlines()[-1].split("--set ")[1:]]


def test_samples_of_every_stream_are_bit_identical(tmp_path, data, capsys):
    path = write_config(tmp_path / "x.yaml", data, **several_streams(data, tmp_path))
    settings = pack(path, tmp_path / "packed", capsys=capsys)
    assert sorted(p.name for p in (tmp_path / "packed").iterdir()) == ["audio", "features_0", "features_1"]
    for extra in ([], ["dataset.downsample_rate=2"], ["model.modalities=[flow]"]):
        one, other = load_config(path, extra), load_config(path, [*settings, *extra])
        assert other.dataset.modalities["audio"].folder == str(tmp_path / "packed" / "audio")
        for split, training in (("training", True), ("validation", False)):
            plain, packs = TalDataset(one, split, training), TalDataset(other, split, training)
            assert [v.id for v in plain.videos] == [v.id for v in packs.videos]
            for i in range(len(plain)):
                for index in [i] if not training else [(0, i), (1, i), i]:
                    a, b = item(plain, index), item(packs, index)
                    assert torch.equal(a.feats, b.feats)
                    assert torch.equal(a.segments, b.segments)
                    assert a.grid == b.grid


def test_training_is_bit_identical(tmp_path, data, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write_config(tmp_path / "x.yaml", data, opt={"epochs": 1, "warmup_epochs": 1}, loader={"num_workers": 2})
    settings = pack(path, tmp_path / "packed", capsys=capsys)
    for name, chosen in (("plain", []), ("packed", settings)):
        arguments = [part for setting in chosen for part in ("--set", setting)]
        code, _, err = run_script(capsys, train.main, "train.py", str(path), "--output", name, *arguments)
        assert code == 0, err
    one, other = (load_checkpoint(tmp_path / "ckpt" / f"x_{name}" / "epoch_002.pth.tar") for name in ("plain", "packed"))
    assert one.weights.keys() == other.weights.keys()
    assert all(torch.equal(value, other.weights[name]) for name, value in one.weights.items())
    assert all(torch.equal(value, other.weights_ema[name]) for name, value in one.weights_ema.items())


def test_reading_in_several_processes(tmp_path, data, capsys):
    path = write_config(tmp_path / "x.yaml", data, loader={"num_workers": 2})
    settings = pack(path, tmp_path / "packed", "--shard-gb", "1e-6", capsys=capsys)
    want, got = ([b.feats for b in batches(training_loader(TalDataset(c, "training", True), c)[0])]
                 for c in (load_config(path), load_config(path, settings)))
    assert len(want) == len(got) == 3
    assert all(torch.equal(a, b) for a, b in zip(want, got, strict=True))


def test_index_answers_without_opening_a_shard(tmp_path, data, capsys, monkeypatch):
    path = write_config(tmp_path / "x.yaml", data)
    pack(path, tmp_path / "packed", capsys=capsys)
    opened = []
    real = packed.open_shard
    monkeypatch.setattr(packed, "open_shard", lambda index, number: opened.append(number) or real(index, number))
    store = FeatureStore(str(tmp_path / "packed" / "features"), width=6)
    assert [store.length(v) for v in VALIDATION] == [len(np.load(data.features / f"{v}.npy")) for v in VALIDATION]
    assert not store.exists("t9")
    assert opened == []
    for video in ("v0", "v1", "v0"):
        store.read(video, slice(1, 3))
    assert opened == [1]  # one file for all videos of the subset
    with h5py.File(tmp_path / "packed" / "features" / "validation-00000.h5") as file:  # any other program reads it too
        assert np.array_equal(file["v1"][...], np.load(data.features / "v1.npy"))
        assert file["v1"].chunks is None


def test_stopped_packing_goes_on_and_ends_in_the_same_bytes(tmp_path, data, capsys, monkeypatch):
    path = write_config(tmp_path / "x.yaml", data)
    pack(path, tmp_path / "whole", "--shard-gb", "1e-6", capsys=capsys)
    read, count = FeatureStore.read, []

    def stopping(self, video, *args, **kwargs):
        count.append(video)
        if len(count) == 4:
            raise KeyboardInterrupt
        return read(self, video, *args, **kwargs)
    monkeypatch.setattr(FeatureStore, "read", stopping)
    code, _, _ = packing_run(capsys, path, tmp_path / "b", "--shard-gb", "1e-6")
    assert code == 130
    folder = tmp_path / "b" / "features"
    with pytest.raises(UserError, match=r"b/features/index.json: packing was not finished; run tools/pack_features.py again"):
        FeatureStore(str(folder))
    (folder / ".unfinished-training-00003.h5").write_bytes(b"a kill in the middle of writing leaves this")
    done = {p.name: p.stat().st_mtime_ns for p in folder.glob("training*.h5")}
    assert len(done) == 3
    count += [""] * 5
    pack(path, tmp_path / "b", "--shard-gb", "1e-6", capsys=capsys)
    assert {name: (folder / name).stat().st_mtime_ns for name in done} == done
    assert (folder / "index.json").read_bytes() == (tmp_path / "whole" / "features" / "index.json").read_bytes()
    assert not list(folder.glob(".unfinished*"))
    assert count[9:] == count[3:4] + ["t4", "t5", "v0", "v1", "v2"]  # nothing finished is read again


def test_changed_sources_and_later_subsets(tmp_path, data, capsys):
    path, out = write_config(tmp_path / "x.yaml", data), tmp_path / "p" / "features"
    pack(path, tmp_path / "p", "--split", "validation", capsys=capsys)
    before = (out / "validation-00000.h5").stat().st_mtime_ns
    pack(path, tmp_path / "p", "--split", "Training", "--shard-gb", "2e-6", capsys=capsys)
    assert (out / "validation-00000.h5").stat().st_mtime_ns == before
    assert len(packed.read_index(out).videos) == 9
    shards = len(list(out.glob("*.h5")))
    np.save(data.features / "t2.npy", np.load(data.features / "t2.npy") + 1)
    pack(path, tmp_path / "p", capsys=capsys)
    assert len(list(out.glob("*.h5"))) == 2 < shards  # the small files of before are gone
    for video in ("t2", "v1"):
        assert np.array_equal(FeatureStore(str(out)).read(video), np.load(data.features / f"{video}.npy"))
    code, _, err = packing_run(capsys, path, tmp_path / "p", "--split", "training", "--dtype", "float16")
    assert "holds subset 'validation' as float32 with 6 channels, not float16" in one_error(code, err)


def test_float16_halves_the_size_and_rounds_once(tmp_path, data, capsys):
    path = write_config(tmp_path / "x.yaml", data)
    pack(path, tmp_path / "p", "--dtype", "float16", capsys=capsys)
    feats = np.load(data.features / "v1.npy")
    store = FeatureStore(str(tmp_path / "p" / "features"), width=6)
    for rows, channels in ((None, None), (slice(3, 40, 3), ((4, 6), (0, 1)))):
        columns = [c for low, high in channels or ((0, 6),) for c in range(low, high)]
        want = feats.astype(np.float16).astype(np.float32)[rows or slice(None)][:, columns]
        assert np.array_equal(store.read("v1", rows, channels), want)
    feats[3, 2] = 7e4
    np.save(data.features / "v1.npy", feats)
    code, _, err = packing_run(capsys, path, tmp_path / "q", "--dtype", "float16")
    assert "v1.npy: holds 70000, beyond float16's 65504; use --dtype float32" in one_error(code, err)


def test_blocks_of_long_videos_are_joined(tmp_path, data, capsys, monkeypatch):
    path = write_config(tmp_path / "x.yaml", data)
    pack(path, tmp_path / "p", capsys=capsys)
    monkeypatch.setattr(packed, "BLOCK_BYTES", 6 * 4 * 5)
    feats, store = np.load(data.features / "t3.npy"), FeatureStore(str(tmp_path / "p" / "features"))
    for step in (1, 2, 3, 7):
        assert np.array_equal(store.read("t3", slice(2, 69, step), ((1, 3),)), feats[2:69:step, 1:3])


def damage(folder, change):
    document = json.loads((folder / "index.json").read_text())
    change(document)
    (folder / "index.json").write_text(json.dumps(document))


@pytest.mark.parametrize(("change", "message"), [
    (lambda d: d.update(format="packed features 9"), "its format is 'packed features 9', this program reads 'packed features 1'"),
    (lambda d: d.pop("shards"), "'shards' is missing"),
    (lambda d: d.update(dtype="complex64"), "no features of type 'complex64' and 6 channels can be read"),
    (lambda d: d.update(channels=10**12), "no features of type 'float32' and 1000000000000 channels"),
    (lambda d: d["shards"][0].update(file="../a.h5"), "'../a.h5' is not the name of a file beside it"),
    (lambda d: d["videos"].update(t0=[0, 10**15, 40, "x"]), "video 't0' lies outside its file"),
    (lambda d: d["videos"].update(t0=[7, 512, 40, "x"]), "video 't0' lies outside its file"),
    (lambda d: d["videos"].update(t0=[0, 512, 10**12, "x"]), "video 't0' lies outside its file"),
    (lambda d: d["videos"].update(t0=[0, True, 1, "x"]), "'True' stands where int belongs"),
    (lambda d: d["videos"].update(t0=3), "is not a whole index"),
])
def test_damaged_index(tmp_path, data, capsys, change, message):
    pack(write_config(tmp_path / "x.yaml", data), tmp_path / "p", capsys=capsys)
    damage(tmp_path / "p" / "features", change)
    with pytest.raises(UserError) as error:
        FeatureStore(str(tmp_path / "p" / "features")).read("t0")
    assert message in str(error.value)
    assert "p/features/index.json" in str(error.value)


def test_damaged_and_exchanged_shards(tmp_path, data, capsys):
    path = write_config(tmp_path / "x.yaml", data)
    folder = tmp_path / "p" / "features"
    pack(path, tmp_path / "p", capsys=capsys)
    shard, index = folder / "training-00000.h5", packed.read_index(folder)
    good = shard.read_bytes()
    assert packing.verify(folder, ["t0", "v2"]) == 9
    at = index.videos["t3"].offset + 5
    shard.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1:])
    code, _, err = packing_run(capsys, path, tmp_path / "p", "--verify")
    assert "1 of 9 videos differ from their checksum (t3 in training-00000.h5)" in one_error(code, err)
    pack(path, tmp_path / "p", capsys=capsys)  # a repeated packing finds the damage and repairs it
    assert shard.read_bytes() == good
    for content, message in ((good[:-9], f"has {len(good) - 9} bytes instead of {len(good)}"),
                             (packed.mark_block("0" * 32) + good[512:], "is of another packing"), (None, "No such file")):
        shard.write_bytes(content) if content is not None else shard.unlink()
        with pytest.raises(UserError, match=message):
            FeatureStore(str(folder)).read("t0")
    with pytest.raises(UserError, match=r"1 of 2 videos are not in it \(x\)"):
        packing.verify(folder, ["v0", "x"])


def test_bad_input_of_the_script(tmp_path, data, capsys):
    path = write_config(tmp_path / "x.yaml", data)

    def refused(*arguments):
        return one_error(*run_script(capsys, script.main, "pack_features.py", *arguments)[::2])
    out = ("--out", str(tmp_path / "p"))
    assert "--shard-gb nan: must be a number above 0" in refused(str(path), *out, "--shard-gb", "nan")
    assert "has no video of subset 'trainin' (did you mean 'training'?)" in refused(str(path), *out, "--split", "trainin")
    assert "--streams flow: " in refused(str(path), *out, "--streams", "flow")
    assert "p/features/index.json: no such index" in refused(str(path), *out, "--verify")
    (tmp_path / "p" / "features").mkdir(parents=True)
    (tmp_path / "p" / "features" / "mine.txt").write_text("keep me")
    assert "p/features: exists and is no packed folder; choose another --out" in refused(str(path), *out)
    assert (tmp_path / "p" / "features" / "mine.txt").exists()
    os.remove(data.features / "v1.npy")
    wanted = "dataset.feat_folder: 1 of 3 videos of subset validation have no features: "
    assert wanted in refused(str(path), "--out", str(tmp_path / "q"))
    code, _, err = packing_run(capsys, path, tmp_path / "q", "--set", "dataset.missing=skip")
    assert (code, wanted in err) == (0, True)
    np.save(data.features / "v1.npy", np.full((52, 6), np.nan, np.float32))
    assert "v1.npy: 312 of 312 values read are NaN or infinite" in refused(str(path), "--out", str(tmp_path / "r"))
    np.save(data.features / "v1.npy", np.zeros((52, 5), np.float32))
    assert "has 5 channels, but" in refused(str(path), "--out", str(tmp_path / "s"))


def test_printed_lines_are_a_configuration(tmp_path, data, capsys):
    path = write_config(tmp_path / "x.yaml", data)
    _, printed, _ = packing_run(capsys, path, tmp_path / "p")
    lines = printed.splitlines()
    section = yaml.safe_load("\n".join(lines[lines.index("dataset:"):lines.index("or on the command line:")]))
    assert section == {"dataset": {"feat_folder": str(tmp_path / "p" / "features")}}
