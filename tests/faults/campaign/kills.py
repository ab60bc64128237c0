"""Commands that are killed at a random moment and run again: the result is that of a run that nobody disturbed."""

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from tests.faults.campaign.outcomes import Outcome
from tests.faults.campaign.programs import Ended, Started, fork, program
from tests.faults.campaign.setting import GPUS, VERBS, Setting, Verb
from tests.faults.harness import artifacts, different, half_made, leftovers

ATTEMPTS = 8  # to hit a command before it ends
CODES = {
    signal.SIGKILL: (-signal.SIGKILL,),
    signal.SIGTERM: (-signal.SIGTERM, 143, 0),  # before the handler is there; stopped; too late to stop
    signal.SIGINT: (-signal.SIGINT, 130, 0),
}
STARTING = ("KeyboardInterrupt",)  # what Python prints where Ctrl-C meets it before `main`


class Way(NamedTuple):
    """What is sent to whom."""

    number: signal.Signals
    target: str  # program, group, launcher, worker

    def __str__(self) -> str:
        return f"{self.number.name} to the {self.target}"


ALONE = [
    Way(signal.SIGKILL, "program"),
    Way(signal.SIGTERM, "program"),
    Way(signal.SIGINT, "group"),
    Way(signal.SIGKILL, "program"),
]
TOGETHER = [
    Way(signal.SIGKILL, "launcher"),
    Way(signal.SIGKILL, "worker"),
    Way(signal.SIGTERM, "launcher"),
    Way(signal.SIGINT, "group"),
    Way(signal.SIGTERM, "worker"),
    Way(signal.SIGKILL, "group"),
]


class Undisturbed(NamedTuple):
    """A run that nobody disturbs."""

    seconds: float
    found: object
    ended: Ended


def start(name: str, root: Path, forked: bool) -> Started:
    return (fork if forked else program)(VERBS[name].words, root)


def undisturbed(setting: Setting, name: str, forked: bool) -> Undisturbed:
    root, begun = setting.fresh(VERBS[name]), time.monotonic()
    ended = start(name, root, forked).wait()
    seconds = time.monotonic() - begun
    assert ended.code == 0, f"{name}: {ended}"
    return Undisturbed(seconds, result_of(VERBS[name], root, ended), ended)


def result_of(verb: Verb, root: Path, ended: Ended) -> object:
    """What must be the same again: the artifacts' bytes, or what was printed."""
    if verb.makes:
        return artifacts(root / "runs")
    return ended.out if verb.is_steady else ended.code


def kills(setting: Setting, name: str, count: int, *, forked: bool, seed: int = 0) -> Iterator[Outcome]:
    """`count` kills of a verb at moments of the clock, spread over the time that a run takes."""
    draw = random.Random(f"{name} {forked} {seed}")
    ways = TOGETHER if GPUS in " ".join(VERBS[name].words) else ALONE
    reference = undisturbed(setting, name, forked)
    for i in range(count):
        moment = reference.seconds * (i + draw.random()) / count
        yield one_kill(setting, name, ways[i % len(ways)], moment, reference, forked=forked)


def one_kill(setting: Setting, name: str, way: Way, moment: float, reference: Undisturbed, *, forked: bool) -> Outcome:
    """One kill; sooner, if the command was done by then."""
    group = "kills of forks" if forked else "kills of programs"
    for attempt in range(ATTEMPTS):
        root = setting.fresh(VERBS[name])
        begun = start(name, root, forked)
        time.sleep(moment * (1 - attempt / ATTEMPTS))
        if hit(begun, way):
            problems = after_the_kill(begun, way, root) + after_another_run(name, root, reference, forked)
            landed = f"{way} after {moment * (1 - attempt / ATTEMPTS):.2f} of {reference.seconds:.2f} s"
            return Outcome(group, name, landed, tuple(problems), "minitron " + " ".join(VERBS[name].words))
        begun.wait()
    return Outcome(group, name, str(way), ("it always ended before it was hit",))


def hit(begun: Started, way: Way) -> bool:
    """Send the signal; whether it met a process at work."""
    if begun.is_over():
        return False
    send: Callable[[], None] = {
        "group": lambda: os.killpg(begun.pid, way.number),
        "worker": lambda: os.kill(_worker(begun), way.number),
    }.get(way.target, lambda: os.kill(begun.pid, way.number))
    try:
        send()
    except ProcessLookupError:
        return False
    # A process that has ended and is not yet waited for accepts signals as well.
    return not (way.number == signal.SIGKILL and way.target == "program" and not begun.is_killed())


def _worker(begun: Started) -> int:
    """One of the processes that a launcher started; the launcher while there is none."""
    return next(iter(sorted(begun.others(), reverse=True)), begun.pid)


def after_the_kill(begun: Started, way: Way, root: Path) -> list[str]:
    """What is wrong with how the command ended, and with what it left in view."""
    ended = begun.wait()
    problems = [f"left running: {pids}" for pids in [begun.left_running()] if pids]
    of_several = way.target in ("launcher", "worker") or "--gpus" in ended.err
    if not of_several and ended.code not in CODES[way.number]:
        problems.append(f"exit code {ended.code} after {way}: {ended.err[-300:]}")
    if "Traceback" in ended.err and not ended.err.strip().endswith(STARTING) and way.target != "worker":
        problems.append(f"a traceback: {ended.err[-300:]}")
    return problems + half_made(root / "runs")


def after_another_run(name: str, root: Path, reference: Undisturbed, forked: bool) -> list[str]:
    """What is wrong with the result of the same command, run again; alone it may run in a fork."""
    again = start(name, root, forked or name not in _SEVERAL).wait()
    if again.code != 0:
        return [f"run again it exits with {again.code}: {again.err[-300:]}"]
    found = result_of(VERBS[name], root, again)
    problems = [f"left over: {left}" for left in leftovers(root / "runs")]
    if found == reference.found:
        return problems
    if isinstance(found, dict) and isinstance(reference.found, dict):
        return [*problems, f"run again it differs: {different(found, reference.found)}"]
    return [*problems, f"run again it prints something else: {again.out[-200:]}"]


_SEVERAL = {name for name, verb in VERBS.items() if "--gpus" in verb.words}
