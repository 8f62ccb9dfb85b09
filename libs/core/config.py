"""YAML files -> one immutable `Config`.

    load_config("configs/x.yaml", ["opt.epochs=3"])    defaults <- _base_ files <- the file <- --set, then checked
    from_dict(values)                                  the same from a plain dict (the config in a checkpoint)
    with_overrides(config, ["opt.epochs=3"])           a configuration changed by --set
    dump_yaml / dump_text / to_dict / config_diff      a resolved configuration as YAML, text, dict or differences

Every error is a `UserError` with the file, the dotted key, the value and the remedy.  `libs.core.schema` declares the keys with
their types and defaults; `libs.core.relations` checks the relations between keys.

Why not pydantic: a trial on the sections dataset, opt and distill would have shortened libs/core by 5 % at most.  Layers, the
origin of every value, relations between keys and the documentation remain our code, and pydantic's errors (one per type of a
union) need about as many lines of translation as coerce.py has.  It adds 0.11 s to the 0.07 s of CPU time of this import, and
it converts a number as a modality's name to text instead of refusing it.  Its JSON schema takes 40 lines in config_docs.py.
"""
from __future__ import annotations

import dataclasses
import os
import pprint
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from libs.core.coerce import coerce, field_types, is_record
from libs.core.errors import UserError, nearest, shown
from libs.core.files import read_text
from libs.core.gone import without_gone
from libs.core.published import ELSEWHERE, in_our_terms
from libs.core.relations.checks import check_relations, check_trainable
from libs.core.schema import Config
from libs.core.yaml_text import dump, parse

BASE = "_base_"
FOLD = "{fold}"  # in any text of a configuration: the value of the key `fold`
SPLITS = ("train_split", "val_split", "unlabelled_split")


def load_config(path: str | os.PathLike, overrides: Sequence[str] = (), check: bool = True) -> Config:
    """The checked configuration of one YAML file; `check` as in `from_dict`.

    `{fold}` in a text is replaced by the key `fold`.
    Layers, later ones win: the schema's defaults, the files named by `_base_` (a path or a list, relative to the file that
    names them), the file itself, `overrides` ("dotted.key=value", the value in YAML).  Mappings are merged, lists replaced;
    an empty section sets nothing.

    Raises UserError for unreadable files, YAML mistakes (duplicate keys included), unknown keys, wrong types, values out
    of bounds, impossible combinations and combinations that training refuses.
    """
    layers = _Layers(str(path))
    layers.add_file(Path(path))
    for override in overrides:
        layers.add_override(override)
    config = layers.build(check)
    if check:
        check_trainable(config, layers.where)
    return config


def from_dict(values: Mapping[str, Any], source: str = "config", check: bool = True) -> Config:
    """The configuration of a nested dict in the layout of `to_dict`; `source` names it in messages.

    `check=False` leaves out the relations between keys (types and bounds are always checked).  Raises UserError.
    """
    if not isinstance(values, Mapping):
        raise UserError(f"{source}: holds {_show(values)}, not a configuration")
    layers = _Layers(source)
    layers.add(without_gone(values), source)
    return layers.build(check)


def with_overrides(config: Config, overrides: Sequence[str]) -> Config:
    """The configuration with `overrides` ("dotted.key=value") on top, checked again; raises UserError as `from_dict`."""
    layers = _Layers(config.source)
    layers.add(to_dict(config), config.source)
    for override in overrides:
        layers.add_override(override)
    return layers.build(check=True)


def to_dict(config: Any) -> dict[str, Any]:
    """Nested plain dicts and lists with every key of a configuration or section: a copy, in the schema's order."""
    return {name: plain(getattr(config, name)) for name in field_types(config.__class__)}


def dump_yaml(config: Config) -> str:
    """The full resolved configuration as YAML; `load_config` of that text gives an equal `Config`."""
    return dump(to_dict(config))


def dump_text(config: Config) -> str:
    """The published config.txt: the resolved dict pretty-printed, with the keys that the model takes from the dataset."""
    values = to_dict(config)
    values["model"] |= {"input_dim": plain(config.model_input_dim), "num_classes": config.dataset.num_classes,
                        "max_seq_len": config.dataset.max_seq_len}
    return pprint.pformat(values) + "\n"


def config_diff(a: Config, b: Config) -> dict[str, tuple[Any, Any]]:
    """Dotted keys whose values differ -> (value in a, value in b), in the schema's order."""
    flat_a, flat_b = _flat(a), _flat(b)
    return {k: (flat_a[k], flat_b[k]) for k in flat_a if flat_a[k] != flat_b[k]}


class _Layers:
    """Raw values by dotted key, each with the file or override that set it; later layers win."""

    def __init__(self, top: str):
        self.top = top  # the requested file; messages start with it
        self.raw: dict[str, tuple[Any, str]] = {}

    def add_file(self, path: Path, chain: tuple[Path, ...] = ()) -> None:
        """Add a file's bases, then the file itself; `chain` holds the files from the requested one to this one."""
        if os.path.realpath(path) in [os.path.realpath(p) for p in chain]:
            cycle = " -> ".join(str(p) for p in (*chain, path))
            raise UserError(f"{self.top}: {BASE}: files inherit from each other in a circle ({cycle}); remove one of these "
                            f"{BASE} lines")
        try:
            content = read_text(path, "configuration file")
        except UserError as error:
            if not chain:
                raise
            raise UserError(f"{chain[-1]}: {BASE}: {error} (paths are relative to the file that names them)") from error
        values = parse(content, str(path))
        values = {} if values is None else values
        if not isinstance(values, dict):
            raise UserError(f"{path}: holds {_show(values)}; a configuration maps keys to values, e.g. 'opt: {{epochs: 30}}'")
        bases = values.pop(BASE, None)
        for base in bases if isinstance(bases, list) else [] if bases is None else [bases]:
            if not isinstance(base, str) or not base:
                raise UserError(f"{path}: {BASE}: {_show(base)} is not a path; write one relative to this file, or a list")
            self.add_file(path.parent / base, (*chain, path))
        self.add(values, str(path))

    def add_override(self, override: str) -> None:
        """Add "dotted.key=value", the value in YAML."""
        name, equals, text = override.partition("=")
        name = name.strip()
        if not equals or not name:
            raise UserError(f"--set {override}: expected key=value with a dotted key, e.g. --set opt.epochs=10")
        value = parse(text, f"--set {override}")
        for part in reversed(name.split(".")):
            value = {part: value}
        self.add(value, f"--set {override}")

    def add(self, values: Mapping, source: str, cls: type = Config, prefix: str = "") -> None:
        """Add one layer; every key must exist in the schema, even if a later layer replaces its value."""
        kinds = field_types(cls)
        for name, value in values.items():
            dotted = f"{prefix}{name}"
            if name == BASE:
                raise UserError(f"{self._place(dotted, source)}: {BASE} belongs at the top of a configuration file")
            if not isinstance(name, str) or name not in kinds:
                brief = str(name) if len(str(name)) <= 80 else str(name)[:77] + "..."
                raise UserError(f"{self._place(prefix + brief, source)}: unknown key{_suggest(brief, list(kinds), prefix)}; "
                                "docs/configuration.md lists all keys")
            if not is_record(kinds[name]):
                before = self.raw.get(dotted, (None, ""))[0]
                merges = isinstance(value, Mapping) and isinstance(before, Mapping)
                self.raw[dotted] = ({**before, **value} if merges else value, source)
            elif isinstance(value, Mapping):
                self.add(value, source, kinds[name], dotted + ".")
            elif value is not None:
                example = next(iter(field_types(kinds[name])))
                raise UserError(f"{self._place(dotted, source)}: {_show(value)} is not a section; write its keys below it, e.g. "
                                f"{name}: {{{example}: ...}}")

    def build(self, check: bool) -> Config:
        """The configuration: all layers over the defaults of its `model_name`; `check`: check the relations between keys."""
        self.raw = in_our_terms(self.raw)
        config = self._of_fold(self._section(Config, ""), check)
        lower: dict[str, Any] = {name: tuple(s.lower() for s in getattr(config, name)) for name in SPLITS}
        config = dataclasses.replace(config, source=self.top, **lower)
        if check:
            check_relations(config, self.where)
        return config

    def _of_fold(self, config: Config, check: bool) -> Config:
        """The configuration with the number of its fold in place of `FOLD`; without `check` a missing number is accepted."""
        places = [dotted for dotted, (value, _) in self.raw.items() if FOLD in str(value)]
        if not places and self.raw.get("fold", (None, ""))[1].startswith("--set"):
            raise UserError(f"{self.where('fold')}: changes nothing, since no text of the configuration holds {FOLD} (a trained "
                            "checkpoint's is that of its fold); leave it, or --folds, out, or write e.g. dataset.json_file: "
                            f"./data/my/fold{FOLD}.json in the file")
        if config.fold is None and places and check:
            raise UserError(f"{self.where(places[0])}: {_show(self.raw[places[0]][0])}: {FOLD} stands for the number of a fold, "
                            "and none is chosen; choose one with --set fold=1 (or fold: 1 in the file), or run several with "
                            "--folds 1 2 3 (tools/run_seeds.py, tools/run_distill.py)")
        if config.fold is None or not places:
            return config
        self.raw |= {dotted: (_filled(self.raw[dotted][0], str(config.fold)), self.raw[dotted][1]) for dotted in places}
        return self._section(Config, "")

    def _section(self, cls: type, prefix: str) -> Any:
        given: dict[str, Any] = {}
        fields = {f.name: f for f in dataclasses.fields(cls)}
        for name, kind in field_types(cls).items():
            dotted = prefix + name
            if is_record(kind):
                given[name] = self._section(kind, dotted + ".")
            elif dotted in self.raw:
                raw = self.raw[dotted][0]
                try:
                    given[name] = coerce(raw, kind, fields[name].metadata)
                except ValueError as error:
                    raise UserError(f"{self.where(dotted)}: {_show(raw)}: {error}") from error
        return cls(**given)

    def where(self, dotted: str) -> str:
        """'file: key', followed by the origin of the value if that is not the file itself."""
        return self._place(dotted, self.raw[dotted][1] if dotted in self.raw else "")

    def _place(self, dotted: str, source: str) -> str:
        if source == self.top:
            return f"{self.top}: {dotted}"
        if not source:
            return f"{self.top}: {dotted} (default)"
        return f"{self.top}: {dotted} (from {source if source.startswith('--set') else 'its base ' + source})"


def _suggest(name: str, siblings: list[str], prefix: str) -> str:
    everywhere = list(_flat(Config()))
    if prefix + name in ELSEWHERE:
        return f" of a published program; {ELSEWHERE[prefix + name]}"
    if "." in name:
        section, _, key = name.partition(".")
        return f" (dots are for --set; write it as a section, {section}: {{{key}: ...}})"
    moved = [k for k in everywhere if k.rpartition(".")[2] == name]
    if moved:
        return f" (did you mean {' or '.join(repr(k) for k in moved)}?)"
    return nearest(name, siblings) or nearest(prefix + name, everywhere)


def _flat(config: Any, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, kind in field_types(config.__class__).items():
        value = getattr(config, name)
        flat |= _flat(value, f"{prefix}{name}.") if is_record(kind) else {f"{prefix}{name}": value}
    return flat


def plain(value: Any) -> Any:
    """A value as plain dicts and lists, for YAML and JSON."""
    if is_record(value):
        return to_dict(value)
    if isinstance(value, Mapping):
        return {k: plain(v) for k, v in value.items()}
    return [plain(v) for v in value] if isinstance(value, tuple) else value


def _filled(value: Any, fold: str) -> Any:
    """A raw value with the number of the fold in its texts."""
    if isinstance(value, Mapping):
        return {name: _filled(entry, fold) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_filled(entry, fold) for entry in value]
    return value.replace(FOLD, fold) if isinstance(value, str) else value


def _show(value: Any) -> str:
    return {None: "null", True: "true", False: "false"}[value] if value is None or isinstance(value, bool) else shown(value)
