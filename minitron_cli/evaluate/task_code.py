"""Code that a task would run: found by reading its YAML, before lm-eval loads it. Runs nothing.

Tasks of lm-eval and of the suites are trusted like the package that they come with, unless they run what the model
writes. Any other task runs code only if the user allows it: functions and classes that its YAML names, itself or
through files that it includes, and metrics that lm-eval would fetch from the hub or a directory.
"""

import contextlib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import lm_eval.utils
import yaml
from jinja2.sandbox import ImmutableSandboxedEnvironment
from lm_eval.api.registry import metric_registry
from lm_eval.tasks._index import Entry, Kind

from minitron_cli.errors import InputError, shown

STANDARD_TAGS = "tag:yaml.org,2002:"
UNPICKLED = ("pandas",)  # formats of `datasets` that run code which is in the data
ADVICE = "leave it out, or run `minitron eval --allow-code-execution` on a machine that holds nothing of value"


class CodeInTask(InputError):
    """A task would run code, which is not allowed; `found` says where and what it is."""

    def __init__(self, found: str) -> None:
        super().__init__(f"{found}: {ADVICE}")
        self.found = found


def refuse_code(index: Mapping[str, Entry], name: str, trusted: Collection[Path]) -> None:
    """Raise InputError if a task, or a member of a group or tag, names code that is not in a `trusted` directory."""
    for entry in entries_of(index, name):
        if entry.yaml_path is None:
            continue
        for place, code in _code_of(entry.yaml_path, trusted, set()):
            raise CodeInTask(f"task {entry.name!r}: {place} names code, {code}")


def refuse_model_code(index: Mapping[str, Entry], name: str) -> None:
    """Raise InputError if a task, or a member of a group or tag, runs code that the model writes."""
    for entry in entries_of(index, name):
        if (entry.cfg or {}).get("unsafe_code"):
            raise CodeInTask(f"task {entry.name!r} runs code that the model writes")


def entries_of(index: Mapping[str, Entry], name: str) -> list[Entry]:
    """Entry of a task, group or tag, and those of its members, of their members, and so on."""
    found: dict[str, Entry] = {}
    waiting = [name]
    while waiting:
        entry = index.get(one := waiting.pop())
        if entry is not None and one not in found:
            found[one] = entry
            waiting += _members(entry)
    return list(found.values())


def _members(entry: Entry) -> list[str]:
    if entry.kind is Kind.TAG:
        return sorted(entry.tags)
    return _named((entry.cfg or {}).get("task")) if entry.kind is Kind.GROUP else []


def _named(children: Any) -> list[str]:
    """Names of a group's members, which may be given with changes, or as groups of their own."""
    found: list[str] = []
    for child in children if isinstance(children, list) else []:
        if isinstance(child, str):
            found.append(child)
        elif isinstance(child, dict):
            found += [child[key] for key in ("task", "group") if isinstance(child.get(key), str)]
            found += _named(child.get("task"))
    return found


def _code_of(path: Path, trusted: Collection[Path], seen: set[Path]) -> Iterator[tuple[str, str]]:
    """(file and line, code) of everything that a YAML and the files that it includes would run."""
    path = path.resolve()
    if path in seen or any(path.is_relative_to(directory.resolve()) for directory in trusted):
        return
    seen.add(path)
    with path.open("rb") as file:
        root = yaml.compose(file, Loader=yaml.SafeLoader)
    for node, key in _nodes(root):
        if code := _code(node, key):
            yield f"{path}:{node.start_mark.line + 1}", code
        if key == "include" and isinstance(node, yaml.ScalarNode):
            yield from _code_of(path.parent / node.value, trusted, seen)


def _nodes(root: yaml.Node | None) -> Iterator[tuple[yaml.Node, str]]:
    """Every node of a document, once with each key that it or the list around it stands under.

    An alias puts one node under several keys.
    """
    seen, waiting = set[tuple[int, str]](), [(root, "")]
    while waiting:
        node, key = waiting.pop()
        if node is None or (id(node), key) in seen:
            continue
        seen.add((id(node), key))
        yield node, key
        if isinstance(node, yaml.SequenceNode):
            waiting += [(child, key) for child in node.value]
        elif isinstance(node, yaml.MappingNode):
            waiting += [(value, str(name.value)) for name, value in node.value]
            waiting += [(name, "") for name, _ in node.value]


def _code(node: yaml.Node, key: str) -> str | None:
    """The code that a node makes lm-eval run, in words; None if there is none."""
    value = node.value if isinstance(node, yaml.ScalarNode) else ""
    if not node.tag.startswith(STANDARD_TAGS) or node.tag.startswith(f"{STANDARD_TAGS}python"):
        return f"{node.tag} {value}".strip()
    if key == "class":
        return f"class: {value}"
    if key == "hf_evaluate" and value.lower() in ("true", "yes", "on"):
        return "a metric of the hub (hf_evaluate)"
    if key == "metric" and value and value not in metric_registry:
        return f"the metric {shown(value)}, which is none of lm-eval's"
    if key == "dataset_path" and value in UNPICKLED:
        return f"pickled data (dataset_path: {value})"
    return None


@contextlib.contextmanager
def templates(*, allow_code: bool) -> Iterator[None]:
    """Let templates in tasks reach nothing but the item that they are given, unless code is allowed."""
    before = lm_eval.utils.env
    if not allow_code:
        lm_eval.utils.env = _sandbox(before)
    try:
        yield
    finally:
        lm_eval.utils.env = before


def _sandbox(like: Any) -> ImmutableSandboxedEnvironment:
    env = ImmutableSandboxedEnvironment(
        loader=like.loader, undefined=like.undefined, keep_trailing_newline=like.keep_trailing_newline
    )
    env.filters |= like.filters
    return env
