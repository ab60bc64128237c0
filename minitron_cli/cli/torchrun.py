"""Run the same command in several processes with torchrun."""

import logging
import os
import sys
from typing import NoReturn


def if_requested(processes: int) -> None:
    """Start `processes` copies of this command line and exit when they end; return at once in such a copy."""
    if processes > 1 and "RANK" not in os.environ:
        launch(processes)


def leave() -> None:
    """Destroy the process group if there is one; its threads would abort the program if they outlived it."""
    if "RANK" not in os.environ:
        return
    from torch import distributed

    if distributed.is_initialized():
        distributed.destroy_process_group()


def launch(processes: int) -> NoReturn:
    """Run this command line in `processes` processes; exit with the code of the first one that fails."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    logging.disable(logging.ERROR)  # in the launcher only: rank 0 prints the error
    launcher = ["--standalone", f"--nproc-per-node={processes}", "-m", "minitron_cli", *sys.argv[1:]]
    try:
        run(parse_args(launcher))
    except ChildFailedError as e:
        _, failure = e.get_first_failure()
        sys.exit(failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode)
    except SignalException as e:
        sys.exit(128 + e.sigval)
    sys.exit(0)
