"""YAML -> one immutable `Config`.

    load_config("configs/x.yaml", ["opt.epochs=3"])    defaults <- _base_ files <- the file <- --set, then checked
    from_dict(values)                                  the same from a plain dict (a checkpoint's saved config)
    with_overrides(config, ["opt.epochs=3"])           a configuration changed by --set
    dump_yaml / dump_text / to_dict / config_diff      the resolved configuration, out again

Every error is one `UserError` that names the file, the dotted key, the value and what to write instead.  The keys
themselves, their types and defaults are in `libs.core.schema`; relations between keys in `libs.core.checks`.
"""
from __future__ import annotations

import dataclasses
import os
import pprint
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from libs.core.checks import check_relations, check_trainable
from libs.core.coerce import FrozenDict, coerce, field_types, out_of_bounds
from libs.core.errors import UserError, nearest, note, shown
from libs.core.files import read_text
from libs.core.schema import Config
from libs.core.yaml_text import dump, parse

BASE = "_base_"
Settings = dict[str, tuple[Any, str]]  # dotted key -> (raw value, where it was written)


def load_config(path: str | os.PathLike, overrides: Sequence[str] = (), check: bool = True) -> Config:
    """The checked configuration of one YAML file; `check` as in `from_dict`.

    Layers, later ones win: the schema's defaults, the files named by `_base_` (a path or a list, relative to the file that
    names them), the file itself, `overrides` ("dotted.key=value", the value in YAML).  Mappings merge, lists are replaced;
    an empty section sets nothing.  Nothing of the result is shared with another result, and nothing of it can change.

    Raises UserError for an unreadable file, YAML mistakes (duplicate keys included), unknown keys, wrong types, values out
    of bounds and impossible combinations.
    """
    path = Path(path)
    settings: Settings = {}
    _absorb_file(settings, path, ())
    for override in overrides:
        _absorb_override(settings, override, str(path))
    config = _build(settings, str(path), check)
    if check:
        check_trainable(config, lambda dotted: _written(settings, dotted, str(path)))
    return config


def from_dict(values: Mapping[str, Any], source: str = "config", check: bool = True) -> Config:
    """The configuration of a nested dict in the layout of `to_dict`; `source` names it in messages.

    `check=False` leaves out the relations between keys (types and bounds are always checked).  Raises UserError.
    """
    if not isinstance(values, Mapping):
        raise UserError(f"{source}: holds {_show(values)}, not a configuration")
    settings: Settings = {}
    _absorb(settings, values, Config, "", source, source)
    return _build(settings, source, check)


def with_overrides(config: Config, overrides: Sequence[str]) -> Config:
    """The configuration with `overrides` ("dotted.key=value") on top, checked again; raises UserError as `load_config`."""
    settings: Settings = {}
    _absorb(settings, to_dict(config), Config, "", config.source, config.source)
    for override in overrides:
        _absorb_override(settings, override, config.source)
    return _build(settings, config.source, True)


def to_dict(config: Config) -> dict[str, Any]:
    """Nested plain dicts and lists with every key of the schema: a copy, in the schema's order."""
    return {f.name: _plain(getattr(config, f.name)) for f in dataclasses.fields(config) if not f.metadata.get("internal")}


def dump_yaml(config: Config) -> str:
    """The full resolved configuration as YAML; `load_config` of that text gives an equal `Config`."""
    return dump(to_dict(config))


def dump_text(config: Config) -> str:
    """The published config.txt: the resolved dict pretty-printed, with the keys that the model takes from the data set."""
    values = to_dict(config)
    values["model"] |= {"input_dim": _plain(config.model_input_dim), "num_classes": config.dataset.num_classes,
                        "max_seq_len": config.dataset.max_seq_len}
    return pprint.pformat(values) + "\n"


def config_diff(a: Config, b: Config) -> dict[str, tuple[Any, Any]]:
    """Dotted keys whose values differ -> (value in a, value in b), in the schema's order."""
    flat_a, flat_b = _flat(a), _flat(b)
    return {k: (flat_a[k], flat_b[k]) for k in flat_a if flat_a[k] != flat_b[k]}


def resolve_device(config: Config, process: int = 0, processes: int = 1) -> str:
    """The torch device name of `config.devices`: "cpu" or "cuda:N", for process number `process` of the `processes` that
    torchrun has started on this machine.

    `auto` is the first CUDA device, or the CPU with one line on stderr that says so.  Of several processes each gets a CUDA
    device of its own: that of the list, or by its number.  Raises UserError when a CUDA device is asked for that this machine
    does not have, and when devices and processes do not fit.
    """
    device = config.devices[0]
    if device == "cpu":
        return device
    import torch  # late, so that reading a configuration needs no torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "auto" and not count:
        note("devices: auto: no CUDA device here, running on the CPU")
        return "cpu"
    chosen, index = _gpu_of(config, process, processes, count)
    if index >= count:
        have = f"this machine has {count} (cuda:0 to cuda:{count - 1})" if count else "no CUDA device is available here"
        remedy = "--set devices=cpu" + (" or --set devices=cuda:0" if count else "")
        raise UserError(f"{config.source}: devices: {chosen!r}, but {have}; use {remedy}")
    return f"cuda:{index}"


def _gpu_of(config: Config, process: int, processes: int, count: int) -> tuple[str, int]:
    """The entry of `devices` that a process uses and the number of its GPU; UserError if devices and processes do not fit."""
    device, listed = config.devices[0], len(config.devices)
    if listed > 1:
        if listed != processes:
            several = f"{processes} processes" if processes > 1 else "one process"
            raise UserError(f"{config.source}: devices: names {listed} devices, but on this machine runs {several}, and a "
                            f"process drives one; start torchrun --nproc_per_node={listed} train.py ..., or use --set "
                            f"devices={device}")
        return config.devices[process], int(config.devices[process].partition(":")[2])
    if processes == 1:
        return device, int(device.partition(":")[2] or 0)
    if device not in ("auto", "cuda", "cuda:0"):
        raise UserError(f"{config.source}: devices: {device!r} is one device, but torchrun has started {processes} processes on "
                        "this machine; use devices: cuda, which gives each its own, or list one per process")
    if 0 < count < processes:
        raise UserError(f"{config.source}: devices: {device!r}: torchrun has started {processes} processes on this machine, "
                        f"which has {count} GPU{'s' * (count > 1)}; use --nproc_per_node={count}, or --set devices=cpu")
    return device, process


def _absorb_file(settings: Settings, path: Path, chain: tuple[Path, ...]) -> None:
    """Add a file's bases, then the file itself; `chain` is the way from the file asked for to this one."""
    top = str(chain[0] if chain else path)
    if os.path.realpath(path) in [os.path.realpath(p) for p in chain]:
        way = " -> ".join(str(p) for p in (*chain, path))
        raise UserError(f"{top}: {BASE}: files inherit from each other in a circle ({way}); remove one of these {BASE} lines")
    content = read_text(path, "configuration file") if not chain else _read_base(path, chain[-1])
    values = parse(content, str(path))
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise UserError(f"{path}: holds {_show(values)}; a configuration maps keys to values, e.g. 'opt: {{epochs: 30}}'")
    bases = values.pop(BASE, None)
    bases = [] if bases is None else bases if isinstance(bases, list) else [bases]
    for base in bases:
        if not isinstance(base, str) or not base:
            raise UserError(f"{path}: {BASE}: {_show(base)} is not a path; write one relative to this file, or a list of them")
        _absorb_file(settings, path.parent / base, (*chain, path))
    _absorb(settings, values, Config, "", str(path), top)


def _read_base(path: Path, child: Path) -> str:
    try:
        return read_text(path, "configuration file")
    except UserError as error:
        raise UserError(f"{child}: {BASE}: {error} (paths are relative to the file that names them)") from error


def _absorb_override(settings: Settings, override: str, top: str) -> None:
    name, equals, text = override.partition("=")
    name = name.strip()
    if not equals or not name:
        raise UserError(f"--set {override}: expected key=value with a dotted key, e.g. --set opt.epochs=10")
    value: Any = parse(text, f"--set {override}")
    for part in reversed(name.split(".")):
        value = {part: value}
    _absorb(settings, value, Config, "", f"--set {override}", top)


def _absorb(settings: Settings, values: Mapping, cls: type, prefix: str, source: str, top: str) -> None:
    """Add one layer: every key must exist in the schema, even where a later layer replaces its value."""
    types = field_types(cls)
    for name, value in values.items():
        dotted = f"{prefix}{name}"
        where = _where(dotted, source, top)
        if name == BASE:
            raise UserError(f"{where}: {BASE} belongs at the top of a configuration file")
        if not isinstance(name, str) or name not in types:
            brief = str(name) if len(str(name)) <= 80 else str(name)[:77] + "..."
            where, guess = _where(prefix + brief, source, top), _suggest(brief, list(types), prefix)
            raise UserError(f"{where}: unknown key{guess}; docs/configuration.md lists all keys")
        if not dataclasses.is_dataclass(types[name]):
            before = settings.get(dotted, (None, ""))[0]
            merges = isinstance(value, Mapping) and isinstance(before, Mapping)
            settings[dotted] = ({**before, **value} if merges else value, source)
        elif isinstance(value, Mapping):
            _absorb(settings, value, types[name], dotted + ".", source, top)
        elif value is not None:
            example = next(iter(field_types(types[name])))
            raise UserError(f"{where}: {_show(value)} is not a section; write its keys below it, e.g. {name}: {{{example}: ...}}")


def _build(settings: Settings, top: str, check: bool) -> Config:
    def where(dotted: str) -> str:
        return _written(settings, dotted, top)

    config = _section(settings, Config, "", where)
    lower = {name: tuple(s.lower() for s in getattr(config, name)) for name in ("train_split", "val_split", "unlabelled_split")}
    config = dataclasses.replace(config, source=top, **lower)
    if check:
        check_relations(config, where)
    return config


def _section(settings: Settings, cls: type, prefix: str, where: Callable[[str], str]) -> Any:
    given: dict[str, Any] = {}
    types = field_types(cls)
    for field in dataclasses.fields(cls):
        if field.name not in types:
            continue
        dotted = prefix + field.name
        if dataclasses.is_dataclass(types[field.name]):
            given[field.name] = _section(settings, types[field.name], dotted + ".", where)
        elif dotted in settings:
            raw = settings[dotted][0]
            try:
                value = coerce(raw, types[field.name])
            except ValueError as error:
                raise UserError(f"{where(dotted)}: {_show(raw)}: expected {error}") from error
            if problem := out_of_bounds(value, field.metadata):
                raise UserError(f"{where(dotted)}: {_show(raw)}: {problem}")
            given[field.name] = value
    return cls(**given)


def _written(settings: Settings, dotted: str, top: str) -> str:
    return _where(dotted, settings[dotted][1] if dotted in settings else "", top)


def _where(dotted: str, source: str, top: str) -> str:
    """'file: key', and where the key was written when that is not the file itself."""
    if source == top:
        return f"{top}: {dotted}"
    if not source:
        return f"{top}: {dotted} (default)"
    return f"{top}: {dotted} (from {source if source.startswith('--set') else 'its base ' + source})"


def _suggest(name: str, siblings: list[str], prefix: str) -> str:
    everywhere = list(_flat(Config()))
    if "." in name:
        section, _, key = name.partition(".")
        return f" (dots are for --set; write it as a section, {section}: {{{key}: ...}})"
    moved = [k for k in everywhere if k.rpartition(".")[2] == name.rpartition(".")[2]]
    if moved:
        return f" (did you mean {' or '.join(repr(k) for k in moved)}?)"
    return nearest(name, siblings) or nearest(prefix + name, everywhere)


def _flat(config: Any, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if dataclasses.is_dataclass(value):
            flat |= _flat(value, prefix + f.name + ".")
        elif not f.metadata.get("internal"):
            flat[prefix + f.name] = value
    return flat


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    if isinstance(value, FrozenDict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, tuple) else value


def _show(value: Any) -> str:
    return {None: "null", True: "true", False: "false"}[value] if value is None or isinstance(value, bool) else shown(value)
