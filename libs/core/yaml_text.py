"""YAML text <-> plain Python values.

Differences from PyYAML's safe loader: `1e-4` is a number; `1:30`, `007` and `2024-01-01` are text; a duplicate key is an error
with its line; huge texts, and small ones that expand to many values through aliases, are refused.  Writing follows the same
rules, so that the output reads back equal.
"""
from __future__ import annotations

import re
from typing import Any

import yaml

from libs.core.errors import UserError

EXPONENT = r"[eE][-+]?[0-9]+"
FLOAT = rf"[-+]?(\.[0-9]+|[0-9][0-9_]*\.[0-9]*)({EXPONENT})?|[-+]?[0-9]+{EXPONENT}|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
INT = r"[-+]?(0|[1-9][0-9_]*)|0x[0-9a-fA-F]+"
MAX_CHARACTERS = 1_000_000  # of a text; far above any configuration, as is MAX_VALUES
MAX_VALUES = 20_000  # after aliases are expanded
REPLACED = ("tag:yaml.org,2002:float", "tag:yaml.org,2002:int", "tag:yaml.org,2002:timestamp")


class _Loader(yaml.SafeLoader):
    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for name, _ in node.value:
            if not isinstance(name, yaml.ScalarNode) or name.value == "<<":
                continue
            if name.value in lines:
                problem = f"the key {name.value!r} is set twice, first in line {lines[name.value]}"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=name.start_mark)
            lines[name.value] = name.start_mark.line + 1
        return node


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


_Loader.yaml_implicit_resolvers = {first: [(tag, regexp) for tag, regexp in resolvers if tag not in REPLACED]
                                   for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()}
for _cls in (_Loader, _Dumper):  # the dumper keeps PyYAML's rules too, to quote anything that a reader could take for a number
    _cls.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(f"^(?:{INT})$"), list("-+0123456789"))
    _cls.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(f"^(?:{FLOAT})$"), list("-+0123456789."))


def _float(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> float:
    text = loader.construct_scalar(node).lower().replace("_", "")
    return float(text.replace(".inf", "inf").replace(".nan", "nan"))


_Loader.add_constructor("tag:yaml.org,2002:float", _float)
_Dumper.add_representer(list, lambda dumper, data: dumper.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=True))


def parse(text: str, where: str) -> Any:
    """The value of a YAML text (None if empty); UserError with `where`, the line and the mistake."""
    if len(text) > MAX_CHARACTERS:
        raise UserError(f"{where}: not a configuration ({len(text)} characters); check that it is the file you mean")
    try:
        loader = _Loader(text)  # a SafeLoader: builds plain values only
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            if _expanded_size(node, {}) > MAX_VALUES:
                raise ValueError(f"more than {MAX_VALUES} values, or an alias inside what it names")
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1} column {mark.column + 1}: " if mark else ""
        raise UserError(f"{where}: not valid YAML ({place}{error.problem or error.context}); correct that place") from error
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, LookupError, OverflowError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{where}: not valid YAML ({reason}); correct that place") from error
    except RecursionError as error:
        raise UserError(f"{where}: not valid YAML (nested too deeply); a configuration has sections and keys, no more") from error


def _expanded_size(node: yaml.Node, sizes: dict[int, int]) -> int:
    """The number of values of a node after expanding aliases; above MAX_VALUES for an alias inside its own anchor."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in sizes:
        sizes[id(node)] = MAX_VALUES + 1  # until it is counted
        parts = node.value if isinstance(node, yaml.SequenceNode) else [part for pair in node.value for part in pair]
        sizes[id(node)] = 1 + sum(_expanded_size(part, sizes) for part in parts)
    return sizes[id(node)]


def dump(values: Any) -> str:
    """`values` (plain dicts, lists, strings, numbers) as YAML: one key per line, lists inline, order kept."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=130, default_flow_style=False)
