"""The checksum in a checkpoint file: what torch.load still reads, and that no damage passes."""
from __future__ import annotations

import io

import numpy as np
import pytest
import torch

from libs.utils.files.seal import COMMENT_SIZE, seal, verify

CONTENT = {"epoch": 3, "state_dict": {"module.a": torch.arange(3000.0), "module.b": torch.ones(7)}}


def archive() -> bytes:
    buffer = io.BytesIO()
    torch.save(CONTENT, buffer)
    return buffer.getvalue()


def sealed() -> bytes:
    return b"".join(seal(archive()))


def refused(content: bytes) -> bool:
    try:
        verify(io.BytesIO(content))
    except ValueError:
        return True
    return False


def loads(content: bytes) -> bool:
    try:
        torch.load(io.BytesIO(content), weights_only=True)
    except Exception:
        return False
    return True


def test_torch_reads_a_sealed_file_as_if_it_were_not(tmp_path):
    path = tmp_path / "a.pth.tar"
    path.write_bytes(sealed())
    assert verify(io.BytesIO(path.read_bytes()))
    assert len(sealed()) == len(archive()) + COMMENT_SIZE
    for options in ({}, {"mmap": True}):
        found = torch.load(path, weights_only=True, **options)
        assert found["epoch"] == 3
        assert torch.equal(found["state_dict"]["module.a"], CONTENT["state_dict"]["module.a"])


def test_every_flipped_bit_is_found():
    whole, rng = sealed(), np.random.default_rng(0)
    places = [*range(0, len(whole), 97), *range(len(whole) - 120, len(whole))]  # the tail in full: there lies the checksum
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(rng.integers(8))
        # a bit of the record of the end may leave an archive without a checksum, of which zip's own ones say that it is whole
        if not refused(bytes(damaged)):
            assert len(whole) - COMMENT_SIZE - 22 <= place < len(whole) - COMMENT_SIZE, place
            assert torch.equal(torch.load(io.BytesIO(damaged), weights_only=True)["state_dict"]["module.a"], torch.arange(3000.0))


def test_every_zeroed_page_and_every_truncation_is_found():
    whole = sealed()
    for first in range(0, len(whole), 4096):
        page = whole[first:first + 4096]
        if any(page):
            assert refused(whole[:first] + bytes(len(page)) + whole[first + 4096:]), first
    for size in (*range(len(whole) - 120, len(whole)), *range(30, len(whole), 997)):
        assert refused(whole[:size]) or not loads(whole[:size]), size
    assert refused(whole[:100] + whole[101:])


def test_published_files_have_only_the_checksums_of_zip():
    whole = archive()
    assert verify(io.BytesIO(whole)) is False
    place = whole.index(torch.arange(3000.0).numpy().tobytes()) + 5000
    damaged = bytearray(whole)
    damaged[place] ^= 4
    with pytest.raises(ValueError, match="damaged zip archive"):
        verify(io.BytesIO(damaged))
    assert not torch.equal(torch.load(io.BytesIO(damaged), weights_only=True)["state_dict"]["module.a"], torch.arange(3000.0))


def test_files_without_any_checksum_pass():
    try:
        torch.serialization.set_crc32_options(False)
        whole = archive()
    finally:
        torch.serialization.set_crc32_options(True)
    assert verify(io.BytesIO(whole)) is False
    buffer = io.BytesIO()
    torch.save(CONTENT, buffer, _use_new_zipfile_serialization=False)
    assert verify(io.BytesIO(buffer.getvalue())) is False
    assert verify(io.BytesIO(b"")) is False


def test_only_archives_without_a_comment_are_sealed():
    for content in (b"", b"text", sealed()):
        with pytest.raises(ValueError, match="no zip archive, or one with a comment"):
            seal(content)
