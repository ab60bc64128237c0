"""Names of tensors that are stored as one: `name[i]` is entry i of dim 0 of the tensor `name`.

A family whose checkpoints hold the experts of a layer in one tensor names the part of each that way. So whatever goes
by a table deals with one expert at a time, and only what reads or writes files knows of the whole.
"""

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

ENTRY = re.compile(r"(.+)\[(\d+)\]")


class Entry(NamedTuple):
    """Place of a tensor in a file: the name stored there, and the position on its dim 0 or None for all of it."""

    stored: str
    position: int | None


def entry(name: str) -> Entry:
    """Place of a tensor by its name in a table."""
    found = ENTRY.fullmatch(name)
    return Entry(found[1], int(found[2])) if found else Entry(name, None)


def stacks(names: Iterable[str]) -> dict[str, list[str]]:
    """Stored name -> names of its entries in order, or the name alone; in order of first occurrence."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(entry(name).stored, []).append(name)
    return {stored: sorted(names, key=lambda name: entry(name).position or 0) for stored, names in found.items()}


def stored_shapes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Stored name -> shape in the file, from the shapes of entries."""
    return {
        stored: shapes[stored] if stored in shapes else (len(names), *shapes[names[0]])
        for stored, names in stacks(shapes).items()
    }
