"""Packed features: the same samples and the same training as from separate files, and nothing wrong after a kill or damage."""
from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor

import h5py
import numpy as np
import pytest
import torch
import yaml
from helpers import TRAINING, VALIDATION, item, one_error, run_script, write_config, write_data

import tools.pack_features as script
import train
from libs.core.config import load_config
from libs.core.errors import UserError
from libs.datasets.dataset import TalDataset
from libs.datasets.features import packing
from libs.datasets.features.store import FeatureStore
from libs.datasets.loading.loader import batches, training_loader
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
    assert sorted(p.name for p in (tmp_path / "packed").iterdir()) == ["audio.h5", "features_0.h5", "features_1.h5"]
    for extra in ([], ["dataset.downsample_rate=2"], ["model.modalities=[flow]"]):
        one, other = load_config(path, extra), load_config(path, [*settings, *extra])
        assert other.dataset.modalities["audio"].folder == str(tmp_path / "packed" / "audio.h5")
        for split, training in (("training", True), ("validation", False)):
            plain, packs = TalDataset(one, split, training), TalDataset(other, split, training)
            assert [v.id for v in plain.videos] == [v.id for v in packs.videos]
            for i in range(len(plain)):
                for index in [i] if not training else [(0, i), (1, i), i]:
                    a, b = item(plain, index), item(packs, index)
                    assert torch.equal(a.feats, b.feats)
                    assert torch.equal(a.segments, b.segments)
                    assert a.grid == b.grid


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_an_open_file_survives_into_other_processes(tmp_path, data, capsys, context):
    """A data-loader worker opens the file itself: a handle that it inherits shares its position in the file with the parent."""
    path = write_config(tmp_path / "x.yaml", data)
    pack(path, tmp_path / "packed", capsys=capsys)
    store = FeatureStore(str(tmp_path / "packed" / "features.h5"), width=6)
    want = [store.read(v) for v in VALIDATION]  # opens it here
    with ProcessPoolExecutor(2, multiprocessing.get_context(context)) as pool:
        found = list(pool.map(store.read, [*VALIDATION] * 4))
    assert all(np.array_equal(a, b) for a, b in zip(want * 4, found, strict=True))
    assert np.array_equal(store.read("v1"), np.load(data.features / "v1.npy"))


def test_reading_in_data_loader_workers(tmp_path, data, capsys):
    path = write_config(tmp_path / "x.yaml", data, loader={"num_workers": 2})
    settings = pack(path, tmp_path / "packed", capsys=capsys)
    want, got = ([b.feats for b in batches(training_loader(TalDataset(c, "training", True), c)[0])]
                 for c in (load_config(path), load_config(path, settings)))
    assert len(want) == len(got) == 3
    assert all(torch.equal(a, b) for a, b in zip(want, got, strict=True))


def test_any_program_reads_the_file_also_while_it_is_read_here(tmp_path, data, capsys):
    path = write_config(tmp_path / "x.yaml", data)
    pack(path, tmp_path / "p", capsys=capsys)
    store = FeatureStore(str(tmp_path / "p" / "features.h5"))
    store.read("v1")
    command = ("import h5py, sys; f = h5py.File(sys.argv[1], 'r+')  # locks the file for itself\n"
               "assert f['v1'].chunks is None and f['v1'].dtype == '<f4', f['v1']")
    subprocess.run([sys.executable, "-c", command, str(tmp_path / "p" / "features.h5")], check=True)
    assert np.array_equal(store.read("v1", slice(3, 40, 3)), np.load(data.features / "v1.npy")[3:40:3])


def interrupted(capsys, monkeypatch, config, out, video):
    """Pack until the video is read, which is interrupted."""
    read = FeatureStore.read

    def stopping(self, name, *args, **kwargs):
        if name == video:
            raise KeyboardInterrupt
        return read(self, name, *args, **kwargs)
    with monkeypatch.context() as patch:
        patch.setattr(FeatureStore, "read", stopping)
        assert packing_run(capsys, config, out)[0] == 130


def counted(monkeypatch):
    """The videos that are read from now on."""
    read, names = FeatureStore.read, []
    monkeypatch.setattr(FeatureStore, "read", lambda self, name, *a, **k: names.append(name) or read(self, name, *a, **k))
    return names


def test_stopped_packing_goes_on(tmp_path, data, capsys, monkeypatch):
    path = write_config(tmp_path / "x.yaml", data)
    interrupted(capsys, monkeypatch, path, tmp_path / "p", "t3")
    assert [p.name for p in (tmp_path / "p").iterdir()] == [".unfinished-features.h5"]  # a reader cannot meet half a pack
    read = counted(monkeypatch)
    pack(path, tmp_path / "p", capsys=capsys)
    assert read == ["t3", "t4", "t5", "v0", "v1", "v2"]
    assert packing.verify(tmp_path / "p" / "features.h5", ["t0", "v2"]) == 9
    assert [p.name for p in (tmp_path / "p").iterdir()] == ["features.h5"]


@pytest.mark.parametrize("cut", [0, 100, 1500, 3000])
def test_what_a_kill_leaves_is_not_trusted(tmp_path, data, capsys, monkeypatch, cut):
    """Cut short, or with a flipped bit: what cannot be read or differs from its checksum is packed again."""
    path, left = write_config(tmp_path / "x.yaml", data), tmp_path / "p" / ".unfinished-features.h5"
    interrupted(capsys, monkeypatch, path, tmp_path / "p", "t3")
    content = bytearray(left.read_bytes())
    content[-cut or len(content):] = b""
    content[len(content) // 2] ^= 1
    left.write_bytes(content)
    pack(path, tmp_path / "p", capsys=capsys)
    store = FeatureStore(str(tmp_path / "p" / "features.h5"))
    for video in [*TRAINING, *VALIDATION]:
        assert np.array_equal(store.read(video), np.load(data.features / f"{video}.npy"))


def test_changed_sources_and_later_subsets(tmp_path, data, capsys, monkeypatch):
    path, out = write_config(tmp_path / "x.yaml", data), tmp_path / "p" / "features.h5"
    read = counted(monkeypatch)
    pack(path, tmp_path / "p", "--split", "validation", capsys=capsys)
    pack(path, tmp_path / "p", "--split", "Training", capsys=capsys)
    assert read == [*VALIDATION, *TRAINING]  # none twice
    assert packing.verify(out, [*VALIDATION, *TRAINING]) == 9
    before = out.stat().st_mtime_ns
    pack(path, tmp_path / "p", capsys=capsys)
    assert out.stat().st_mtime_ns == before
    np.save(data.features / "t2.npy", np.load(data.features / "t2.npy") + 1)
    pack(path, tmp_path / "p", capsys=capsys)
    assert read[9:] == ["t2"]
    for video in ("t2", "v1"):
        assert np.array_equal(FeatureStore(str(out)).read(video), np.load(data.features / f"{video}.npy"))
    code, _, err = packing_run(capsys, path, tmp_path / "p", "--split", "training", "--dtype", "float16")
    assert "holds 'v0' as float32 with 6 channels, not float16" in one_error(code, err)


def test_float16_halves_the_size_and_rounds_once(tmp_path, data, capsys):
    path = write_config(tmp_path / "x.yaml", data)
    pack(path, tmp_path / "p", "--dtype", "float16", capsys=capsys)
    feats = np.load(data.features / "v1.npy")
    store = FeatureStore(str(tmp_path / "p" / "features.h5"), width=6)
    for rows, channels in ((None, None), (slice(3, 40), None), (slice(3, 40, 3), ((4, 6), (0, 1)))):
        columns = [c for low, high in channels or ((0, 6),) for c in range(low, high)]
        want = feats.astype(np.float16).astype(np.float32)[rows or slice(None)][:, columns]
        assert np.array_equal(store.read("v1", rows, channels), want)
    feats[3, 2] = 7e4
    np.save(data.features / "v1.npy", feats)
    code, _, err = packing_run(capsys, path, tmp_path / "q", "--dtype", "float16")
    assert "v1.npy: holds 70000, beyond float16's 65504; use --dtype float32" in one_error(code, err)


def test_damage_is_found_and_repaired(tmp_path, data, capsys):
    path, out = write_config(tmp_path / "x.yaml", data), tmp_path / "p" / "features.h5"
    pack(path, tmp_path / "p", capsys=capsys)
    with h5py.File(out) as file:
        at = file["t3"].id.get_offset() + 5
    content = bytearray(out.read_bytes())
    content[at] ^= 1
    out.write_bytes(content)
    code, _, err = packing_run(capsys, path, tmp_path / "p", "--verify")
    assert "1 of 9 videos differ from their checksum (t3)" in one_error(code, err)
    pack(path, tmp_path / "p", capsys=capsys)
    assert packing.verify(out) == 9
    with pytest.raises(UserError, match=r"1 of 2 videos are not in it \(x\)"):
        packing.verify(out, ["v0", "x"])


def test_a_second_packing_at_the_same_time_is_refused(tmp_path, data, capsys):
    path, left = write_config(tmp_path / "x.yaml", data), tmp_path / "p" / ".unfinished-features.h5"
    (tmp_path / "p").mkdir()
    command = "import h5py, sys; f = h5py.File(sys.argv[1], 'w'); print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", command, str(left)], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        code, _, err = packing_run(capsys, path, tmp_path / "p")
        other.communicate(b"\n")
    assert "another command is packing into it" in one_error(code, err)


def test_folders_of_an_older_version_say_what_to_do(tmp_path):
    (tmp_path / "index.json").write_text('{"format": "packed features 1", "complete": true}')
    with pytest.raises(UserError, match=r"index\.json: packed by an older version; pack again with tools/pack_features\.py.*"
                                        r"dataset\.feat_folder to the \.h5 file"):
        FeatureStore(str(tmp_path))
    (tmp_path / "index.json").write_text('{"videos": 3}')  # of somebody else
    np.save(tmp_path / "v.npy", np.zeros((3, 2), np.float32))
    assert FeatureStore(str(tmp_path)).length("v") == 3


def test_bad_input_of_the_script(tmp_path, data, capsys):
    path = write_config(tmp_path / "x.yaml", data)

    def refused(*arguments):
        return one_error(*run_script(capsys, script.main, "pack_features.py", *arguments)[::2])
    out = ("--out", str(tmp_path / "p"))
    assert "has no video of subset 'trainin' (did you mean 'training'?)" in refused(str(path), *out, "--split", "trainin")
    assert "--streams flow: " in refused(str(path), *out, "--streams", "flow")
    assert "p/features.h5: no such packed file" in refused(str(path), *out, "--verify")
    (tmp_path / "p").mkdir()
    for content in (b"keep me", None):  # None: an .h5 file of somebody else
        if content is None:
            with h5py.File(tmp_path / "p" / "features.h5", "w") as file:
                file["t0"] = np.zeros((3, 6))
        else:
            (tmp_path / "p" / "features.h5").write_bytes(content)
        before = (tmp_path / "p" / "features.h5").read_bytes()
        assert "p/features.h5: exists and is no packed file" in refused(str(path), *out)
        assert (tmp_path / "p" / "features.h5").read_bytes() == before
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
    assert section == {"dataset": {"feat_folder": str(tmp_path / "p" / "features.h5")}}
