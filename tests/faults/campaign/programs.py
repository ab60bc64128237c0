"""Commands as processes of their own: programs that are started, or forks of this process that run the same `main`."""

import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from minitron_cli.cli.app import main

PROGRAM = (sys.executable, "-m", "minitron_cli")
SETTLED_S = 15
"""Time for the other processes of a command to notice that one of them is gone."""


class Ended(NamedTuple):
    """How a command ended."""

    code: int  # minus the signal if one ended it
    out: str
    err: str


@dataclass
class Started:
    """A command at work, as the leader of a session of its own."""

    pid: int
    logs: Path
    started: float

    def wait(self, limit_s: float = 120) -> Ended:
        """Wait for its end; after `limit_s` it is killed, which shows as the code -SIGALRM."""
        while time.monotonic() < self.started + limit_s:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return self._ended(os.waitstatus_to_exitcode(status))
            time.sleep(0.005)
        os.killpg(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        return self._ended(-signal.SIGALRM)

    def _ended(self, code: int) -> Ended:
        out, err = ((self.logs / name).read_text(errors="replace") for name in ("out", "err"))
        return Ended(code, out, err)

    def is_over(self) -> bool:
        """Whether it has ended, without taking note of it."""
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def is_killed(self) -> bool:
        """Whether a signal ends it; waits for its end, without taking note of it."""
        found = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        return found is not None and found.si_code != os.CLD_EXITED

    def others(self) -> list[int]:
        """Other processes of its session that are alive."""
        return [pid for pid in _processes_of(self.pid) if pid != self.pid]

    def left_running(self) -> list[int]:
        """Others that outlive it by more than a while; they are killed."""
        deadline = time.monotonic() + SETTLED_S
        while (others := self.others()) and time.monotonic() < deadline:
            time.sleep(0.02)
        for pid in others:
            os.kill(pid, signal.SIGKILL)
        return others


def _processes_of(session: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended meanwhile
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(path.parent.name))
    return found


def program(words: Sequence[str], root: Path, command: Sequence[str] = PROGRAM) -> Started:
    """Start the program in a directory."""
    command = [*command, *words]
    with open(root.parent / "out", "wb") as out, open(root.parent / "err", "wb") as err:
        begun = subprocess.Popen(
            command, cwd=root, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True
        )
    begun.returncode = 0  # `Started` waits for it
    return Started(begun.pid, root.parent, time.monotonic())


def fork(words: Sequence[str], root: Path, before: Callable[[], object] = lambda: None) -> Started:
    """Run the program's `main` in a fork of this process, after `before`."""
    sys.stdout.flush()
    sys.stderr.flush()
    if pid := os.fork():
        return Started(pid, root.parent, time.monotonic())
    code = 1
    try:
        os.setsid()
        code = _main(words, root, before)
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)


def _main(words: Sequence[str], root: Path, before: Callable[[], object]) -> int:
    os.chdir(root)
    for number, name, flags in ((0, os.devnull, os.O_RDONLY), (1, "out", WRITE), (2, "err", WRITE)):
        os.dup2(os.open(root.parent / name, flags, 0o600), number)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)
    sys.argv = ["minitron", *words]
    before()
    try:
        main()
    except SystemExit as e:
        return e.code if isinstance(e.code, int) else int(e.code is not None)
    return 0


WRITE = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
