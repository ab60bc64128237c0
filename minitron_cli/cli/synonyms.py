"""Other names of options: those of Hugging Face's trainers, and underscores in place of hyphens.

A command understands a name of theirs wherever it has the option of ours. Errors and results say ours.
"""

from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from types import MappingProxyType

import typer

SYNONYMS = MappingProxyType(
    {
        "--lr": "--learning-rate",
        "--micro-batch-size": "--per-device-train-batch-size",
        "--output": "--output-dir",
        "--sequence-length": "--max-length",
        "--steps": "--max-steps",
        "--tracker": "--report-to",
    }
)
"""Name of an option, and the one that `TrainingArguments` or TRL's `SFTConfig` give to it."""
FILE = "FILE"

Option = tuple[Sequence[str], str | None]
"""Names of an option, and how its help calls what it takes."""


def of(option: Option) -> str | None:
    """Other name of an option; None if it has none, as an output that is a file and no directory."""
    names, metavar = option
    found = next((SYNONYMS[name] for name in names if name in SYNONYMS), None)
    return None if metavar == FILE and found == SYNONYMS["--output"] else found


def also(help_text: str, option: Option) -> str:
    """Help of an option with its other name."""
    other = of(option)
    return f"{help_text} Also: `{other}`." if other else help_text


def with_own_names(arguments: Sequence[str], options: Sequence[Option]) -> list[str]:
    """Arguments of a command with its own names of options. BadParameter if one option is given by two names."""
    known = {name: names for names, _ in options for name in names}
    theirs = {other: option[0] for option in options if (other := of(option))}
    end = arguments.index("--") if "--" in arguments else len(arguments)
    own, spelled = list(arguments), dict[tuple[str, ...], str]()
    for i, (name, value) in enumerate(map(_parts, arguments[:end])):
        plain = _with_hyphens(name)
        names = tuple(theirs.get(plain) or known.get(plain) or ())
        if names and (first := spelled.setdefault(names, name)) != name:
            raise typer.BadParameter(f"{first} and {name} are names of the same option: give one of them")
        if plain in theirs or plain != name:
            own[i] = (_long(names) if plain in theirs else plain) + value
    return own


def close_to(name: str, options: Sequence[Option]) -> Iterator[str]:
    """Other names of these options that are like a name that is none of them."""
    yield from get_close_matches(_with_hyphens(name), [other for option in options if (other := of(option))])


def _parts(argument: str) -> tuple[str, str]:
    """Name of the option that an argument gives, if it gives one, and the rest with its `=`."""
    if argument.startswith("--"):
        name, mark, value = argument.partition("=")
        return name, mark + value
    return (argument[:2], argument[2:]) if argument.startswith("-") else (argument, "")


def _with_hyphens(name: str) -> str:
    return name.replace("_", "-") if name.startswith("--") else name


def _long(names: Sequence[str]) -> str:
    return next(name for name in names if name in SYNONYMS)
