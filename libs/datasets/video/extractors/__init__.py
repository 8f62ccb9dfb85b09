"""The named extractors of `tools/extract_features.py --extractor NAME`.

    extractor = create("program:network.pt2", {"num_frames": 16, "stride": 4})
"""
from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from libs.core.errors import UserError, nearest
from libs.datasets.video.extractors.base import Extractor
from libs.datasets.video.extractors.descriptor import Descriptor
from libs.datasets.video.extractors.i3d import I3D
from libs.datasets.video.extractors.program import Program
from libs.datasets.video.extractors.torchvision_networks import Torchvision
from libs.datasets.video.extractors.transformers_folder import Transformers

EXTRACTORS: dict[str, type[Extractor]] = {kind.name: kind for kind in (Descriptor, I3D, Program, Torchvision, Transformers)}
OR_NONE = ("resize", "crop", "jpeg")  # 0 stands for None: as stored, whole frame, none


def spellings() -> list[str]:
    """What `--extractor` takes: names, names with a placeholder of their argument, and presets."""
    names = [name + (f":{kind.argument[1]}" if kind.argument else "") for name, kind in EXTRACTORS.items()]
    return names + [preset for kind in EXTRACTORS.values() for preset in kind.presets]


def create(text: str, given: Mapping[str, Any]) -> Extractor:
    """The extractor NAME, NAME:ARGUMENT or PRESET with its networks loaded.

    given: settings by name, which replace the preset's; None and absent: the preset's; resize, crop and jpeg 0: none.  Raises
    UserError for an unknown name or setting, a missing one, and whatever the extractor refuses.
    """
    kind, preset, argument = _found(text)
    given = {key: None if value == 0 and key in OR_NONE else value for key, value in given.items() if value is not None}
    values = {**kind.presets.get(preset or "", {}), **kind.defaults(argument)}
    if kind.argument and argument:
        values[kind.argument[0]] = argument
    fields = {field.name: field for field in dataclasses.fields(kind.settings_class)}
    for key in given:
        if key not in fields:
            raise UserError(f"{_option(key)}: the extractor {text} has no such option{nearest(key, fields)}; it takes "
                            f"{', '.join(map(_option, fields))}")
        if kind.argument and argument and key == kind.argument[0] and given[key] != argument:
            raise UserError(f"{_option(key)} {given[key]}: --extractor {text} names another one; leave one of them out")
    values |= given
    if missing := [_option(key) for key, field in fields.items() if field.default is dataclasses.MISSING and key not in values]:
        raise UserError(f"the extractor {text} has no default for {' and '.join(missing)}; give each")
    return kind(kind.settings_class(**values), preset)


def _found(text: str) -> tuple[type[Extractor], str | None, str | None]:
    """(class, preset, argument) of a spelling."""
    name, colon, argument = text.partition(":")
    for kind in EXTRACTORS.values():
        if text in kind.presets:
            return kind, text, None
    found = EXTRACTORS.get(name)
    if found is None:
        raise UserError(f"--extractor {text}: unknown{nearest(name, spellings())}; there are {', '.join(spellings())}")
    if bool(colon) != bool(argument) or (argument and not found.argument):
        takes = f"{name}:{found.argument[1]}" if found.argument else name
        raise UserError(f"--extractor {text}: expected {takes}")
    return found, next(iter(found.presets), None), argument or None


def _option(field: str) -> str:
    return "--" + field.replace("_", "-")
