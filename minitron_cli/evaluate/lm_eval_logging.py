"""Side effects of lm-eval and the libraries under it, suppressed: output, worker processes, global random state."""

import contextlib
import io as text_io
import logging
import os
import random
import warnings
from collections.abc import Iterator

import numpy as np
import torch
import tqdm

SEED = 1234  # default of lm-eval for the choice of few-shot examples


class Truncations(logging.Handler):
    """Counts truncated requests, the one log message of lm-eval that concerns results."""

    count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.count += "Truncating" in record.getMessage()


@contextlib.contextmanager
def quiet() -> Iterator[Truncations]:
    """Suppress progress bars, prints, logs and worker processes of libraries; yields the count of truncations."""
    truncations = Truncations()
    with contextlib.ExitStack() as stack:
        for name in ("lm_eval", "datasets", "huggingface_hub", "transformers"):
            stack.enter_context(_logs_only_to(truncations, logging.getLogger(name)))
        stack.enter_context(_no_bars())
        stack.enter_context(_environment("DISABLE_MULTIPROC", "1"))  # else metrics are bootstrapped by forked workers
        stack.enter_context(contextlib.redirect_stdout(text_io.StringIO()))
        stack.enter_context(warnings.catch_warnings(action="ignore"))
        yield truncations


@contextlib.contextmanager
def _logs_only_to(handler: logging.Handler, logger: logging.Logger) -> Iterator[None]:
    before = logger.handlers, logger.propagate, logger.level
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.handlers, logger.propagate = before[:2]
        logger.setLevel(before[2])


@contextlib.contextmanager
def _no_bars() -> Iterator[None]:
    """Disable every tqdm bar. lm-eval passes `disable` explicitly, so the constructor is replaced."""
    original = tqdm.tqdm.__init__
    tqdm.tqdm.__init__ = lambda self, *args, **options: original(self, *args, **options | {"disable": True})
    try:
        yield
    finally:
        tqdm.tqdm.__init__ = original


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


@contextlib.contextmanager
def seeded() -> Iterator[None]:
    """Seed the global random generators, which some tasks shuffle choices with, and restore them afterwards."""
    before = random.getstate(), np.random.get_state()
    random.seed(0)
    np.random.seed(SEED)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
