"""Text for readers: harmless characters, ranges of numbers, titles of axes."""

import unicodedata
from collections.abc import Mapping, Sequence

from minitron_cli.figures import count

BIDI_CONTROLS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
AXES = {
    "layer": "layers",
    "hidden": "hidden size",
    "head": "query heads",
    "kv_head": "key-value heads",
    "head_dim": "head size",
    "ffn": "FFN size",
    "vocab": "vocabulary",
    "expert": "experts",
    "mamba_head": "Mamba heads",
    "mamba_dim": "Mamba head size",
    "q_rank": "query rank",
    "kv_rank": "key-value rank",
}
CHANNELS = {"hidden": "hidden channels", "ffn": "FFN neurons"}


def axis_title(axis: str) -> str:
    """Title of an axis of a shape: `FFN size`."""
    return AXES.get(axis, axis)


def channel_title(axis: str) -> str:
    """Title of the entries along an axis: `FFN neurons`."""
    return CHANNELS.get(axis, AXES.get(axis, f"{axis} channels"))


def sizes_text(sizes: Mapping[str, int]) -> str:
    """Sizes of axes in one line: `hidden size 3,072, FFN size 9,216`."""
    return ", ".join(f"{axis_title(axis)} {count(size)}" for axis, size in sizes.items())


def capitalized(text: str) -> str:
    """Text with a capital first letter; the others stay."""
    return text[:1].upper() + text[1:]


def ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers with runs shortened: `3, 7 to 9`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)


def clean(text: str) -> str:
    """Text that can be stored and shown; control, invalid and direction-changing characters become U+FFFD."""
    return "".join("\ufffd" if _is_harmful(c) else c for c in text)


def _is_harmful(character: str) -> bool:
    is_control = unicodedata.category(character) in ("Cc", "Cs") and character not in "\n\t"
    is_noncharacter = ord(character) & 0xFFFE == 0xFFFE  # not allowed in XML
    return is_control or is_noncharacter or character in BIDI_CONTROLS
