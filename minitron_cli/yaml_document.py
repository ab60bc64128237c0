"""YAML documents read into specs: strict YAML 1.2, `key=value` changes, and one clear sentence for each error.

Knows no spec in particular.
"""

import copy
import difflib
import io
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from minitron_cli.errors import RecipeError
from minitron_cli.spec import Spec

MAX_BYTES = 64 << 10  # the parser takes a second for 64 kB of short values
MAX_DEPTH = 32
MAX_VALUES = 5_000

KeyPath = tuple[str | int, ...]  # path of a value: ("data", "sources", 0, "paths")
AnySpec = TypeVar("AnySpec", bound=Spec)


@dataclass(frozen=True)
class YamlDocument:
    """A mapping as written, and the line of each of its values."""

    values: Mapping[str, Any] = field(default_factory=dict)
    file: str = ""
    lines: Mapping[KeyPath, int] = field(default_factory=dict)

    def changed(self, overrides: Iterable[str]) -> "YamlDocument":
        """Copy with the values at dotted paths replaced: `distill.learning_rate=2e-4`. RecipeError for another form."""
        changed = self
        for text in overrides:
            key, equals, value = text.partition("=")
            if not equals or not key.strip():
                raise RecipeError(f"{text!r} is not a change: write key=value, such as distill.learning_rate=2e-4")
            changed = changed.with_value(_place(key.strip()), _parse(value, f"the value of {key.strip()}")[0])
        return changed

    def with_value(self, place: KeyPath, value: Any) -> "YamlDocument":
        """Copy with one value replaced; missing mappings on the path are created, names of kinds become mappings."""
        values = copy.deepcopy(dict(self.values))
        _put(values, place, value)
        lines = {at: line for at, line in self.lines.items() if at[: len(place)] != place}
        return YamlDocument(values, self.file, lines)

    def value(self, place: KeyPath) -> Any:
        """Value at a place; None if there is none."""
        found: Any = self.values
        for key in place:
            found = found.get(key) if isinstance(found, Mapping) else None
        return found

    def where(self, place: KeyPath) -> str:
        """`recipe.yaml:12: ` for a value from a file; empty for one from the command line."""
        return f"{self.file}:{self.lines[place]}: " if place in self.lines else ""


def find(name: str, shipped: Mapping[str, Path], what: str) -> Path:
    """File of this name among those that ship, else at this path. RecipeError if there is none; `what` says of what."""
    if name in shipped:
        return shipped[name]
    if Path(name).exists():
        return Path(name)
    close = difflib.get_close_matches(Path(name).name.removesuffix(".yaml"), shipped, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]}?" if close else f"give a file, or one of {', '.join(shipped)}"
    raise RecipeError(f"{what} {name!r} does not exist: {hint}")


def read(path: Path) -> YamlDocument:
    """Mapping in a YAML file. RecipeError, with the line, for invalid YAML and features that recipes do not use."""
    if not path.exists():
        raise RecipeError(f"{path} does not exist: give a recipe in YAML")
    if not path.is_file():
        raise RecipeError(f"{path} is not a regular file: give a recipe in YAML")
    if (size := path.stat().st_size) > MAX_BYTES:
        raise RecipeError(f"{path} is {size:,} bytes, and a recipe has at most {MAX_BYTES:,}: check the file")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise RecipeError(f"{path} is not UTF-8 text: save it as such") from None
    return parse(text, str(path))


def parse(text: str, file: str) -> YamlDocument:
    """Mapping in a YAML text; `file` is its name in messages."""
    value, lines = _parse(text, file)
    if not isinstance(value, dict):
        raise RecipeError(f"{file} is not a mapping: write `key: value` lines, as `minitron recipes show demo` does")
    return YamlDocument(value, file, lines)


def _parse(text: str, name: str) -> tuple[Any, dict[KeyPath, int]]:
    yaml = YAML(typ="safe", pure=True)
    try:
        _refuse_features(yaml.parse(io.StringIO(text)), name)
        node = yaml.compose(io.StringIO(text))
        if node is None:
            return None, {}
        _refuse_keys(node, name)
        return yaml.constructor.construct_document(node), dict(_lines(node))
    except RecipeError:
        raise
    except MarkedYAMLError as e:
        mark = e.problem_mark or e.context_mark
        raise RecipeError(f"{name}{f':{mark.line + 1}' if mark else ''}: {_problem(e)}; fix the line") from None
    except (YAMLError, ValueError, RecursionError) as e:
        raise RecipeError(
            f"{name} is not YAML: {str(e).strip().splitlines()[0].partition(';')[0][:120]}; fix it"
        ) from None


def _problem(error: MarkedYAMLError) -> str:
    problem = str(error.problem or error.context)
    if problem.startswith("found duplicate key"):
        return f'key "{problem.split(chr(34))[1]}" occurs twice'
    return problem


def _refuse_features(events: Iterator[Event], name: str) -> None:
    """RecipeError for features that make YAML hard to read or dangerous; no recipe needs them."""
    depth = 0
    for count, event in enumerate(events):
        if count > MAX_VALUES:
            raise RecipeError(f"{name} has more than {MAX_VALUES:,} keys and values: give patterns instead of lists")
        depth += isinstance(event, MappingStartEvent | SequenceStartEvent)
        depth -= isinstance(event, MappingEndEvent | SequenceEndEvent)
        if problem := _feature(event) or (depth > MAX_DEPTH and f"it is nested more than {MAX_DEPTH} deep; flatten it"):
            raise RecipeError(f"{name}:{event.start_mark.line + 1}: {problem}")


def _feature(event: Event) -> str | None:
    if isinstance(event, AliasEvent) or getattr(event, "anchor", None):
        return "anchors and aliases are not read; write the value out"
    if tag := getattr(event, "tag", None):
        return f"the tag {tag} is not read; remove it"
    if isinstance(event, DocumentStartEvent) and (event.version or event.tags):
        return "directives are not read; remove the line that starts with %"
    if isinstance(event, ScalarEvent) and event.value == "<<":
        return "merge keys are not read; write the values out"
    return None


def _refuse_keys(node: Node, name: str) -> None:
    """RecipeError for a key that is a list or a mapping."""
    if isinstance(node, MappingNode):
        for key, value in node.value:
            if not isinstance(key, ScalarNode):
                raise RecipeError(f"{name}:{key.start_mark.line + 1}: a key must be a word; write `key: value`")
            _refuse_keys(value, name)
    elif isinstance(node, SequenceNode):
        for value in node.value:
            _refuse_keys(value, name)


def _lines(node: Node, place: KeyPath = ()) -> Iterator[tuple[KeyPath, int]]:
    if isinstance(node, MappingNode):
        for key, value in node.value:
            yield (*place, key.value), key.start_mark.line + 1
            yield from _lines(value, (*place, key.value))
    elif isinstance(node, SequenceNode):
        for i, value in enumerate(node.value):
            yield (*place, i), value.start_mark.line + 1
            yield from _lines(value, (*place, i))


def _place(key: str) -> KeyPath:
    return tuple(int(part) if part.isdecimal() else part for part in key.split("."))


def _put(values: Any, place: KeyPath, value: Any) -> None:
    *way, last = place
    for i, part in enumerate(way):
        if isinstance(values, dict) and values.get(part) is None:
            values[part] = {}
        if i and isinstance(values, dict) and _is_name(values.get(part)):
            values[part] = {"kind": values[part]}
        if not _has(values, part):
            raise RecipeError(f"{dotted(place)}: {dotted(place[:i])} has no entry {part!r}; check the path")
        values = values[part]
    if not isinstance(values, dict) and not _has(values, last):
        raise RecipeError(f"{dotted(place)}: {dotted(place[:-1])} has no entry {last!r}; check the path")
    values[last] = value


def _is_name(value: Any) -> bool:
    """Whether a value of a section can be the name of a kind, which `kind: name` with options says as well.

    A number may follow, as that of a task's shots: `winogrande:5`.
    """
    name, _, number = value.partition(":") if isinstance(value, str) else ("", "", "")
    return name.isidentifier() and (not number or number.isdecimal())


def _has(values: Any, part: str | int) -> bool:
    if isinstance(values, list):
        return isinstance(part, int) and part < len(values)
    return isinstance(values, dict) and part in values


def dotted(place: KeyPath) -> str:
    """Path as users write it: `data.sources.0.paths`."""
    return ".".join(map(str, place))


# A value that does not fit its spec ----------------------------------------------------------------------------------


def check(kind: type[AnySpec], document: YamlDocument, at: KeyPath = ()) -> AnySpec:
    """Part of a document at the path `at`, as a spec. RecipeError says what is wrong, where, and what to do."""
    values: Any = document.values
    for part in at:
        values = values.get(part) or {}
    try:
        return kind.model_validate(values)
    except ValidationError as e:
        errors = sorted(e.errors(), key=lambda error: error["type"] != "extra_forbidden")  # a typo explains the rest
        raise RecipeError(_sentence(kind, document, values, at, errors[0])) from None


def _sentence(kind: type[Spec], document: YamlDocument, values: Any, at: KeyPath, error: ErrorDetails) -> str:
    inner = _written(values, error)
    place = (*at, *inner)
    where, name = document.where(place), dotted(place) or "the recipe"
    context = error.get("ctx", {})
    match error["type"]:
        case "extra_forbidden":
            return f"{where}{name} is not a known key{_hint_key(kind, error['loc'])}"
        case "missing":
            return f"{where}{name} is missing: add it"
        case "union_tag_invalid":
            tags = [tag.strip(" '") for tag in context["expected_tags"].split(",")]
            return f"{document.where((*place, 'kind'))}{name}.kind is {context['tag']!r}{_hint(context['tag'], tags)}"
        case "union_tag_not_found":
            return f"{where}{name}.kind is missing: add it, to say which kind is meant"
        case "literal_error":
            options = [option.strip(" '") for option in context["expected"].replace(" or ", ",").split(",")]
            wrong = "not a known key" if error["loc"][-1] == "[key]" else _shown(error["input"])
            return f"{where}{name} is {wrong}{_hint(str(error['input']), options)}"
        case "value_error" | "assertion_error":
            return f"{where}{name}: {error['msg'].removeprefix('Value error, ')}"
        case _:
            return f"{where}{name} is {_shown(error['input'])}: {error['msg'][0].lower()}{error['msg'][1:]}; change it"


def _written(values: Any, error: ErrorDetails) -> KeyPath:
    """Path of an error in the document: pydantic's path without the names of union members."""
    place: list[str | int] = []
    for i, part in enumerate(error["loc"]):
        if _has(values, part):
            values = values[part]
        elif error["type"] != "missing" or i < len(error["loc"]) - 1:
            continue
        place.append(part)
    return tuple(place)


def _hint_key(kind: type[BaseModel], loc: KeyPath) -> str:
    kinds, key = _specs_at(kind, loc[:-1]), str(loc[-1])
    known = [name for k in kinds for name in k.model_fields]
    deeper = [f"{name}.{key}" for k in kinds for name in k.model_fields if key in _names_below(k, name)]
    return f"; did you mean {deeper[0]}?" if deeper else _hint(key, known)


def _hint(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]}?" if close else f"; use one of {', '.join(known)}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _specs_at(kind: type[BaseModel], loc: KeyPath) -> list[type[BaseModel]]:
    """Specs that are valid at pydantic's path `loc`."""
    kinds = [kind]
    for part in loc:
        if having := [k for k in kinds if part in k.model_fields]:
            kinds = [spec for k in having for spec in _specs_in(k.model_fields[str(part)].annotation)]
        else:  # a position in a list, or the name of a union's member
            kinds = [k for k in kinds if "kind" in k.model_fields and k.model_fields["kind"].default == part] or kinds
    return kinds


def _names_below(kind: type[BaseModel], field_name: str) -> set[str]:
    return {name for spec in _specs_in(kind.model_fields[field_name].annotation) for name in spec.model_fields}


def _specs_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [spec for argument in typing.get_args(annotation) for spec in _specs_in(argument)]
