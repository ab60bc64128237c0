"""Run the same command in several processes with torch's launcher."""

import logging
import os
import signal
import sys
import threading
import time
import uuid
from typing import NoReturn

from minitron_cli import process_rank, progress

LAUNCHER = "MINITRON_LAUNCHER"
"""Environment variable of the processes: process id of the launcher that started them."""
LOOK_SECONDS = 0.5
FIRST_SECONDS = 2.0
"""Time for the first process to print what is wrong before another ends, upon which the launcher stops it."""
SAVE_SECONDS = 30  # after which torch's launcher, too, kills a process that was asked to stop


def if_requested(processes: int) -> None:
    """Start `processes` copies of this command line and exit when they end; return at once in such a copy."""
    if processes > 1 and not is_one_of_several():
        launch(processes)


def is_one_of_several() -> bool:
    """Whether a launcher has started this process."""
    return "RANK" in os.environ


def leave() -> None:
    """Destroy the process group if there is one; its threads would abort the program if they outlived it."""
    if not is_one_of_several():
        return
    from torch import distributed

    if distributed.is_initialized():
        distributed.destroy_process_group()


def let_first_speak() -> bool:
    """In another process than the first, wait a moment; the launcher ends it, or asks it to stop, once the first has
    ended. Whether it was not asked to, so that nobody has said yet what is wrong."""
    if is_one_of_several() and not process_rank.is_first_process():
        time.sleep(FIRST_SECONDS)
    return not progress.stop_requested()


def launch(processes: int) -> NoReturn:
    """Run this command line in `processes` processes; exit with the code of the first one that fails."""
    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.disable(logging.ERROR)  # in the launcher only: the processes print errors
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # as torchrun does: the processes share the cores
    os.environ[LAUNCHER] = str(os.getpid())
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=str(uuid.uuid4()),
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        logs_specs=DefaultLogsSpecs(),
        shutdown_timeout=SAVE_SECONDS,
    )
    try:
        # Not torchrun: its argument parser takes `--run` for an abbreviation of an option of its own.
        elastic_launch(config, sys.executable)(*_isolation(), "-u", "-m", "minitron_cli", *sys.argv[1:])
    except ChildFailedError as e:
        rank, failure = e.get_first_failure()
        if failure.exitcode < 0:
            _say_killed(rank, processes, -failure.exitcode)
        sys.exit(failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode)
    except SignalException as e:
        sys.exit(128 + e.sigval)
    sys.exit(0)


def _say_killed(rank: int, processes: int, number: int) -> None:
    from minitron_cli.cli import console

    reason = ", as a system does that runs out of memory" if number == signal.SIGKILL else ""
    console.error(
        f"{process_rank.named(rank, processes)} was killed by signal {number}{reason}; run the same command again to "
        "continue"
    )


def _isolation() -> list[str]:
    """Option that keeps the working directory out of the module search path, unless it is in that of this process.

    `python -m` puts it there, and then a file that is called like a library, such as json.py, would be run.
    """
    return [] if {"", os.getcwd()} & set(sys.path) else ["-P"]


def end_with_launcher() -> None:
    """In a process of `launch`, watch the launcher from a thread: when it has ended, stop this process too.

    A launcher that is killed cannot stop its processes, which would keep the memory and wait for each other. Does
    nothing in any other process.
    """
    if launcher := os.environ.get(LAUNCHER):
        threading.Thread(target=_watch, args=(int(launcher),), daemon=True).start()


def _watch(launcher: int) -> None:
    while os.getppid() == launcher:  # also false if it had ended before this process looked
        time.sleep(LOOK_SECONDS)
    if not progress.stop_requested():  # a second signal would end the process before it has saved its state
        os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(SAVE_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)
