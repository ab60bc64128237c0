"""Signals decoded on threads before a step asks for them, so that no step waits for the disk."""

from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from minitron_cli.signals.rows import SignalRows
from minitron_cli.signals.shards import StoredSignals, Visit

THREADS = 2  # decode for several times what a step of any size reads


class ReadAhead:
    """Rows of stored signals, of which those that were requested are read meanwhile."""

    def __init__(self, stored: StoredSignals) -> None:
        self._stored = stored
        self._pool = ThreadPoolExecutor(THREADS, "signals")
        self._requested: dict[tuple[Visit, ...], Future[SignalRows]] = {}

    def request(self, some: Iterable[Sequence[Visit]]) -> None:
        """Begin to read what `rows` will be asked for."""
        for visits in map(tuple, some):
            if visits not in self._requested:
                self._requested[visits] = self._pool.submit(self._stored.rows, visits)

    def rows(self, visits: Sequence[Visit]) -> SignalRows:
        """Signals of the counted positions of some blocks, one after the other."""
        requested = self._requested.pop(tuple(visits), None)
        return requested.result() if requested else self._stored.rows(visits)

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(wait=True, cancel_futures=True)
