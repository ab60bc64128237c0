"""One function over a stream of jobs, by several processes if that is worth it; the results in the order of the jobs.

Knows neither the function nor the jobs.
"""

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context, parent_process
from typing import Any

from minitron_cli.errors import EnvironmentFault

MOST = 16  # the process that reads cannot feed more
BYTES_EACH = 32 << 20  # of text, some ten seconds' work: less is not worth the second that a process takes to start

MapJobs = Callable[[Iterable[Any]], Iterator[Any]]


def processes_for(size_bytes: int | None) -> int:
    """How many processes so much text is worth on this machine; None is much."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    worth = cpus if size_bytes is None else size_bytes // BYTES_EACH
    return max(1, min(MOST, cpus, worth))


@contextmanager
def mapping(make: Callable[..., Callable[[Any], Any]], arguments: tuple[Any, ...], processes: int) -> Iterator[MapJobs]:
    """`make(*arguments)`, called once in each process, over jobs; few of them are in memory at a time.

    EnvironmentFault if a process is killed. Whoever calls this from a script of their own with more than one process
    must guard its start by `if __name__ == "__main__"`, as ever with processes in Python.
    """
    if processes == 1:
        yield partial(map, make(*arguments))
        return
    pool = ProcessPoolExecutor(processes, get_context("spawn"), _begin, (make, arguments))
    try:
        yield partial(_in_order, pool, 2 * processes)
    finally:
        pool.shutdown(cancel_futures=True)


def _in_order(pool: ProcessPoolExecutor, most: int, jobs: Iterable[Any]) -> Iterator[Any]:
    waiting: deque[Future[Any]] = deque()
    try:
        for job in jobs:
            waiting.append(pool.submit(_work, job))
            if len(waiting) == most:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool:
        raise EnvironmentFault(
            "a process that tokenises was killed, as the system does when memory runs out: "
            "close other programs and run the command again"
        ) from None


_function: Callable[[Any], Any]


def _begin(make: Callable[..., Callable[[Any], Any]], arguments: tuple[Any, ...]) -> None:
    global _function
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that hands out the work
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # there is a process per core already
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _function = make(*arguments)


def _end_with_parent() -> None:
    """A parent that was killed tells nobody, and its queue never ends."""
    parent = parent_process()
    assert parent
    parent.join()
    os._exit(1)


def _work(job: Any) -> Any:
    return _function(job)
