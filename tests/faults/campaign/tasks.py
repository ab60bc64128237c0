"""The campaign in pieces that can be performed side by side, each in a process that holds a setting."""

import os
import threading
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import tqdm

from tests.faults.campaign import malformed_files, malformed_models
from tests.faults.campaign.canaries import canaries
from tests.faults.campaign.controls import controls
from tests.faults.campaign.full_disks import full_disks
from tests.faults.campaign.kills import kills
from tests.faults.campaign.malformed import malformed
from tests.faults.campaign.outcomes import Outcome
from tests.faults.campaign.setting import MAKERS, READERS, SEVERAL, VERBS, Setting, surroundings
from tests.faults.campaign.traps import traps

MALFORMED = malformed_models.GROUPS | malformed_files.GROUPS


@dataclass(frozen=True)
class Task:
    """Some trials of one group."""

    group: str
    name: str = ""
    """The verb, or the kind of input."""
    count: int = 0
    """Number of trials, where that can be chosen."""
    share: tuple[int, int] = field(default=(0, 1))
    """Which of how many parts of the trials, where their number is given."""

    def __str__(self) -> str:
        return f"{self.group} {self.name} {self.share if self.share[1] > 1 else ''}".strip()


WAYS: dict[str, Callable[[Setting, Task], Iterable[Outcome]]] = {
    "kills of programs": lambda setting, task: kills(setting, task.name, task.count, forked=False),
    "kills of forks": lambda setting, task: kills(setting, task.name, task.count, forked=True),
    "full disks and limits": lambda setting, task: full_disks(setting, task.name, task.count),
    "malformed": lambda setting, task: malformed(setting, task.name, MALFORMED[task.name], task.share),
    "code execution": lambda setting, task: canaries(setting, traps(), task.share),
    "negative controls": lambda setting, task: controls(setting),
}


def full() -> list[Task]:
    """All tasks; those that take long come first, so that none is left over at the end."""
    known = [name for name in READERS if name in VERBS]
    return [
        *(Task("kills of programs", name, 12) for name in SEVERAL),
        *(Task("code execution", share=(i, 4)) for i in range(4)),
        *(Task("kills of programs", name, 12) for name in MAKERS),
        *(Task("malformed", name, share=(i, 2)) for name in MALFORMED for i in range(2)),
        *(Task("kills of forks", name, 14) for name in MAKERS),
        *(Task("full disks and limits", name, 13) for name in MAKERS),
        *(Task("kills of programs", name, 5) for name in known),
        Task("negative controls"),
    ]


QUICK = [
    Task("kills of programs", "inspect", 1),
    Task("kills of forks", "prune", 2),
    Task("kills of forks", "sparsify", 1),
    Task("kills of forks", "distill", 2),
    Task("full disks and limits", "importance", 4),
    *(Task("malformed", name, share=(1, 60)) for name in MALFORMED),
    Task("code execution", share=(1, 30)),
    Task("negative controls"),
]
"""A few trials of each kind."""

_held: list[Setting] = []
_lasting = ExitStack()
"""Surroundings of every command, as long as the process lives."""


def begin(place: Path) -> None:
    """Build this process's setting, and import what the commands need, so that a fork has it."""
    tqdm.tqdm.set_lock(threading.RLock())  # its own is of all processes, and a fork that is killed may have held it
    own = place / str(os.getpid())
    own.mkdir()
    _lasting.enter_context(surroundings(own / "cache"))
    _held.append(Setting.build(own))


def perform(task: Task) -> list[Outcome]:
    """Trials of one task; what stops them is an outcome, too."""
    found: list[Outcome] = []
    try:
        found.extend(WAYS[task.group](_held[0], task))
    except Exception as error:
        found.append(Outcome(task.group, task.name, "the harness", (f"it stopped: {error!r}"[:600],)))
    return found
