"""Published pruning methods by name: a method is one entry of the table, which stands for ordinary keys.

Keys are dotted, in the section of the recipe that the method belongs to. Knows no key's meaning.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel

Section = Literal["prune", "sparsify"]


class Method(NamedTuple):
    """A method and the keys that it stands for."""

    section: Section
    source: str
    """Paper."""
    keys: Mapping[str, Any]
    """Keys without which it would be another method: another value beside its name is an error."""
    defaults: Mapping[str, Any]
    """Keys that may be given another value beside its name."""
    differs: str = ""
    """What is not as in the paper; empty if nothing is."""


METHODS: Mapping[str, Method] = {
    "minitron-width": Method(
        "prune",
        "Muralidharan et al. 2024",
        {"ranking.width.kind": "activation"},
        {
            "axes": ["hidden", "ffn"],
            "ranking.width.batch": "l2",
            "ranking.width.sequence": "mean",
            "repair": "none",
        },
    ),
    "minitron-depth": Method(
        "prune",
        "Muralidharan et al. 2024",
        {"axes": ["layer"], "ranking.layers": "perplexity"},
        {"repair": "none"},
    ),
    "shortgpt": Method(
        "prune",
        "Men et al. 2024",
        {"axes": ["layer"], "ranking.layers": "block_importance"},
        {"repair": "none"},
    ),
    "flap": Method(
        "prune",
        "An et al. 2024",
        {"ranking.width.kind": "flap"},
        {"axes": ["head", "ffn"], "repair": "bias"},
        "every layer keeps as many heads and neurons as any other, so scores are not standardized across layers",
    ),
    "laco": Method(
        "prune",
        "Yang et al. 2024",
        {"axes": ["layer"], "ranking.layers": "collapse"},
        {"repair": "merge"},
        "merges the most similar layers first until the number of layers is reached, not down to a threshold",
    ),
    "replaceme": Method(
        "prune",
        "Shopkhoev et al. 2025",
        {"axes": ["layer"], "repair": "least_squares"},
        {"ranking.layers": "block_cosine"},
        "fits more than the map of the block",
    ),
    "llm-streamline": Method(
        "prune",
        "Chen et al. 2024",
        {"axes": ["layer"], "repair": "least_squares"},
        {"ranking.layers": "block_cosine"},
        "as replaceme: the small network that is trained in the block's place has none in a stock checkpoint",
    ),
    "sheared-llama": Method(
        "prune",
        "Xia et al. 2023",
        {"ranking.width.kind": "learned", "ranking.layers": "learned"},
        {"axes": ["hidden", "ffn"], "repair": "none"},
        "gates are trained with the weights frozen, and the exact shape is that of the highest gates",
    ),
    "magnitude": Method("sparsify", "Han et al. 2015", {"metric.kind": "magnitude"}, {"repair": "none"}),
    "wanda": Method("sparsify", "Sun et al. 2023", {"metric.kind": "wanda"}, {"repair": "none"}),
    "sparsegpt": Method("sparsify", "Frantar and Alistarh 2023", {"metric.kind": "sparsegpt"}, {"repair": "none"}),
}
"""The registry. The names of a section are also a literal of `choices`, for help."""


def names(section: Section) -> list[str]:
    """Methods of a section, in the order of the table."""
    return [name for name, method in METHODS.items() if method.section == section]


def expanded(section: Section, values: Any) -> Any:
    """Settings of a section with the keys that their `method` stands for; unchanged without a known one.

    ValueError if the method belongs to another section, or a key that makes it has another value.
    """
    name = values.get("method") if isinstance(values, Mapping) else None
    method = METHODS.get(name) if isinstance(name, str) else None
    if method is None:
        return values
    if method.section != section:
        raise ValueError(f"{name} is a method of {method.section}: give it as {method.section}.method")
    for key, value in method.keys.items():
        values = _with(values, key.split("."), value)
        if (given := _at(values, key)) not in (value, None):
            raise ValueError(
                f"method {name} stands for {key}={_shown(value)}, and {key} is {_shown(given)}: leave one of them out"
            )
    for key, value in method.defaults.items():
        values = _with(values, key.split("."), value)
    return values


def explained(name: str, config: BaseModel) -> str:
    """Sentence that says which keys a method stands for in a checked section, and which of them were given."""
    method = METHODS[name]
    values = config.model_dump(mode="json")
    parts = [_explained(f"{method.section}.{key}", value, _at(values, key)) for key, value in _all(method).items()]
    differs = f"; unlike the paper: {method.differs}" if method.differs else ""
    return f"method {name} ({method.source}) stands for {' '.join(parts)}{differs}"


def _all(method: Method) -> dict[str, Any]:
    return {**method.keys, **method.defaults}


def _explained(key: str, value: Any, actual: Any) -> str:
    given = "" if actual == value else f" (given; its own is {_shown(value)})"
    return f"{key}={_shown(actual)}{given}"


def _with(values: Mapping[str, Any], path: Sequence[str], value: Any) -> Mapping[str, Any]:
    """The values with one at a path, unless there is one."""
    first, *rest = path
    if not rest:
        return {first: value, **values}
    inner = _mapping(values.get(first))
    if inner is None or (isinstance(values.get(first), str) and rest != ["kind"]):
        return values  # of the wrong type, which the check of the section says
    return {**values, first: _with(inner, rest, value)}


def _at(values: Mapping[str, Any], key: str) -> Any:
    """Value at a dotted key, lists for tuples; what stands in its way where there is something else."""
    found: Any = values
    for part in key.split("."):
        inner = _mapping(found)
        if inner is None:
            break
        found = inner.get(part)
    return list(found) if isinstance(found, tuple) else found


def _mapping(value: Any) -> Mapping[str, Any] | None:
    """Keys of a part of the settings, which may be a checked spec, or the name of a kind; None if it is neither."""
    match value:
        case None:
            return {}
        case str():
            return {"kind": value}
        case BaseModel():
            kind = {"kind": value.kind} if hasattr(value, "kind") else {}
            return kind | {name: getattr(value, name) for name in value.model_fields_set}
        case Mapping():
            return value
        case _:
            return None


def _shown(value: Any) -> str:
    return f"[{','.join(map(str, value))}]" if isinstance(value, list) else str(value)
