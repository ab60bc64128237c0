"""Execution of programs that a model wrote, to test whether they work. This is not a sandbox.

Each program runs in its own process with an empty environment, an empty directory, and limits on time and memory. It
can still read the user's files and reach the network, so tasks that need it are run only on request.
"""

import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

TIMEOUT_SECONDS = 10.0
AT_ONCE = 4
LIMITED = """\
import os, resource, sys
for kind, limit in (("CPU", 20), ("AS", 4 << 30), ("FSIZE", 16 << 20), ("CORE", 0)):
    try:
        resource.setrlimit(getattr(resource, "RLIMIT_" + kind), (limit, limit))
    except ValueError:
        pass
def run(write):
    report = int(sys.argv.pop())
    mark, program = sys.stdin.buffer.read().split(b"\\n", 1)
    exec(compile(program, "answer", "exec"), {"__name__": "__main__"})
    write(report, mark)
run(os.write)
"""
"""The process limits itself: running code between fork and exec is unsafe in a process with threads.

A limit that the system refuses is left as it is: macOS accepts none on the address space below what a new process maps,
and a lower limit that is already set cannot be raised. The mark is a local variable: a program that ends early, by
exit(0) or unittest.main(), does not know what it would have to report.
"""


def passes(program: str, *, timeout_seconds: float = TIMEOUT_SECONDS) -> bool:
    """Whether a Python program reaches its end within the time limit, and exits without an error."""
    mark = secrets.token_hex().encode()
    with _pipe() as (reader, writer), tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
        process = subprocess.Popen(
            [sys.executable, "-I", "-c", LIMITED, str(writer)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=directory,
            env={"PATH": os.defpath, "HOME": directory, "TMPDIR": directory},  # no tokens, proxies or paths of the user
            start_new_session=True,
            pass_fds=(writer,),
        )
        try:
            process.communicate(mark + b"\n" + program.encode(errors="replace"), timeout=timeout_seconds)
        except subprocess.TimeoutExpired:
            return False
        finally:
            _end(process)
        return process.returncode == 0 and _read(reader, len(mark)) == mark


def pass_rate(programs: Sequence[str]) -> float:
    """Fraction of programs that pass; an unbiased estimate of pass@1 (Chen et al. 2021)."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return sum(pool.map(passes, programs)) / len(programs)


@contextmanager
def _pipe() -> Iterator[tuple[int, int]]:
    """File descriptors to read from, which never waits, and to write to."""
    ends = os.pipe()
    os.set_blocking(ends[0], False)
    try:
        yield ends
    finally:
        for end in ends:
            os.close(end)


def _read(reader: int, count: int) -> bytes:
    """First bytes that were written; none if nothing was."""
    try:
        return os.read(reader, count)
    except BlockingIOError:
        return b""


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Kill the process with everything that it started, which shares its session."""
    with suppress(ProcessLookupError, PermissionError):  # macOS refuses a signal to a group that has ended
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
