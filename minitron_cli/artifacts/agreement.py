"""What the first process of a distributed run decides and finishes, told to the others in order.

The processes share files, but a file that is there says nothing of those that are written after it: a process that went
on as soon as an artifact appeared read the pointers and records of the one before. Messages go through the store of the
launcher. It needs no process group and no accelerator, and a process may wait in it for as long as a stage takes.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from itertools import count
from typing import TYPE_CHECKING

from minitron_cli import process_rank, progress
from minitron_cli.errors import RunFailed

if TYPE_CHECKING:
    from minitron_cli.artifacts.workspace import Workspace

LOCKED = "the workspace is locked"
POLL_SECONDS = 0.05
CONNECT = timedelta(minutes=30)  # the processes of several machines start at different times


class _Messages:
    """Messages by number. All processes count alike, as they take the same steps."""

    def __init__(self) -> None:
        from torch.distributed.distributed_c10d import PrefixStore
        from torch.distributed.rendezvous import rendezvous

        store, _, _ = next(rendezvous("env://", timeout=CONNECT))
        self._store, self._numbers = PrefixStore("minitron", store), count()

    def tell(self, text: str, *, until_heard: bool) -> None:
        name = str(next(self._numbers))
        self._store.set(name, text)
        if until_heard:
            _wait_until(lambda: self._store.add(f"{name} heard", 0) == process_rank.process_count() - 1)

    def hear(self) -> str:
        name = str(next(self._numbers))
        _wait_until(lambda: self._store.check([name]))
        text: bytes = self._store.get(name)
        self._store.add(f"{name} heard", 1)
        return text.decode()


def _wait_until(is_so: Callable[[], bool]) -> None:
    while not is_so():
        progress.raise_if_stopped()
        time.sleep(POLL_SECONDS)


@cache
def _messages() -> _Messages:
    return _Messages()


def tell(text: str, *, until_heard: bool = False) -> None:
    """Tell the other processes, from the first one, and with `until_heard` wait until they know.

    The first process keeps the store where the launcher has none, so that it must not end before. Interrupted if a stop
    was requested meanwhile. Nothing to do where there are no others.
    """
    if process_rank.process_count() > 1:
        _messages().tell(text, until_heard=until_heard)


def hear() -> str:
    """The first process's next message, when it has come. Interrupted if a stop was requested meanwhile.

    RunFailed if the first process has ended and its store with it.
    """
    from torch.distributed import DistError

    try:
        return _messages().hear()
    except DistError as e:
        raise RunFailed("the first process has ended: run the command again, which continues where it was") from e


@contextmanager
def locked(workspace: "Workspace") -> Iterator[None]:
    """Context in which the first process holds the workspace's lock for all; the others wait until it has it.

    What they read of the workspace before may be replaced by the process that held it.
    """
    if not process_rank.is_first_process():
        hear()
        yield
        return
    with workspace.lock():
        tell(LOCKED)
        yield
