"""Feature files of every format: windows, channels, joined folders, and one clear error for each kind of damage."""
from __future__ import annotations

import multiprocessing
import pickle
import zipfile

import h5py
import numpy as np
import pytest
import torch
from helpers import without_permission

from libs.core.errors import UserError
from libs.datasets.features.packing import Stream, pack_stream
from libs.datasets.features.store import FeatureStore, Keys

FEATS = np.random.default_rng(0).standard_normal((23, 6)).astype(np.float32)


def save(folder, kind, feats, name="v1"):
    """Write features in one of the layouts; returns the arguments of FeatureStore."""
    folder.mkdir(exist_ok=True)
    if kind == ".npy":
        np.save(folder / f"{name}.npy", feats)
    elif kind == "fortran":
        np.save(folder / f"{name}.npy", np.asfortranarray(feats))
    elif kind == ".npz":
        np.savez(folder / f"{name}.npz", other=np.zeros(3), feats=feats)
    elif kind == "deflated":
        np.savez_compressed(folder / f"{name}.npz", other=np.zeros(3), feats=feats)
    elif kind == "deflated fortran":
        np.savez_compressed(folder / f"{name}.npz", feats=np.asfortranarray(feats))
    elif kind in (".h5", ".hdf5"):
        with h5py.File(folder / f"{name}{kind}", "w") as file:
            file["anything"] = feats
    elif kind == "bundle":
        with h5py.File(folder / "all.h5", "a") as file:
            file[name] = feats
        return str(folder / "all.h5"), None, None
    elif kind == "packed":
        np.save(folder / f"{name}.npy", feats)
        pack_stream(Stream("features", FeatureStore(str(folder)), ""), {"training": [name]}, folder, "float32", False, print)
        return str(folder / "features.h5"), None, None
    elif kind == ".pt":
        torch.save(torch.from_numpy(feats), folder / f"{name}.pt")
    elif kind == "pt dict":
        torch.save({"feats": torch.from_numpy(feats).requires_grad_()}, folder / f"{name}.pt")
    elif kind == "old pt":
        torch.save(torch.from_numpy(feats), folder / f"{name}.pt", _use_new_zipfile_serialization=False)
    variants = {"fortran": ".npy", "deflated": ".npz", "deflated fortran": ".npz", "pt dict": ".pt", "old pt": ".pt"}
    return str(folder), None, variants.get(kind, kind)


KINDS = [".npy", "fortran", ".npz", "deflated", "deflated fortran", ".h5", ".hdf5", "bundle", ".pt", "pt dict", "old pt"]


@pytest.mark.parametrize("kind", [*KINDS, "packed"])
def test_every_format_reads_windows_and_channels(tmp_path, kind):
    store = FeatureStore(*save(tmp_path / "f", kind, FEATS), width=6)
    assert store.exists("v1")
    assert not store.exists("v2")
    assert (store.length("v1"), store.shape("v1")) == (23, (23, 6))
    assert np.array_equal(store.read("v1"), FEATS)
    for rows in (slice(0, 23), slice(4, 9), slice(3, 23, 4), slice(22, 23)):
        for channels in (None, ((1, 4),), ((4, 6), (0, 1)), ((2, 3), (2, 3))):
            got = store.read("v1", rows, channels)
            columns = [c for low, high in channels or ((0, 6),) for c in range(low, high)]
            assert np.array_equal(got, FEATS[rows][:, columns])
            assert got.dtype == np.float32
            assert got.flags.c_contiguous
            assert got.flags.writeable


@pytest.mark.parametrize("kind", [*KINDS, "packed"])
def test_every_format_writes_into_given_memory(tmp_path, kind):
    store = FeatureStore(*save(tmp_path / "f", kind, FEATS), width=6)
    for rows, channels in ((slice(4, 9), None), (slice(3, 23, 4), ((4, 6), (0, 1)))):
        want = store.read("v1", rows, channels)
        around = np.full((len(want) + 2, want.shape[1] + 3), 9, np.float32)
        for out in (np.full_like(want, np.nan), around[1:-1, 2:-1]):
            assert store.read("v1", rows, channels, out) is out
            assert np.array_equal(out, want)
        around[1:-1, 2:-1] = 9
        assert (around == 9).all()
    for wrong in (np.empty((5, 5), np.float32), np.empty((4, 6), np.float32), np.empty((5, 6))):
        with pytest.raises(ValueError, match=r"float32 \(5, 6\) was asked for"):
            store.read("v1", slice(4, 9), None, wrong)


@pytest.mark.parametrize("kind", [".npy", "deflated", ".h5", ".pt"])
@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int32, np.uint8])
def test_other_number_types_become_float32(tmp_path, kind, dtype):
    feats = (FEATS * 10).round().clip(0).astype(dtype)
    got = FeatureStore(*save(tmp_path / "f", kind, feats)).read("v1", slice(2, 9))
    assert got.dtype == np.float32
    assert np.array_equal(got, feats[2:9])


def test_bfloat16_tensors(tmp_path):
    torch.save(torch.from_numpy(FEATS).bfloat16(), tmp_path / "v1.pt")
    assert np.array_equal(FeatureStore(str(tmp_path), None, ".pt").read("v1"), torch.from_numpy(FEATS).bfloat16().float().numpy())


def test_prefix_and_long_extension(tmp_path):
    np.save(tmp_path / "v_abc_i3d.npy", FEATS)
    assert FeatureStore(str(tmp_path), "v_", "_i3d.npy").length("abc") == 23
    with h5py.File(tmp_path / "all.hdf5", "w") as file:
        file["v_abc"] = FEATS
    assert FeatureStore(str(tmp_path / "all.hdf5"), "v_").length("abc") == 23


def test_hdf5_file_prefers_feats_then_the_videos_name(tmp_path):
    with h5py.File(tmp_path / "v1.h5", "w") as file:
        file["feats"], file["v1"] = FEATS, FEATS + 1
    with h5py.File(tmp_path / "v2.h5", "w") as file:
        file["other"], file["v2"] = FEATS, FEATS + 2
    store = FeatureStore(str(tmp_path), None, ".h5")
    assert np.array_equal(store.read("v1"), FEATS)
    assert np.array_equal(store.read("v2"), FEATS + 2)


def test_folders_are_joined_along_channels(tmp_path):
    parts = [FEATS, FEATS[:, :2] + 5, FEATS[:, :3] - 5]
    kinds = (".npy", "bundle", ".npy")
    folders = [save(tmp_path / name, kind, part)[0] for name, kind, part in zip("abc", kinds, parts, strict=True)]
    store, joined = FeatureStore(folders, None, ".npy", 11), np.concatenate(parts, axis=1)
    assert store.shape("v1") == (23, 11)
    assert np.array_equal(store.read("v1"), joined)
    assert np.array_equal(store.read("v1", slice(1, 9, 2), ((4, 10), (0, 1))), joined[1:9:2][:, [*range(4, 10), 0]])
    (tmp_path / "c" / "v1.npy").unlink()
    assert store.missing_path("v1") == str(tmp_path / "c" / "v1.npy")
    save(tmp_path / "c", ".npy", parts[2][:20])
    with pytest.raises(UserError, match=r"c/v1\.npy: has 20 feature vectors, but .*a/v1\.npy has 23"):
        store.shape("v1")


@pytest.mark.parametrize("kind", KINDS)
def test_only_what_is_asked_for_is_checked(tmp_path, kind):
    feats = FEATS.copy()
    feats[10, 4], feats[20, 0] = np.nan, np.inf
    store = FeatureStore(*save(tmp_path / "f", kind, feats))
    assert store.read("v1", slice(0, 10)).shape == (10, 6)
    assert store.read("v1", slice(0, 20), ((0, 4),)).shape == (20, 4)
    with pytest.raises(UserError, match=r"v1.*1 of 20 values read are NaN or infinite \(first: row 10, channel 4\)"):
        store.read("v1", slice(6, 16, 2), ((2, 6),))
    with pytest.raises(UserError, match=r"2 of 138 values"):
        store.read("v1")


def test_large_finite_values_pass_and_overflow_does_not(tmp_path):
    np.save(tmp_path / "v1.npy", np.full((9, 4), 3e38, np.float32))
    np.save(tmp_path / "v2.npy", np.full((9, 4), 1e39))
    store = FeatureStore(str(tmp_path))
    assert (store.read("v1") == np.float32(3e38)).all()
    with pytest.raises(UserError, match=r"v2\.npy.*36 of 36"):
        store.read("v2")


@pytest.mark.parametrize("kind", [".npy", ".npz", "deflated", ".h5", "bundle", ".pt"])
@pytest.mark.parametrize(("feats", "fragment"), [
    (FEATS[None], "shape (1, 23, 6)"), (FEATS[0], "shape (6,)"), (FEATS[:0], "no feature vectors"),
    (FEATS[:, :5], "dataset.input_dim says 6"), (np.ascontiguousarray(FEATS[:9].T), "transposed")])
def test_wrong_shapes(tmp_path, kind, feats, fragment):
    store = FeatureStore(*save(tmp_path / "f", kind, feats), width=6)
    for action in (store.shape, store.read):
        with pytest.raises(UserError) as error:
            action("v1")
        assert "v1" in str(error.value)
        assert fragment in str(error.value)


def test_narrower_widths(tmp_path):
    np.save(tmp_path / "v1.npy", FEATS[:, :4])
    np.save(tmp_path / "v2.npy", FEATS)
    store = FeatureStore(str(tmp_path), width=6, narrower=(4,))
    assert np.array_equal(store.read("v1", None, ((1, 4),)), store.read("v2", None, ((1, 4),)))
    assert (store.shape("v1"), store.shape("v2")) == ((23, 4), (23, 6))
    for narrower in ((), (3, 5)):
        with pytest.raises(UserError, match=r"v1\.npy: has 4 channels .*dataset\.input_dim says 6"):
            FeatureStore(str(tmp_path), width=6, narrower=narrower).read("v1", None, ((1, 4),))


def test_messages_use_the_keys_of_the_stream(tmp_path):
    keys = Keys("dataset.modalities.audio", "folder", "dim")
    store = FeatureStore(str(tmp_path), width=5, keys=keys)
    np.save(tmp_path / "v1.npy", FEATS)
    with pytest.raises(UserError, match=r"audio\.dim says 5; correct dataset\.modalities\.audio\.dim or dataset.*audio\.folder"):
        store.shape("v1")
    with pytest.raises(UserError, match=r"v2\.npy: no such feature file; check dataset\.modalities\.audio\.folder, file_prefix"):
        store.read("v2")
    with pytest.raises(UserError, match=r"is a file; dataset\.modalities\.audio\.folder names"):
        FeatureStore(str(tmp_path / "v1.npy"), keys=keys)
    save(tmp_path, "bundle", FEATS)
    with pytest.raises(UserError, match=r"no dataset 'v9'.*check dataset\.modalities\.audio\.file_prefix"):
        FeatureStore(str(tmp_path / "all.h5"), keys=keys).read("v9")


def test_values_that_are_not_numbers(tmp_path):
    np.save(tmp_path / "v1.npy", FEATS.astype(np.complex64))
    with pytest.raises(UserError, match="complex64"):
        FeatureStore(str(tmp_path)).read("v1")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("keep", [0, 3, 0.5, -1])
def test_truncated_files_are_reported(tmp_path, kind, keep):
    folder, prefix, extension = save(tmp_path / "f", kind, np.tile(FEATS, (200, 1)))
    path = next((tmp_path / "f").iterdir())
    data = path.read_bytes()
    path.write_bytes(data[:int(keep * len(data)) if isinstance(keep, float) else keep])
    with pytest.raises(UserError, match="cannot be read as a feature file") as error:
        FeatureStore(folder, prefix, extension).read("v1")
    assert str(path) in str(error.value)


@pytest.mark.parametrize("extension", [".npy", ".npz", ".h5", ".pt"])
def test_files_of_another_format_are_reported(tmp_path, extension):
    with zipfile.ZipFile(tmp_path / f"v1{extension}", "w") as archive:
        archive.writestr("hello.txt", "hello")
    with pytest.raises(UserError, match=f"v1{extension}"):
        FeatureStore(str(tmp_path), None, extension).read("v1")


def test_pickled_code_is_never_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("ran pickled code",))
    torch.save({"feats": Bomb()}, tmp_path / "v1.pt")
    np.save(tmp_path / "v1.npy", np.array([Bomb()], object), allow_pickle=True)
    for extension in (".pt", ".npy"):
        with pytest.raises(UserError, match="cannot be read"):
            FeatureStore(str(tmp_path), None, extension).read("v1")


def test_wrong_keys_say_what_is_there(tmp_path):
    np.savez(tmp_path / "v1.npz", rgb=FEATS)
    torch.save({"rgb": torch.from_numpy(FEATS)}, tmp_path / "v1.pt")
    with h5py.File(tmp_path / "v1.h5", "w") as file:
        file["rgb"], file["flow"] = FEATS, FEATS
    for extension in (".npz", ".pt", ".h5"):
        with pytest.raises(UserError, match=rf"v1{extension}: holds .*rgb"):
            FeatureStore(str(tmp_path), None, extension).read("v1")
    with h5py.File(tmp_path / "all.h5", "w") as file:
        file["v1/rgb"] = FEATS
    with pytest.raises(UserError, match="group with rgb"):
        FeatureStore(str(tmp_path / "all.h5")).read("v1")
    with pytest.raises(UserError, match="no dataset 'v9'"):
        FeatureStore(str(tmp_path / "all.h5")).read("v9")


def test_paths_that_cannot_work(tmp_path):
    np.save(tmp_path / "v1.npy", FEATS)
    with pytest.raises(UserError, match=r"nowhere.*no such feature folder"):
        FeatureStore(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="is a file"):
        FeatureStore(str(tmp_path / "v1.npy"))
    with pytest.raises(UserError, match=r"dataset\.feat_folder"):
        FeatureStore("")
    with pytest.raises(UserError, match=r"dataset\.file_ext: '\.csv'.*\.npy"):
        FeatureStore(str(tmp_path), None, ".csv")
    with pytest.raises(UserError, match=r"v2\.npy: no such feature file"):
        FeatureStore(str(tmp_path)).read("v2")
    for rows in (slice(20, 24), slice(5, 5), slice(-3, 4)):
        with pytest.raises(UserError, match="23 feature vectors"):
            FeatureStore(str(tmp_path)).read("v1", rows)
    with pytest.raises(UserError, match=r"dataset\.modalities: channels 4:7"):
        FeatureStore(str(tmp_path)).read("v1", None, ((4, 7),))


def _child(store, queue):
    queue.put(store.read("v1", slice(2, 5)))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_bundles_are_opened_again_in_other_processes(tmp_path, method):
    save(tmp_path / "f", "bundle", FEATS)
    store = FeatureStore(str(tmp_path / "f" / "all.h5"))
    assert np.array_equal(store.read("v1"), FEATS)  # now open in this process
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    child = context.Process(target=_child, args=(store, queue))
    child.start()
    assert np.array_equal(queue.get(timeout=60), FEATS[2:5])
    child.join()
    assert child.exitcode == 0
    assert np.array_equal(store.read("v1"), FEATS)


def test_pickling_and_closing_keep_it_usable(tmp_path):
    save(tmp_path / "f", "bundle", FEATS)
    store = FeatureStore(str(tmp_path / "f" / "all.h5"), width=6)
    store.read("v1")
    copy = pickle.loads(pickle.dumps(store))
    store.close()
    assert np.array_equal(store.read("v1"), copy.read("v1"))


def test_a_file_without_permission_is_not_called_damaged(tmp_path, monkeypatch):
    store = FeatureStore(*save(tmp_path / "f", ".npy", FEATS))
    without_permission(monkeypatch, tmp_path / "f", calls=["open"])
    with pytest.raises(UserError, match=r"v1\.npy: cannot be read \(Permission denied\); check its permissions"):
        store.read("v1")


SLOW, FAST = np.random.default_rng(1).normal(size=(2, 1, 4, 9)).astype(np.float32)


def pickled(folder, **tensors):
    (folder / "v1.pkl").write_bytes(pickle.dumps({name: torch.from_numpy(value) for name, value in tensors.items()}))
    return FeatureStore(str(folder), None, ".pkl")


def test_slowfast_features_of_hacs(tmp_path):
    store = pickled(tmp_path, fast_feature=FAST[:, :2], slow_feature=SLOW)
    assert store.shape("v1") == (9, 6)
    want = np.concatenate([SLOW[0], FAST[0, :2]]).T
    assert np.array_equal(store.read("v1"), want)
    assert np.array_equal(store.read("v1", slice(2, 8, 3), [(3, 5)]), want[2:8:3, 3:5])


@pytest.mark.parametrize(("tensors", "parts"), [
    ({"slow_feature": SLOW}, ["slow_feature", "fast_feature"]), ({"a": SLOW, "b": FAST}, ["keys a, b"]),
    ({"slow_feature": SLOW[0], "fast_feature": FAST[0]}, ["(4, 9)", "(1, C, T)"]),
    ({"slow_feature": SLOW, "fast_feature": FAST[..., :5]}, ["(1, 4, 9) and (1, 4, 5)"])])
def test_pickles_that_are_no_slowfast_features(tmp_path, tensors, parts):
    with pytest.raises(UserError) as error:
        pickled(tmp_path, **tensors).read("v1")
    assert all(part in str(error.value) for part in ["v1.pkl", *parts])


def test_pickles_that_ask_for_code_or_memory_are_refused(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("ran pickled code",))

    class Nested:  # torch's own function, which would run what is in its argument
        def __reduce__(self):
            return (torch.storage._load_from_bytes, (pickle.dumps(Bomb()),))

    wide = torch.zeros(1).expand(1, 100_000, 100_000)
    claims = {"slow_feature": wide, "fast_feature": wide}
    for content, reason in ((Bomb(), "asks for"), (Nested(), ""), (claims, "claims more values"), (b"nothing", "")):
        (tmp_path / "v1.pkl").write_bytes(content if isinstance(content, bytes) else pickle.dumps(content))
        with pytest.raises(UserError, match=rf"v1\.pkl: .*{reason}"):
            FeatureStore(str(tmp_path), None, ".pkl").read("v1")
