"""Command lines in the documentation, as a shell would read them. Nothing is run."""

import shlex
from collections.abc import Iterator
from typing import Any

import yaml

from tests.docs.pages import Code

SHELLS = ("", "sh", "bash", "console", "text")
ENDS = {"|", "||", "&&", ";", "&", "(", ")"}


def scripts(block: Code) -> Iterator[str]:
    """The shell scripts in a block: itself, or the steps of a workflow."""
    if block.language in SHELLS:
        yield block.text
    elif block.language == "yaml":
        yield from _steps(yaml.safe_load(block.text))


def _steps(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from (step for key, step in value.items() if key == "run" and isinstance(step, str))
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _steps(inner)


def commands(script: str) -> Iterator[list[str]]:
    """The words of each command of a script, without prompts, variables that are set before it, and redirections."""
    for line in script.replace("\\\n", " ").splitlines():
        for words in _split(line.strip().removeprefix("$ ")):
            while words and "=" in words[0] and words[0].partition("=")[0].isidentifier():
                words = words[1:]
            if words:
                yield words


def _split(line: str) -> Iterator[list[str]]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.wordchars += "%,:@+!^[]{}$"
    words: list[str] = []
    redirected = False
    for word in lexer:
        if word in ENDS:
            yield words
            words = []
        elif redirected or set(word) <= {"<", ">"}:
            redirected = not redirected
        else:
            words.append(word)
    yield words


def of_minitron(script: str) -> Iterator[list[str]]:
    """The arguments of every call of the program in a script, whoever launches it."""
    for words in commands(script):
        if words[0] == "minitron":
            yield words[1:]
        elif words[:2] == ["docker", "run"]:
            image = next(i for i, word in enumerate(words) if word.partition(":")[0] == "minitron")
            yield words[image + 1 :]
        elif "minitron_cli" in words and words[words.index("minitron_cli") - 1] == "-m":
            yield words[words.index("minitron_cli") + 1 :]
        elif "--no-python" in words:
            yield words[words.index("minitron") + 1 :]
        elif "-c" in words and words[words.index("-c") - 1].endswith("sh"):
            yield from of_minitron(words[words.index("-c") + 1])
