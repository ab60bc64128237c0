"""Run the same command in several processes, through torch's own launcher."""

import logging
import os
import sys
from typing import NoReturn


def if_asked(processes: int) -> None:
    """Run this program's command line in so many processes, unless it is one of several already."""
    if processes > 1 and "RANK" not in os.environ:
        again(processes)


def leave() -> None:
    """Leave the group of processes, if this is one of several: threads of it that outlive the program abort it."""
    if "RANK" not in os.environ:
        return
    from torch import distributed

    if distributed.is_initialized():
        distributed.destroy_process_group()


def again(processes: int) -> NoReturn:
    """Run this program's command line once per accelerator; end with the exit code of the first to fail."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    logging.disable(logging.ERROR)  # in this process alone: the first of those it starts says what went wrong
    launcher = ["--standalone", f"--nproc-per-node={processes}", "-m", "minitron_cli", *sys.argv[1:]]
    try:
        run(parse_args(launcher))
    except ChildFailedError as e:
        _, failure = e.get_first_failure()
        sys.exit(failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode)
    except SignalException as e:
        sys.exit(128 + e.sigval)
    sys.exit(0)
