"""Files made to do harm: each is refused with one error, or repaired as docs/hostile_files.md says, in little memory and time."""
from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import struct
import tarfile
import zipfile

import h5py
import numpy as np
import pytest
import torch
from helpers import data_config, tiny_config, write_data

from libs.core.config import load_config
from libs.core.errors import UserError, shown
from libs.core.files import read_text
from libs.datasets.annotations import MAX_SEGMENTS, load_annotations, without_duplicates
from libs.datasets.dataset import TalDataset
from libs.datasets.features.store import FeatureStore
from libs.engine.runs.checkpoint import load_checkpoint
from libs.modeling.losses import targets
from libs.utils.evaluation import predictions
from libs.utils.evaluation.predictions import read_predictions
from libs.utils.evaluation.score_fusion import load_external_scores
from libs.utils.files import archives
from libs.utils.files.io import parse_json, read_json
from libs.utils.files.untrusted_pickle import load_plain_pickle, read_plain_npy


def refused(call, *args, message=""):
    """The one error of a call, which must contain `message` and be short."""
    with pytest.raises(UserError) as error:
        call(*args)
    text = str(error.value)
    assert message in text
    assert len(text) < 2000
    return text


@pytest.mark.parametrize(("text", "message"), [
    ("[" * 100_000, "nested too deeply"), ('{"a": ' * 100_000, "nested too deeply"), ("9" * 5000, "Exceeds the limit"),
    ('{"a": 1, "b": {"c": 1, "d": 2, "c": 3}}', "an object has the key 'c' twice"), ('["\\ud800"]', "half of a surrogate pair"),
    ('{"\\uDFFF": 1}', "half of a surrogate pair"), ("", "Expecting value"), ("\0", "Expecting value")])
def test_json_bombs(text, message):
    refused(parse_json, text, "a.json", "list", message=message)


def test_json_that_is_fine():
    assert parse_json('{"a": {"c": 1}, "b": {"c": 1}, "\\ud83d\\ude00": "\\u00e4"}', "a.json", "list") == {
        "a": {"c": 1}, "b": {"c": 1}, "\U0001f600": "ä"}


def test_text_files(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(path, "list") == {"a": 1}
    path.write_text('{"a": 1}', encoding="utf-16")
    refused(read_json, path, "list", message="a.json: is not a text file")
    refused(read_text, tmp_path, "list", message="is a folder, not a list")
    refused(read_text, "/dev/zero", "list", message="/dev/zero: is a device, pipe or socket")
    os.mkfifo(tmp_path / "pipe")
    for call in (read_text, read_plain_npy):
        refused(call, tmp_path / "pipe", "list", message="is a device, pipe or socket; expected a list, as an ordinary file")
    os.symlink(tmp_path / "loop", tmp_path / "loop")
    refused(read_text, tmp_path / "loop", "list", message="loop: cannot be read (Too many levels of symbolic links)")
    refused(load_config, tmp_path / "loop", message="Too many levels of symbolic links")
    refused(read_text, f"{tmp_path}/a\0b", "list", message="embedded null byte")


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))


@pytest.mark.parametrize(("text", "message"), [
    (BOMB, "more than 20000 values"), ("opt: " + "[" * 5000, "nested too deeply"), ("opt: &a {epochs: *a}", "an alias inside"),
    ("x" * 2_000_000, "not a configuration (2000000 characters)"),
    ("a: &a {b: 1}\n<<: [" + "*a, " * 30_000 + "*a]", "20000 values"),
    ("opt: !!python/object/apply:os.system [echo]", "could not determine a constructor"),
    ("opt: {epochs: " + "9" * 5000 + "}", "Exceeds the limit"), (f"dataset: {{{'k' * 1000}: 1}}", "unknown key")])
def test_yaml_bombs(tmp_path, text, message):
    (tmp_path / "c.yaml").write_text(text)
    refused(load_config, tmp_path / "c.yaml", message=message)


@pytest.mark.parametrize(("model", "message"), [
    ({"embd_dim": 10**12}, "model.embd_dim: 1000000000000: 1000000000000 is too large; use at most 65536"),
    ({"backbone_arch": [1, 1, 10**12]}, "1000000000000 is too large; use at most 64")])
def test_networks_that_nobody_can_build(model, message):
    refused(lambda: tiny_config(model=model), message=message)


def test_errors_of_long_values_keep_their_remedy():
    text = refused(lambda: tiny_config(devices=["x" * 10**5]), message="devices: 'xxx")
    assert text.endswith("use cpu, auto, cuda or cuda:N")


def test_shown_values_are_short():
    value = [1]
    for _ in range(60):
        value = [value, value]  # 2 ** 60 elements if it were written out
    assert len(shown(value)) <= 80
    assert shown("x" * 10**6) == shown("x" * 10**7)
    assert shown(10**5000) == "a int" or len(shown(10**5000)) <= 80
    assert (shown("a"), shown(None), shown([1, 2])) == ("'a'", "None", "[1, 2]")


def put(opcode, number):
    return b"\x80\x04]" + opcode + struct.pack("<I", number) + b"."


@pytest.mark.parametrize("content", [
    b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b".", b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b".",
    b"\x80\x04\x8d" + struct.pack("<Q", 2**62) + b".", b"\x80\x04\x95" + struct.pack("<Q", 2**50) + b"K",
    b"\x80\x04\x8b" + struct.pack("<i", 2**31 - 1) + b"."])
def test_pickles_that_announce_much(content):
    refused(load_plain_pickle, content, "p.pkl", "list", message="p.pkl: is not a readable pickle")


def test_pickles_that_take_memory_or_time():
    assert load_plain_pickle(put(b"r", 2**31 - 1), "p.pkl", "list") == []  # the compiled reader would allocate 32 GiB here
    key = ()
    for _ in range(60):
        key = (key, key)
    as_key = b"\x80\x04}" + pickle.dumps(key, 4)[2:-1] + b"K\x01s."  # {key: 1}; to hash the key takes 2 ** 60 steps
    refused(load_plain_pickle, as_key, "p.pkl", "list", message="it holds a tuple as a key")
    array = pickle.dumps(np.zeros(3, "S0"))
    refused(load_plain_pickle, array.replace(b"K\x03\x85", b"J\xff\xff\xff\x7f\x85"), "p.pkl", "list", message="p.pkl")


def named(module, name):
    return f"c{module}\n{name}\n".encode()


def again_and_again(*parts, times=10_000):
    """A pickle of a list of what a function makes of the same arguments, called many times: 5 bytes a call."""
    function, arguments = parts[0], b"(" + b"".join(parts[1:]) + b"t"
    return b"\x80\x04" + function + b"q\x00" + arguments + b"q\x01](" + b"h\x00h\x01R" * times + b"e."


LARGE = b"X" + struct.pack("<I", 100_000) + b"a" * 100_000
PAIRS = b"](" + b"".join(b"J" + struct.pack("<i", i) + b"N\x86" for i in range(10_000)) + b"e"
BYTE = named("numpy", "dtype") + b"X\x02\0\0\0u1\x85R"


@pytest.mark.parametrize("content", [
    again_and_again(named("_codecs", "encode"), LARGE), again_and_again(named("collections", "OrderedDict"), PAIRS),
    again_and_again(named("numpy.core.numeric", "_frombuffer"), LARGE, BYTE, b"J" + struct.pack("<i", 100_000) + b"\x85",
                    b"X\x01\0\0\0C")], ids=["encode", "OrderedDict", "_frombuffer"])
def test_pickles_that_copy_a_part_again_and_again(content):
    assert len(content) < 300_000  # and they ask for 1 GB
    refused(load_plain_pickle, content, "p.pkl", "list", message="p.pkl: it makes more data than it holds")


def test_pickles_whose_keys_take_long_to_hash_or_whose_arrays_are_sizes():
    key = b")"
    for _ in range(60):
        key += b"2\x86"  # a pair of the same tuple twice
    pairs = b"](" + key + b"N\x86e"
    content = b"\x80\x04" + named("collections", "OrderedDict") + pairs + b"\x85R."
    refused(load_plain_pickle, content, "p.pkl", "list", message="it holds a tuple as a key")
    collide = pickle.dumps({(2**61 - 1) * i: 0 for i in range(1, 5000)})  # integers of equal hash
    refused(load_plain_pickle, collide, "p.pkl", "list", message="it holds a int as a key")
    size = b"\x8a\x05" + (2**34).to_bytes(5, "little")  # bytes(2**34) would be 16 GiB of zeros
    content = b"\x80\x04" + named("numpy.core.numeric", "_frombuffer") + b"(" + size + BYTE + size + b"\x85X\x01\0\0\0CtR."
    refused(load_plain_pickle, content, "p.pkl", "list", message="p.pkl")


@pytest.mark.parametrize("content", [
    pickle.dumps({1, 2}, 4), pickle.dumps(np.zeros(3), 2)[:-1] + b"K\x00Ns.",
    b"\x80\x04" + named("numpy", "dtype") + b"N\x85R.", b"\x80\x04" + named("numpy", "ndarray") + b"."],
    ids=["set", "item of an array", "a type without a code", "a class"])
def test_pickles_of_what_is_no_plain_data(content):
    refused(load_plain_pickle, content, "p.pkl", "list", message="a list holds only dicts, lists")


def test_shared_lists_are_not_unfolded(tmp_path):
    value = [1.0]
    for _ in range(40):
        value = [value, value]
    row = {"video-id": ["a"], "t-start": value, "t-end": [1.0], "label": [0], "score": [1.0]}
    for column in ("t-start", "label", "score"):
        (tmp_path / "p.pkl").write_bytes(pickle.dumps({**row, "t-start": [0.0], column: value}))
        refused(read_predictions, tmp_path / "p.pkl", message="p.pkl")
    (tmp_path / "s.pkl").write_bytes(pickle.dumps({"v": value}))
    refused(load_external_scores, tmp_path / "s.pkl", message="s.pkl: video v has [[[")


def npy_header(shape, dtype="<f4"):
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": dtype, "fortran_order": False, "shape": shape})
    return buffer.getvalue()


def test_small_files_that_declare_huge_arrays(tmp_path):
    (tmp_path / "v.npy").write_bytes(npy_header((10**12, 6)))
    refused(FeatureStore(str(tmp_path)).read, "v", message="v.npy: cannot be read as a feature file")
    refused(load_external_scores, tmp_path / "v.npy", message="its header declares 6000000000000 values, more than it holds")
    with zipfile.ZipFile(tmp_path / "v.npz", "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("feats.npy", npy_header((10**12, 6)))
    refused(FeatureStore(str(tmp_path), None, ".npz").read, "v", message="feats.npy is shorter than its header says")
    content = (tmp_path / "v.npz").read_bytes()
    size = struct.pack("<I", len(npy_header((10**12, 6))))
    assert content.count(size) == 2
    (tmp_path / "v.npz").write_bytes(content.replace(size, struct.pack("<I", 2**32 - 2)))
    refused(FeatureStore(str(tmp_path), None, ".npz").read, "v", message="v.npz: cannot be read")


def hdf5(path, write):
    with h5py.File(path, "w") as file:
        write(file)


@pytest.mark.parametrize(("write", "message"), [
    (lambda f: f.update({"feats": h5py.ExternalLink("other.h5", "feats")}), "behind a link"),
    (lambda f: f.update({"feats": h5py.SoftLink("/feats")}), "behind a link"),
    (lambda f: f.create_group("g").update({"x": h5py.ExternalLink("other.h5", "feats")}), "'g' is a group"),
    (lambda f: f.create_dataset("feats", (4, 6), "f4", external=[("other.bin", 0, 96)]), "keeps its values in other files"),
    (lambda f: f.create_virtual_dataset("feats", virtual()), "keeps its values in other files"),
    (lambda f: f.create_dataset("feats", (10**9, 6), "f4", chunks=(1000, 6)), "claims 24000000000 bytes"),
    (lambda f: f.create_dataset("feats", (10**8, 6), "f4", chunks=(10**8, 6), compression="gzip"), "claims 2400000000 bytes"),
    (lambda f: f.create_dataset("feats", data=h5py.Empty("f4")), "empty dataset without a shape"),
    (lambda f: f.create_dataset("feats", data=np.zeros((4, 6), [("a", "f4")])), "holds values of type"),
])
def test_hdf5_files_that_lead_elsewhere_or_claim_much(tmp_path, write, message):
    hdf5(tmp_path / "other.h5", lambda f: f.create_dataset("feats", data=np.ones((4, 6), np.float32)))
    hdf5(tmp_path / "v.h5", write)
    (tmp_path / "other.bin").write_bytes(bytes(96))
    for store, video in ((FeatureStore(str(tmp_path), None, ".h5"), "v"), (FeatureStore(str(tmp_path / "v.h5")), "feats")):
        if "group" not in message or video == "v":
            assert "v.h5" in refused(store.read, video, message=message)


def virtual():
    layout = h5py.VirtualLayout((4, 6), "f4")
    layout[:] = h5py.VirtualSource("other.h5", "feats", (4, 6))
    return layout


@pytest.mark.parametrize(("value", "message"), [
    (torch.zeros(1).expand(10**12), "repeats itself in 4 bytes"), (torch.eye(3).to_sparse(), "sparse, quantised or unallocated"),
    (torch.zeros(3, 4, device="meta"), "sparse, quantised or unallocated")])
def test_tensors_that_claim_more_than_they_hold(tmp_path, value, message):
    torch.save(value, tmp_path / "v.pt")
    refused(FeatureStore(str(tmp_path), None, ".pt").read, "v", message=message)
    torch.save({"state_dict": {"module.x": value}}, tmp_path / "c.pth.tar")
    assert "c.pth.tar" in refused(load_checkpoint, tmp_path / "c.pth.tar", message=message)


def test_torch_archives_that_claim_more_than_they_hold(tmp_path):
    torch.save({"state_dict": {"module.x": torch.arange(7.0)}}, tmp_path / "c.pth.tar")
    with zipfile.ZipFile(tmp_path / "c.pth.tar") as whole:
        entries = {name: whole.read(name) for name in whole.namelist()}
    with zipfile.ZipFile(tmp_path / "c.pth.tar", "w", zipfile.ZIP_DEFLATED) as packed:
        for name, data in entries.items():
            packed.writestr(name, data)
    refused(load_checkpoint, tmp_path / "c.pth.tar", message="its archive is compressed or claims more bytes than the file has")
    # a shape larger than the storage makes torch enlarge the storage, with whatever lies in memory
    with zipfile.ZipFile(tmp_path / "c.pth.tar", "w") as forged:
        for name, data in entries.items():
            assert not name.endswith("data.pkl") or data.count(b"K\x07\x85") == 1
            forged.writestr(name, data.replace(b"K\x07\x85", b"M\xff\xff\x85") if name.endswith("data.pkl") else data)
    refused(load_checkpoint, tmp_path / "c.pth.tar", message="c.pth.tar: cannot be read as a checkpoint")


def results(entries):
    return json.dumps({"results": {"v": entries}})


@pytest.mark.parametrize("entry", [
    '{"segment": "12", "label": 0, "score": 1}', '{"segment": {"1": 0, "2": 0}, "label": 0, "score": 1}',
    '{"segment": [true, 2], "label": 0, "score": 1}', '{"segment": [1, 2], "label": 0, "score": true}',
    '{"segment": ["1_0", 20], "label": 0, "score": 1}', '{"segment": [1, 2], "label": true, "score": 1}',
    '{"segment": [1, 2], "label": 1' + "0" * 400 + ', "score": 1}', '{"segment": [1, 1e999], "label": 0, "score": 1}'])
def test_numbers_in_disguise_are_no_predictions(tmp_path, entry):
    (tmp_path / "p.json").write_text(f'{{"results": {{"v": [{entry}]}}}}')
    assert "p.json" in refused(read_predictions, tmp_path / "p.json")


def test_labels_are_told_apart(tmp_path):
    labels = (1, "1", 1.0, 2**52 + 1)
    (tmp_path / "p.json").write_text(results([{"segment": [0, 1], "label": label, "score": 1} for label in labels]))
    assert read_predictions(tmp_path / "p.json").label.tolist() == [1, 1, 1, 2**52 + 1]
    (tmp_path / "p.json").write_text(results([{"segment": [0, 1], "label": label, "score": 1} for label in (1, True)]))
    refused(read_predictions, tmp_path / "p.json", message="entry 1 has the label True")


@pytest.mark.parametrize(("change", "message"), [
    ({"score": np.array([1j, 2])}, "an array of type 'c16'"), ({"t-start": np.array([[0.0], [1.0]])}, "the shape (2, 1)"),
    ({"label": np.array([2**63, 1], np.uint64)}, "not integer class ids"), ({"label": np.array([1e300, 1])}, "not integer"),
    ({"video-id": ["a", 3]}, "the video id 3 is a int, not text"), ({"video-id": ["a", "x" * 10**5]}, "has 100000 characters"),
    ({"video-id": ["a", "a\0"]}, "holds a NUL character"), ({"score": ["1", "2"]}, "values that are not numbers")])
def test_odd_columns(tmp_path, change, message):
    row = {"video-id": ["a", "b"], "t-start": np.zeros(2), "t-end": np.ones(2), "label": np.zeros(2, int), "score": np.ones(2)}
    (tmp_path / "p.pkl").write_bytes(pickle.dumps({**row, **change}))
    assert "p.pkl" in refused(read_predictions, tmp_path / "p.pkl", message=message)


def test_compressed_predictions_have_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(predictions, "MAX_UNPACKED", 1 << 20)
    for name in ("p.csv.gz", "p.json.gz"):
        (tmp_path / name).write_bytes(gzip.compress(bytes(2 << 20)))
        refused(read_predictions, tmp_path / name, message="unpacks to more than 1 MiB")
    (tmp_path / "p.csv").write_text("video_id,t_start,t_end,label,score,score\nv,0,1,0,1,2\n")
    refused(read_predictions, tmp_path / "p.csv", message="names the column 'score' twice")


def annotated(folder, change):
    data = write_data(folder / "data")
    data.edit(lambda document: change(document["database"]))
    return data


@pytest.mark.parametrize(("change", "message"), [
    (lambda d: d["t0"].update(annotations=[{"segment": [0, 1], "label": "class 0", "label_id": 0}] * (MAX_SEGMENTS + 1)),
     "video 't0'.annotations: has 100001 segments, at most 100000 are read"),
    (lambda d: d["t0"]["annotations"][0].update(label_id=10**30), "is not a class id"),
    (lambda d: d["t0"]["annotations"][0].update(segment=[0, 1e300]), "lies more than 1e+07 s away"),
    (lambda d: d["t0"]["annotations"][0].update(segment=[0, 10**400]), "two finite numbers"),
    (lambda d: d["t0"].update(fps=1e-300), "frames per second between 0.001 and 1e+06"),
    (lambda d: d["t0"].update(duration=1e300), "seconds between 0 and 1e+07"),
    (lambda d: d["t0"].update(duration=0), "seconds above 0"),
    (lambda d: d.update({"../../etc/x": d.pop("t0")}), "this video id would lead out of the folder of features"),
    (lambda d: d.update({"/etc/x": d.pop("t0")}), "this video id would lead out of the folder of features"),
    (lambda d: d.update({"t0\0": d.pop("t0")}), "this video id holds a NUL character"),
    (lambda d: d.update({"x" * 600: d.pop("t0")}), "this video id has 600 characters"),
    (lambda d: d.update({"": d.pop("t0")}), "this video id is empty")])
def test_annotations_that_cannot_be(tmp_path, change, message):
    data = annotated(tmp_path, change)
    assert "annotations.json" in refused(load_annotations, data.annotations, message=message)


def test_negative_overlapping_and_empty_segments_are_kept_with_a_warning(tmp_path):
    segments = [[-1, 2], [0, 2], [1, 1], [0, 10**6], [0, 2]]
    data = annotated(tmp_path, lambda d: d["t0"].update(
        annotations=[{"segment": s, "label": "class 0", "label_id": 0} for s in segments]))
    with pytest.warns(UserWarning, match="2 leave their video and 1 have zero length"):
        found = load_annotations(data.annotations).videos["t0"]
    assert found.segments.tolist() == segments
    assert without_duplicates(found).segments.tolist() == [segments[0], segments[1], segments[3]]


def test_duplicates_are_those_of_the_plain_comparison():
    rng = np.random.default_rng(0)
    from libs.datasets.annotations import Video
    for step in (5e-4, 1e-3, 2e-3):
        starts = rng.integers(-20, 20, 300) * step
        segments = np.stack([starts, starts + rng.integers(0, 6, 300) * step], axis=1)
        video = Video("v", "s", 9.0, 1.0, segments, rng.integers(0, 2, 300))
        kept = []
        for i, (segment, label) in enumerate(zip(segments, video.labels, strict=True)):
            same = (np.abs(segments[kept] - segment) <= 1e-3).all(axis=1) & (video.labels[kept] == label)
            if segment[1] - segment[0] >= 1e-3 and not same.any():
                kept.append(i)
        assert np.array_equal(without_duplicates(video).segments, segments[kept])


@pytest.mark.parametrize("center_sample", ["radius", "none"])
def test_targets_of_many_segments_do_not_depend_on_the_parts(monkeypatch, center_sample):
    generator = torch.Generator().manual_seed(0)
    points = torch.cat([torch.stack([torch.arange(0, 64, s), *(torch.full((64 // s,), v) for v in (low, high, s))], 1)
                        for s, low, high in ((1, 0, 4), (2, 4, 8), (4, 8, 1000))]).float()
    start = torch.rand(2, 23, generator=generator) * 50
    segments = torch.stack([start, start + torch.rand(2, 23, generator=generator).mul(20).round()], 2)
    segments[:, 7] = segments[:, 3]  # equal lengths share a point
    labels, present = torch.randint(0, 5, (2, 23), generator=generator), torch.rand(2, 23, generator=generator) > 0.2
    whole = targets.assign_targets(points, segments, labels, present, 5, center_sample, 1.5)
    assert whole.classes.sum() > 20
    positive = whole.classes.sum(2) > 0
    for most in (1, 5, 22):
        monkeypatch.setattr(targets, "MOST_AT_ONCE", most)
        parts = targets.assign_targets(points, segments, labels, present, 5, center_sample, 1.5)
        assert torch.equal(parts.classes, whole.classes)
        assert torch.equal(parts.offsets[positive], whole.offsets[positive])


def test_a_video_beyond_the_memory_is_refused(tmp_path, monkeypatch):
    data = write_data(tmp_path / "data")
    config = data_config(data, tmp_path)
    monkeypatch.setattr("libs.datasets.dataset.available_memory", lambda device: 1000)
    refused(TalDataset, config, "validation", False, message="v1.npy: has 52 feature vectors of 6 channels")
    assert len(TalDataset(config, "training", True)) == 6  # crops need no whole video


def test_archives_with_huge_headers_and_folders_in_circles(tmp_path):
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 1 << 30
    (tmp_path / "a.tar").write_bytes(info.tobuf(tarfile.USTAR_FORMAT) + bytes(10240))
    refused(lambda: list(archives.members(tmp_path / "a.tar")), message="a.tar: ")
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (root / "sub" / "file").write_text("x")
    for i in range(12):  # 12 ** 8 ways to walk if every link were followed
        os.symlink(root, root / "sub" / f"link{i}")
    assert [m.name for m in archives.members(root)] == ["sub/file"]
