"""Runs a stage again and again, each time with one thing going wrong on disk, and checks what is left.

A stage is any callable that takes a directory and runs to completion in it. Everything heavy is imported once; each
trial is a fork whose `io.disk` fails or kills the process at its N-th call, for every N. After each trial: nothing
half-made is in view, and running the stage again ends with the bytes of an undisturbed run and no leftovers.
"""

import datetime
import errno
import mmap
import os
import pickle
import random
import shutil
import signal
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from minitron_cli import io
from minitron_cli.artifacts.artifact import Artifact
from minitron_cli.artifacts.manifest import MANIFEST, RUN
from minitron_cli.errors import EnvironmentFault

Stage = Callable[[Path], object]

ERRORS = {"ENOSPC": errno.ENOSPC, "EIO": errno.EIO, "EROFS": errno.EROFS}
KILLS = ("kill", "torn")
HOWS = (*KILLS, *ERRORS, "full")
"""kill: before the call. torn: after a third of a write. full: ENOSPC from here on, as on a full disk."""

TOKENS = "tokens"  # not a stage: what is tokenised once for all of them

CALLS = [name for name in vars(io.Disk) if not name.startswith("_")]
GROWS = ("create", "reserve", "write", "make_dir", "sync_data", "fsync")  # what a full disk refuses


class Watched(io.Disk):
    """Counts the calls and hands each to `before`; keeps what is under way in memory that outlives the process."""

    def __init__(self) -> None:
        self.count = 0
        self.hit = False
        self.paths: dict[int, Path] = {}
        self.under_way = mmap.mmap(-1, 512)
        self.lock = threading.Lock()  # a stage may write from several threads

    def before(self, call: str, arguments: tuple[Any, ...]) -> None:
        pass

    def note(self, text: str) -> None:
        if not self.hit:
            self.under_way[:] = text.encode()[:511].ljust(512, b"\0")

    @property
    def last(self) -> str:
        return self.under_way[:].rstrip(b"\0").decode(errors="replace")


def _watch(call: str) -> Callable[..., Any]:
    original = getattr(io.Disk, call)

    def watched(self: Watched, *arguments: Any) -> Any:
        with self.lock:
            self.count += 1
            target = self.paths.get(arguments[0], Path("?")) if isinstance(arguments[0], int) else arguments[0]
            self.note(f"in {call} {target.name}")
            self.before(call, arguments)
        result = original(self, *arguments)
        if call == "create":
            self.paths[result] = target
        self.note(f"after {call} {target.name}")
        return result

    return watched


for _call in CALLS:
    setattr(Watched, _call, _watch(_call))


class Listing(Watched):
    """Leaves the names of all calls."""

    def __init__(self) -> None:
        super().__init__()
        self.under_way = mmap.mmap(-1, 1 << 20)

    def before(self, call: str, arguments: tuple[Any, ...]) -> None:
        self.under_way.write(f"{call} ".encode())

    def note(self, text: str) -> None:
        pass


class Faulty(Watched):
    """Lets the N-th call go wrong; N counts from 1."""

    def __init__(self, at: int, how: str) -> None:
        super().__init__()
        self.at, self.how = at, how

    def before(self, call: str, arguments: tuple[Any, ...]) -> None:
        if self.how == "full" and self.count >= self.at and call in GROWS:
            self.hit = True
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if self.count != self.at:
            return
        if self.how == "torn" and call == "write":
            fd, data, offset = arguments
            os.pwrite(fd, data[: len(data) // 3], offset)
        if self.how in KILLS:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.how in ERRORS:
            self.hit = True
            raise OSError(ERRORS[self.how], os.strerror(ERRORS[self.how]))


class Ended(NamedTuple):
    """How a child process ended."""

    code: int  # 0, an exception (1) or minus the signal
    error: BaseException | None
    trace: str


class Child(NamedTuple):
    """A process at work."""

    pid: int
    reader: int

    def wait(self) -> Ended:
        with open(self.reader, "rb") as pipe:
            report = pipe.read()
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        error, trace = pickle.loads(report) if report else (None, "")
        return Ended(code, error, trace)


def in_child(stage: Stage, root: Path, disk: io.Disk) -> Child:
    """Start a stage in a fork that writes through `disk`."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        _run_and_exit(stage, root, disk, writer)
    os.close(writer)
    return Child(pid, reader)


def here(stage: Stage, root: Path, disk: io.Disk | None = None) -> Ended:
    """Run a stage in this process."""
    before, io.disk = io.disk, disk or io.disk
    try:
        stage(root)
    except Exception as e:
        return Ended(1, e, traceback.format_exc())
    finally:
        io.disk = before
    return Ended(0, None, "")


def _run_and_exit(stage: Stage, root: Path, disk: io.Disk, writer: int) -> None:
    code, report = 0, b""
    try:
        io.disk = disk
        stage(root)
    except BaseException as e:
        code, report = 1, _pickled(e)
    finally:
        os.write(writer, report)
        os._exit(code)


def _pickled(error: BaseException) -> bytes:
    trace = traceback.format_exc()
    try:
        pickle.loads(content := pickle.dumps((error, trace)))
    except Exception:
        return pickle.dumps((RuntimeError(repr(error)), trace))
    return content


# What is on disk


def artifacts(root: Path) -> dict[str, dict[str, bytes]]:
    """Every artifact in view and every pointer to one, with its bytes; what is outside identity is left out."""
    found: dict[str, dict[str, bytes]] = {}
    for path in sorted(root.rglob(MANIFEST)):
        directory = path.parent
        if not any(part.startswith(".") for part in directory.relative_to(root).parts):
            files = {p.name: p.read_bytes() for p in sorted(directory.iterdir()) if p.name != RUN}
            found[str(directory.relative_to(root))] = files
    for pointer in sorted(root.rglob("current")):
        found[str(pointer.relative_to(root))] = {"": pointer.read_bytes()}
    return found


def half_made(root: Path) -> list[str]:
    """What is in view in a stage's directory and is not a whole artifact, or a pointer to nothing."""
    wrong = []
    for stage_dir in (p for workspace in _visible_dirs(root) for p in _visible_dirs(workspace) if p.name != TOKENS):
        for path in _visible_dirs(stage_dir):
            try:
                Artifact.open(path, verify=True)
            except Exception as e:
                wrong.append(f"{path.relative_to(root)}: {e!r}")
        pointer = stage_dir / "current"
        if pointer.exists() and not (stage_dir / pointer.read_text().strip() / MANIFEST).exists():
            wrong.append(f"{pointer.relative_to(root)} points at nothing")
    return wrong


def _visible_dirs(path: Path) -> list[Path]:
    return [p for p in sorted(path.iterdir()) if p.is_dir() and not p.name.startswith(".")] if path.is_dir() else []


def leftovers(root: Path) -> list[str]:
    names = (str(p.relative_to(root)) for p in root.rglob(".*") if p.name != ".lock")
    return sorted(name for name in names if Path(name).name.startswith((io.TEMPORARY, ".scratch-")))


# Trials


@dataclass
class Trial:
    """One fault and what came of it."""

    how: str
    landed: str
    ended: Ended
    problems: list[str] = field(default_factory=list)


class Range:
    """A place to run one stage many times. `start` holds what the stage finds when it begins.

    What is not to be killed runs in this process, unless `isolated` asks for a fork: for stages whose libraries start
    threads, which a fork would lose.
    """

    def __init__(self, stage: Stage, place: Path, start: Path | None = None, *, isolated: bool = False) -> None:
        self.stage, self.place, self.start, self.isolated = stage, place, start, isolated
        reference, disk = self.fresh(), Listing()
        started = time.monotonic()
        ended = in_child(stage, reference, disk).wait()
        self.seconds = time.monotonic() - started
        assert ended.code == 0, ended.trace
        self.calls = disk.last.split()
        assert not half_made(reference), half_made(reference)
        assert not leftovers(reference), leftovers(reference)
        self.wanted = artifacts(reference)
        assert self.wanted, "the stage made no artifact"

    def fresh(self) -> Path:
        """The same path each time, as it was at the start."""
        root = self.place / "root"
        shutil.rmtree(root, ignore_errors=True)
        if self.start is not None:
            shutil.copytree(self.start, root, symlinks=True)
        else:
            root.mkdir(parents=True)
        return root

    def fail_at(self, at: int, how: str) -> Trial:
        """One deterministic fault at the N-th call, then the checks."""
        root, disk = self.fresh(), Faulty(at, how)
        isolated = how in KILLS or self.isolated
        ended = in_child(self.stage, root, disk).wait() if isolated else here(self.stage, root, disk)
        trial = Trial(how, disk.last, ended)
        if how in KILLS and ended.code != -signal.SIGKILL:
            trial.problems.append(f"was not killed: {ended}")
        if how not in KILLS and not is_disk_error(ended.error) and (ended.code or how != "full"):
            trial.problems.append(f"ended with {ended.error!r}\n{ended.trace}")
        if how not in KILLS and "remove" not in disk.last and ".scratch" not in disk.last:
            trial.problems += [f"left after the error: {n}" for n in leftovers(root) if io.TEMPORARY in n]
        return self.check(root, trial)

    def kill_after(self, seconds: float) -> Trial | None:
        """SIGKILL at a moment of the clock; None if the stage was done by then."""
        root, disk = self.fresh(), Watched()
        child = in_child(self.stage, root, disk)
        time.sleep(seconds)
        os.kill(child.pid, signal.SIGKILL)
        ended = child.wait()
        if ended.code != -signal.SIGKILL:
            return None
        return self.check(root, Trial("kill at random", disk.last or "before any call", ended))

    def check(self, root: Path, trial: Trial) -> Trial:
        trial.problems += half_made(root)
        again = in_child(self.stage, root, io.Disk()).wait() if self.isolated else here(self.stage, root)
        if again.code != 0:
            trial.problems.append(f"the second run failed: {again.error!r}\n{again.trace}")
        elif (found := artifacts(root)) != self.wanted:
            trial.problems.append(f"the second run made other bytes: {different(found, self.wanted)}")
        trial.problems += [f"left over: {name}" for name in leftovers(root)]
        return trial


def is_disk_error(error: BaseException | None) -> bool:
    return isinstance(error, EnvironmentFault) or (isinstance(error, OSError) and error.errno in ERRORS.values())


def different(found: dict[str, dict[str, bytes]], wanted: dict[str, dict[str, bytes]]) -> list[str]:
    flat = [{f"{d}/{n}": b for d, files in side.items() for n, b in files.items()} for side in (found, wanted)]
    return sorted(name for name in flat[0].keys() | flat[1].keys() if flat[0].get(name) != flat[1].get(name))


def trials(stage: Stage, place: Path, start: Path | None = None, hows: Sequence[str] = HOWS) -> Iterator[Trial]:
    """Every fault of every kind at every call of a stage."""
    range_ = Range(stage, place, start)
    for how in hows:
        for at, call in enumerate(range_.calls, start=1):
            if how != "torn" or call == "write":
                yield range_.fail_at(at, how)


def random_kills(range_: Range, count: int, *, inside_a_write: int, seed: int | None = None) -> list[Trial]:
    """`count` kills, one in each part of the run, and `inside_a_write` more in the middle of random writes.

    Moments and writes are another choice each day (`seed`: that of a day that failed), so that all are met in time.
    """
    draw = random.Random(day() if seed is None else seed)
    landed = [killed_between(range_, part / count, (part + 1) / count, draw) for part in range(count)]
    writes = [at for at, call in enumerate(range_.calls, start=1) if call == "write"]
    return landed + [range_.fail_at(at, "torn") for at in draw.sample(writes, inside_a_write)]


def killed_between(range_: Range, start: float, end: float, draw: random.Random) -> Trial:
    """A kill at a random moment between two shares of the run; at any moment where the run was done before that."""
    trial = range_.kill_after(draw.uniform(start, end) * range_.seconds)
    while trial is None:
        trial = range_.kill_after(draw.random() * range_.seconds)
    return trial


def day() -> int:
    """The number of today, printed so that a failure's choice can be made again."""
    today = datetime.date.today().toordinal()
    print(f"seed of the kills: {today}")
    return today


def table(title: str, done: Sequence[Trial]) -> str:
    """Where the faults landed, for people."""
    counted = Counter((trial.how, trial.landed.split(" ")[0] + " " + trial.landed.split(" ")[1]) for trial in done)
    lines = [f"  {how:16} {place:24} {number:4}" for (how, place), number in sorted(counted.items())]
    return "\n".join(
        [f"{title}: {len(done)} faults, {sum(map(bool, (t.problems for t in done)))} with problems", *lines]
    )


def problems(done: Sequence[Trial]) -> str:
    return "\n".join(f"{t.how} {t.landed}: {p}" for t in done for p in t.problems)
