"""Seeded bugs, each of which the harness that it is meant for must notice."""

import json
import pickle
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from minitron_cli import io, strict_json
from minitron_cli.checkpoint.reader import Checkpoint
from tests.faults.campaign import canaries, full_disks, kills, malformed, traps
from tests.faults.campaign.malformed_models import GROUPS
from tests.faults.campaign.outcomes import Outcome
from tests.faults.campaign.setting import Setting

Patch = tuple[Any, str, Any]


def controls(setting: Setting) -> Iterator[Outcome]:
    """Every harness with its seeded bug; right is what notices it."""
    for name, seed in SEEDED.items():
        bugs, noticed = seed(setting)
        with _patched(*bugs):
            problems = () if noticed() else ("the seeded bug was not noticed",)
        yield Outcome("negative controls", name, "a seeded bug", problems)


class _patched:
    """Attributes that are replaced for a while: forks find them replaced."""

    def __init__(self, *patches: Patch) -> None:
        self.patches = patches

    def __enter__(self) -> None:
        self.before = [getattr(place, name) for place, name, _ in self.patches]
        for place, name, value in self.patches:
            setattr(place, name, value)

    def __exit__(self, *_: object) -> None:
        for (place, name, _), value in zip(self.patches, self.before, strict=True):
            setattr(place, name, value)


def in_place(setting: Setting) -> tuple[list[Patch], Callable[[], bool]]:
    """Results are written where they are read: a killed command leaves half of one in view."""
    reference = kills.undisturbed(setting, "prune", forked=True)

    def directory(parent: Path, name: str) -> Path:
        (parent / name).mkdir()
        return parent / name

    def noticed() -> bool:
        way = kills.Way(signal.SIGKILL, "program")
        moments = (reference.seconds * i / 6 for i in range(2, 6))
        return any(kills.one_kill(setting, "prune", way, moment, reference, forked=True).problems for moment in moments)

    return [(io, "temporary_dir", directory), (io, "publish", lambda *_: True)], noticed


class LosesWrites(io.Disk):
    """A disk that keeps quiet about having no room."""

    def reserve(self, fd: int, size_bytes: int) -> None:
        pass

    def write(self, fd: int, data: memoryview, offset: int) -> int:
        try:
            return super().write(fd, data, offset)
        except OSError:
            return len(data)


def lost_writes(setting: Setting) -> tuple[list[Patch], Callable[[], bool]]:
    """A full disk goes unnoticed."""
    return [(io, "disk", LosesWrites())], lambda: any(o.problems for o in full_disks.full_disks(setting, "prune", 6))


def lenient(setting: Setting) -> tuple[list[Patch], Callable[[], bool]]:
    """JSON is read without a check of its own, so that errors of the parser surface."""

    def noticed() -> bool:
        found = malformed.malformed(setting, "config", GROUPS["config"], share=(0, 5))
        return any(outcome.problems for outcome in found)

    return [(strict_json, "parse", lambda content, *_, **__: json.loads(content))], noticed


def unpickles(setting: Setting) -> tuple[list[Patch], Callable[[], bool]]:
    """Weights are looked for in pickles, too."""
    some = (trap for trap in traps.pickles() if trap.name == "pytorch_model.bin beside the weights")
    opened = Checkpoint.open

    def found(directory: Path, *more: Any, **options: Any) -> Checkpoint:
        for path in directory.glob("*.bin"):
            pickle.loads(path.read_bytes())
        return opened(directory, *more, **options)

    patch = (Checkpoint, "open", staticmethod(found))
    return [patch], lambda: any(outcome.problems for outcome in canaries.canaries(setting, some))


SEEDED = {
    "kills": in_place,
    "full disks and limits": lost_writes,
    "malformed": lenient,
    "code execution": unpickles,
}
