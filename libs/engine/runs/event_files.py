"""Taking back what TensorBoard files hold beyond the point that a run goes on from.

An event file is a sequence of TFRecords: length (uint64), CRC of the length (uint32), an Event message, its CRC (uint32), all
little-endian.  tensorboard can only mark events as outdated, which readers of the bare files do not see.
"""
from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from libs.utils.files.io import write_atomic

HEAD, FOOT = struct.Struct("<QI"), 4


def cut_events(folder: Path, keep: Callable[[str, int], bool]) -> None:
    """Leave only events without values (such as the version) and those whose keep(tag, step) holds, in every event file.

    A record that a killed program left half written ends its file.  OSError or UserError when a file cannot be read or written.
    """
    from tensorboard.compat.proto.event_pb2 import Event  # here: the import takes a second that others need not pay
    for path in sorted(folder.glob("events.out.tfevents.*")):
        whole = path.read_bytes()
        kept = [record for record, event in _records(whole, Event)
                if all(keep(value.tag, event.step) for value in event.summary.value)]
        if sum(map(len, kept)) < len(whole):
            write_atomic(path, lambda file, parts=kept: file.writelines(parts))


def _records(whole: bytes, event_type: Any) -> Iterator[tuple[bytes, Any]]:
    """(record as it is, its message) up to the first one that is not whole."""
    from google.protobuf.message import DecodeError
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c
    start = 0
    while start + HEAD.size <= len(whole):
        length, crc = HEAD.unpack_from(whole, start)
        end = start + HEAD.size + length + FOOT
        if crc != masked_crc32c(whole[start:start + 8]) or end > len(whole):
            return
        try:
            event = event_type.FromString(whole[start + HEAD.size:end - FOOT])
        except DecodeError:
            return
        yield whole[start:end], event
        start = end
