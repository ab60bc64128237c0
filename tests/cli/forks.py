"""The program under `--gpus` as forks of this process: torch is imported once, so its processes start in a moment."""

import logging
import multiprocessing
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from minitron_cli.cli.app import main
from tests.faults.campaign.programs import Ended, fork


def launched(root: Path, *words: str | Path | int) -> Ended:
    """What `minitron WORDS...`, called in the directory `root`, returns and prints."""
    import torch.distributed.elastic.agent.server.api
    import torch.distributed.fsdp  # noqa: F401 - before the fork: it takes seconds

    root.mkdir(parents=True)
    return fork([str(word) for word in words], root, _fork_what_is_launched).wait()


def _fork_what_is_launched() -> None:
    """Have torch's launcher, which keeps the books on its processes as ever, fork each instead of starting it."""
    from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler

    vars(subprocess_handler)["Popen"] = _started


def _started(args: Sequence[str], env: Mapping[str, str], start_new_session: bool, **streams: None) -> Any:
    """A handle like that of `subprocess.Popen`."""
    assert start_new_session
    assert set(streams.values()) == {None}
    at = args.index("minitron_cli")
    assert args[at - 1] == "-m"
    process: Any = multiprocessing.get_context("fork").Process(target=_work, args=(["minitron", *args[at + 1 :]], env))
    process.start()
    return process._popen


def _work(words: list[str], env: Mapping[str, str]) -> None:
    """Run the program without what its launcher has set for itself."""
    from accelerate import PartialState

    os.setsid()
    os.environ.clear()
    os.environ.update(env)
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
        signal.signal(number, handler)
    logging.disable(logging.NOTSET)
    PartialState._reset_state()
    sys.argv = words
    main()
