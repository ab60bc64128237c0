"""Programs that a model wrote, run to see whether they work. Knows processes; it is no sandbox.

A program has a process of its own, with an empty environment and directory, and little time and memory. It can still
read what the user can read and reach the network: whoever asks for such tasks has to say so.
"""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

TIMEOUT_SECONDS = 10.0
AT_ONCE = 4
LIMITED = """\
import resource, sys
for kind, limit in (("CPU", 20), ("AS", 4 << 30), ("FSIZE", 16 << 20), ("CORE", 0)):
    try:
        resource.setrlimit(getattr(resource, "RLIMIT_" + kind), (limit, limit))
    except ValueError:
        pass
exec(compile(sys.stdin.buffer.read(), "answer", "exec"), {"__name__": "__main__"})
"""
"""The program's own process limits itself first: between fork and exec, with threads about, nothing is safe.

A limit that the system refuses is left as it is: macOS accepts none on the address space that is below what a new
process maps, and a lower limit that stands already cannot be raised.
"""


def passes(program: str, *, timeout_seconds: float = TIMEOUT_SECONDS) -> bool:
    """Whether a Python program ends by itself, in time and without an error."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
        process = subprocess.Popen(
            [sys.executable, "-I", "-c", LIMITED],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=directory,
            env={"PATH": os.defpath, "HOME": directory, "TMPDIR": directory},  # no token, no proxy, no path of ours
            start_new_session=True,
        )
        try:
            process.communicate(program.encode(errors="replace"), timeout=timeout_seconds)
        except subprocess.TimeoutExpired:
            return False
        finally:
            _end(process)
    return process.returncode == 0


def pass_rate(programs: Sequence[str]) -> float:
    """The share of programs that pass; unbiased for pass@1 (Chen et al. 2021)."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return sum(pool.map(passes, programs)) / len(programs)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """What the program started ends with it: they are one session."""
    with suppress(ProcessLookupError, PermissionError):  # macOS refuses a signal to a group that has ended
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
