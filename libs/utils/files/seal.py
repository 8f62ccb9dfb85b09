"""A checksum in checkpoint files that readers of the published format ignore.

torch.save writes a zip archive, which may end in a comment that torch.load ignores.  A sealed file has the comment
`sha256:<64 hexadecimal digits>`: the digest of all bytes before the comment.

    file.writelines(seal(buffer.getvalue()))
    sealed = verify(file)        True: sealed and intact; False: no seal and no visible damage; ValueError: damaged
"""
from __future__ import annotations

import hashlib
import os
import re
import zipfile
import zlib
from typing import IO

END = b"PK\x05\x06"  # signature of the end-of-central-directory record (APPNOTE.TXT 6.3.10, 4.3.16)
END_SIZE = 22  # its size without the comment; the last two bytes are the comment's length
MARK = b"sha256:"
COMMENT_SIZE = len(MARK) + 64
RECORD = re.compile(END + b".{%d}" % (END_SIZE - len(END) - 2) + COMMENT_SIZE.to_bytes(2, "little"), re.DOTALL)
DIGEST = re.compile(MARK + rb"([0-9a-f]{64})")
CHUNK = 1 << 22


def seal(archive: bytes | bytearray | memoryview) -> tuple[memoryview, bytes]:
    """The sealed file in two parts: a zip archive without a comment, less its last two bytes, and their replacement.

    Raises ValueError for anything else.
    """
    view = memoryview(archive)
    if bytes(view[-END_SIZE:-END_SIZE + len(END)]) != END or bytes(view[-2:]) != b"\0\0":
        raise ValueError("is no zip archive, or one with a comment")
    body, length = view[:-2], COMMENT_SIZE.to_bytes(2, "little")
    digest = hashlib.sha256(body)
    digest.update(length)
    return body, length + MARK + digest.hexdigest().encode("ascii")


def verify(file: IO[bytes]) -> bool:
    """Read a whole file, then rewind it: True if it is sealed and unchanged; ValueError with the reason if it is damaged.

    False for files without a seal: of zip archives (published files) the CRC-32 of the records are checked, which torch.load does
    not do; files in the legacy layout hold no checksum.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(max(size - END_SIZE - COMMENT_SIZE, 0))
    tail = file.read()
    file.seek(0)
    record = RECORD.search(tail)
    if record is None:
        _check_records(file, size)
        file.seek(0)
        return False
    found = DIGEST.fullmatch(tail, record.end())
    if found is None:
        raise ValueError("its checksum is cut off or damaged")
    digest, left = hashlib.sha256(), size - COMMENT_SIZE
    while left > 0:
        chunk = file.read(min(CHUNK, left))
        if not chunk:
            raise ValueError("became shorter while it was read")
        digest.update(chunk)
        left -= len(chunk)
    file.seek(0)
    if digest.hexdigest().encode("ascii") != found.group(1):
        raise ValueError("its checksum does not match its contents")
    return True


def _check_records(file: IO[bytes], size: int) -> None:
    """Compare the stored records of a zip archive with their CRC-32; 0 means none (an option of torch.save)."""
    if file.read(4) != b"PK\x03\x04":
        return
    try:
        with zipfile.ZipFile(file) as archive:
            records = [r for r in archive.infolist() if r.compress_type == zipfile.ZIP_STORED and r.CRC != 0]
            if sum(r.file_size for r in records) > size:
                raise ValueError("its records overlap")  # reading them would take forever
            for record in records:
                with archive.open(record) as content:  # raises BadZipFile at the end of a record whose CRC-32 differs
                    while content.read(CHUNK):
                        pass
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise ValueError(f"is a damaged zip archive: {error}") from error
