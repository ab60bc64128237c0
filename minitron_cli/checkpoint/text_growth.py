"""How much longer a tokenizer's normalizer can make a text. Knows tokenizer.json and no text.

Loading a tokenizer normalizes its added tokens already, so the file is looked at before that.
"""

import json
import re
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

from minitron_cli.errors import CheckpointError

MOST = 1_000
"""Characters for each character of a text. Normalizers of real models stay below 20."""


def check(directory: Path) -> None:
    """Raise CheckpointError if a normalizer or decoder of tokenizer.json could fill the memory from a short text."""
    file = directory / "tokenizer.json"
    if not file.is_file():
        return
    text = file.read_bytes().decode(errors="replace")
    for key in ("normalizer", "decoder"):
        if (growth := max(map(_growth, _values(text, key)), default=1.0)) > MOST:
            raise CheckpointError(f"{file}: its {key} can make a text {growth:.3g} times longer; restore the file")


def _values(text: str, key: str) -> Iterator[Any]:
    """Values of the key in JSON text, wherever it stands. Without parsing the vocabulary, which takes ten times longer.

    A key of a file that escapes letters is looked for in the parsed file.
    """
    if re.search(r"\\u00[4-7]", text):
        yield _parsed(text.lstrip(), 0).get(key)
    for found in re.finditer(rf'"{key}"\s*:\s*(?=\{{)', text):
        yield _parsed(text, found.end())


def _parsed(text: str, position: int) -> dict[str, Any]:
    try:
        value = json.JSONDecoder().raw_decode(text, position)[0]
    except (ValueError, RecursionError):  # the tokenizer does not load either, and says why
        return {}
    return value if isinstance(value, dict) else {}


def _growth(step: Any) -> float:
    """Characters that a step writes for a character, at most, as far as replacements decide it."""
    if not isinstance(step, dict):
        return 1.0
    parts = step.get("normalizers") or step.get("decoders")
    if isinstance(parts, list):
        return prod(map(_growth, parts))
    if step.get("type") != "Replace" or not isinstance(step.get("content"), str):
        return 1.0
    return max(1.0, len(step["content"]) / _shortest(step.get("pattern")))


def _shortest(pattern: Any) -> float:
    """Characters of the shortest text that is replaced. An expression may match nothing, between two characters."""
    text = pattern.get("String") if isinstance(pattern, dict) else None
    return max(1, len(text)) if isinstance(text, str) else 0.5
