"""YAML as kubectl reads it, with the places of mistakes; and written so that kubectl reads the same.

PyYAML follows YAML 1.1, kubectl's parser Go's mixture of 1.1 and 1.2: there `1e-4` is a number, and a date
and `12:30` are text. Source: `resolve.go` of go.yaml.in/yaml/v2, which sigs.k8s.io/yaml uses.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import cast

import yaml
from pydantic import JsonValue
from yaml.nodes import CollectionNode, MappingNode, Node, ScalarNode

from finetune_api.failure import FailureClass, FineTuneError

Place = tuple[str, ...]
"""The keys that lead to a value: `("spec", "lora_config", "r")`. Lists are passed through."""

_TAG = "tag:yaml.org,2002:"
_SCALARS = [
    (
        "bool",
        r"y|Y|yes|Yes|YES|n|N|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF",
        "yYnNtTfFoO",
    ),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("merge", r"<<", "<"),
    (
        "int",
        r"[-+]?(0[0-7_]*|0b[01][01_]*|0o[0-7][0-7_]*|0x[0-9a-fA-F][0-9a-fA-F_]*|[1-9][0-9_]*)",
        "-+0123456789",
    ),
    (
        "float",
        r"[-+]?(\.[0-9_]+|[0-9][0-9_]*(\.[0-9_]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
]
"""Plain scalars that are not text: tag, form, first characters. The first that fits counts."""


class _Loader(yaml.SafeLoader):
    def construct_yaml_bool(self, node: ScalarNode) -> bool:
        return self.construct_scalar(node).lower() in ("y", "yes", "true", "on")


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, _data: object) -> bool:
        return True

    def represent_text(self, text: str) -> ScalarNode:
        # PyYAML's other styles fold Unicode's line breaks into spaces.
        return self.represent_scalar(
            f"{_TAG}str", text, style='"' if re.search("[\x85\u2028\u2029]", text) else None
        )


_Dumper.add_representer(str, _Dumper.represent_text)
_Loader.add_constructor(f"{_TAG}bool", _Loader.construct_yaml_bool)
for _class in (_Loader, _Dumper):
    _class.yaml_implicit_resolvers = {}
    for _tag, _form, _first in _SCALARS:
        _class.add_implicit_resolver(f"{_TAG}{_tag}", re.compile(f"^({_form})$"), list(_first))


def dump(document: Mapping[str, JsonValue]) -> str:
    """The document as YAML, keys in their order, without anchors."""
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def parse(
    text: str, source: str, decides_nothing: Callable[[Place], bool] = lambda _: False
) -> tuple[dict[str, JsonValue], list[str]]:
    """The map that a text holds, and remarks about keys that are given twice.

    Public LLMForge files have such keys. They have the same value, or are at a place of which
    `decides_nothing` is true.

    Raises FineTuneError (InvalidSpec), with the line, for what is not YAML, not one map, or has keys that
    contradict each other.
    """
    with _explained(text, source):
        root = _only_map(text)
        problems, remarks = _keys(root, source, decides_nothing)
        if not problems:
            return cast("dict[str, JsonValue]", _value(root)), remarks
    raise FineTuneError(FailureClass.INVALID_SPEC, *problems)


def parse_value(text: str, source: str) -> JsonValue:
    """The value that a text holds, of any kind; None for an empty one.

    Raises FineTuneError (InvalidSpec) for what is not YAML, or has a key twice with different values.
    """
    with _explained(text, source):
        root = yaml.compose(text, Loader=_Loader)
        problems, _ = ([], []) if root is None else _keys(root, source, lambda _: False)
        if not problems:
            return None if root is None else cast("JsonValue", _value(root))
    raise FineTuneError(FailureClass.INVALID_SPEC, *problems)


@contextmanager
def _explained(text: str, source: str) -> Iterator[None]:
    """Raises what PyYAML finds wrong in a text as FineTuneError (InvalidSpec)."""
    try:
        yield
        return
    except yaml.MarkedYAMLError as error:
        problem = _explain(error, text, source)
    except yaml.YAMLError as error:
        problem = f"{source}: {str(error).splitlines()[0]}"
    except ValueError as error:
        problem = f"{source}: {error}"
    except RecursionError:
        problem = f"{source}: is nested too deeply"
    raise FineTuneError(FailureClass.INVALID_SPEC, problem)


def _only_map(text: str) -> MappingNode:
    roots = [node for node in yaml.compose_all(text, Loader=_Loader) if not _is_empty(node)]
    if not roots:
        raise ValueError("is empty")
    root, *others = roots
    if others:
        raise yaml.MarkedYAMLError(
            problem="a second document begins here; give each a file of its own",
            problem_mark=others[0].start_mark,
        )
    if not isinstance(root, MappingNode):
        raise ValueError(
            f"must be a map of fields, is {'a list' if isinstance(root, CollectionNode) else 'a text'}"
        )
    return root


def _is_empty(node: Node) -> bool:
    return isinstance(node, ScalarNode) and node.tag == f"{_TAG}null"


def _value(node: Node) -> object:
    loader = _Loader("")
    try:
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _explain(error: yaml.MarkedYAMLError, text: str, source: str) -> str:
    mark = error.problem_mark or error.context_mark
    where = f"{source}:{mark.line + 1}:{mark.column + 1}" if mark else source
    hint = ""
    if "'\\t'" in str(error.problem):
        hint = "; indent with spaces"
    elif mark and any('"""' in line for line in text.splitlines()[mark.line : mark.line + 1]):
        hint = "; YAML has no triple quotes, write one on each side"
    return f"{where}: {error.problem or error.context}{hint}"


def _keys(root: Node, source: str, decides_nothing: Callable[[Place], bool]) -> tuple[list[str], list[str]]:
    """Problems and remarks about keys.

    One given twice is a remark where it has one value or decides nothing, else a problem.
    """
    problems: list[str] = []
    remarks: list[str] = []
    for place, node in _maps(root, decides_nothing):
        values: dict[str, Node] = {}
        for key, value in node.value:
            where = f"{source}:{key.start_mark.line + 1}"
            if not isinstance(key, ScalarNode):
                problems.append(f"{where}: a key must be a text, is a list or a map")
            elif key.tag not in (f"{_TAG}str", f"{_TAG}merge"):
                problems.append(f"{where}: a key must be a text, is {key.value}; put it in quotes")
            elif key.value not in values:
                values[key.value] = value
            elif repr(_value(values[key.value])) == repr(_value(value)):
                remarks.append(f"{where}: {key.value} is given twice with the same value")
            elif decides_nothing((*place, key.value)):
                remarks.append(
                    f"{where}: {key.value} is given twice with different values; neither has an effect"
                )
            else:
                problems.append(f"{where}: {key.value} is given twice with different values; keep one")
    return problems, remarks


def _maps(root: Node, decides_nothing: Callable[[Place], bool]) -> Iterator[tuple[Place, MappingNode]]:
    """All maps in a document with their places, each once: an anchor may be used often, even inside itself.

    One that is used at a place that decides nothing and at another comes for both.
    """
    todo: list[tuple[Place, Node]] = [((), root)]
    visited: set[tuple[int, bool]] = set()
    while todo:
        place, node = todo.pop()
        if (visit := (id(node), decides_nothing(place))) in visited:
            continue
        visited.add(visit)
        if isinstance(node, MappingNode):
            yield place, node
            todo += [((*place, str(key.value)), value) for key, value in reversed(node.value)]
        elif isinstance(node, CollectionNode):
            todo += [(place, value) for value in reversed(node.value)]
