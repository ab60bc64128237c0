"""Apply one function to a stream of jobs, in several processes if worthwhile; results come in the order of the jobs.

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

from minitron_cli import stopping
from minitron_cli.errors import EnvironmentFault

MOST = 16  # the process that reads cannot supply more
BYTES_EACH = 32 << 20  # of text, about ten seconds' work; a process takes a second to start

MapJobs = Callable[[Iterable[Any]], Iterator[Any]]


def processes_for(size_bytes: int | None) -> int:
    """Number of processes worth starting for this much text on this machine; None: an unknown, large amount."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    worth = cpus if size_bytes is None else size_bytes // BYTES_EACH
    return max(1, min(MOST, cpus, worth))


@contextmanager
def mapping(make: Callable[..., Callable[[Any], Any]], arguments: tuple[Any, ...], processes: int) -> Iterator[MapJobs]:
    """A map over jobs of the function that `make(*arguments)` returns, made once per process. Few jobs are in memory.

    EnvironmentFault if a process is killed. With more than one process, a script that calls this must be guarded by
    `if __name__ == "__main__"`, because processes are spawned.
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
        stopping.raise_if_stopped()  # a signal to the group of processes ended one that had just started
        raise EnvironmentFault(
            "a tokenizing process was killed, probably because memory ran out: "
            "close other programs and run the command again"
        ) from None


_function: Callable[[Any], Any]


def _begin(make: Callable[..., Callable[[Any], Any]], arguments: tuple[Any, ...]) -> None:
    global _function
    for number in (signal.SIGINT, signal.SIGTERM):  # which reach a whole group of processes; the parent handles them
        signal.signal(number, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # there is a process per core already
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _function = make(*arguments)


def _end_with_parent() -> None:
    """Exit with the parent: if it was killed, the queue of jobs would never end."""
    parent = parent_process()
    assert parent
    parent.join()
    os._exit(1)


def _work(job: Any) -> Any:
    return _function(job)
