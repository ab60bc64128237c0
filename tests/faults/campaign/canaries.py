"""Inputs that try to run code when a command reads them: the file that their code would make never appears."""

import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from tests.faults.campaign.outcomes import Outcome
from tests.faults.campaign.programs import Started, fork
from tests.faults.campaign.setting import Setting

LIMIT_S = 60
GROUP = "code execution"


class Trap(NamedTuple):
    """An input with code in it, and the commands that read it."""

    name: str
    set_up: Callable[[Path, Path], object]
    """Put it into a directory; its code would make the file of the second argument."""
    commands: tuple[tuple[str, ...], ...]
    start: Callable[[Setting], Path]
    begin: Callable[[tuple[str, ...], Path], Started] = fork


def canaries(setting: Setting, traps: Iterable[Trap], share: tuple[int, int] = (0, 1)) -> Iterator[Outcome]:
    """Every `share[1]`-th trap from `share[0]` on, with each of its commands."""
    for i, trap in enumerate(traps):
        if i % share[1] == share[0]:
            for words in trap.commands:
                yield Outcome(GROUP, words[0], trap.name, tuple(sprung(setting, trap, words)), " ".join(words))


def sprung(setting: Setting, trap: Trap, words: tuple[str, ...]) -> list[str]:
    """What is wrong: the trap's code was run, or the command ended with a traceback or in none of the right ways."""
    root, canary = setting.place / "root", setting.place / "canary"
    shutil.rmtree(root, ignore_errors=True)
    canary.unlink(missing_ok=True)
    shutil.copytree(setting.made(trap.start), root, symlinks=True)
    trap.set_up(root, canary)
    begun = trap.begin(words, root)
    ended = begun.wait(LIMIT_S)
    begun.left_running()
    problems = ["its code was run"] if canary.exists() else []
    if ended.code not in (0, 2, 3):
        problems.append(f"exit code {ended.code}: {ended.err[-300:]}")
    return problems + ["a traceback"] * ("Traceback" in ended.err)
