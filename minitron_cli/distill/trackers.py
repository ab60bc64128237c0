"""Experiment trackers such as TensorBoard, opened through accelerate.

They keep logs of their own outside artifacts; the artifact's curves hold the same figures.
"""

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from minitron_cli import io, process_rank, stopping
from minitron_cli.errors import RecipeError

PACKAGES = {"comet_ml": "comet-ml"}
"""Packages whose names differ from their tracker's."""
PROJECTS = {"trackio": "TRACKIO_PROJECT", "wandb": "WANDB_PROJECT"}
"""Trackers that keep runs in projects, and the environment variable that names one."""


def check(names: Sequence[str]) -> None:
    """RecipeError unless every tracker exists and its package is installed."""
    if not names:
        return
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    available = {str(getattr(tracker, "value", tracker)) for tracker in get_available_trackers()}
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise RecipeError(f"tracker {name!r} is unknown: choose from {', '.join(sorted(LOGGER_TYPE_TO_CLASS))}")
        if name not in available:
            raise RecipeError(
                f"tracker {name!r} needs a package that is missing: run `pip install {PACKAGES.get(name, name)}`, "
                "or leave the tracker out"
            )


@contextmanager
def opened(
    names: Sequence[str], directory: Path, project: str, run: str, settings: Mapping[str, Any]
) -> Iterator[Callable[[Mapping[str, float]], None]]:
    """Function that logs one row of figures, among them `step`, of a run of a project.

    Only the first process logs. RecipeError as `check`.
    """
    check(names)
    with ExitStack() as stack:
        trackers = (
            [_open(_tracker(name, directory, project, run), settings, stack) for name in names]
            if process_rank.is_first_process()
            else []
        )

        def log(row: Mapping[str, float]) -> None:
            figures = {name: value for name, value in row.items() if name != "step"}
            for tracker in trackers:
                tracker.log(figures, step=int(row["step"]))

        yield log


def _tracker(name: str, directory: Path, project: str, run: str) -> Any:
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    kind = LOGGER_TYPE_TO_CLASS[name]
    if name in PROJECTS:
        return kind(os.environ.get(PROJECTS[name]) or project, name=run)
    if kind.requires_logging_directory:
        io.make_dirs(directory)
        return kind(f"{project}-{run}", logging_dir=directory)
    return kind(f"{project}-{run}")


def _open(tracker: Any, settings: Mapping[str, Any], stack: ExitStack) -> Any:
    with redirect_stdout(sys.stderr):  # some greet, where the result is to be printed
        tracker.start()
        stack.callback(_finish, tracker)
        tracker.store_init_configuration({name: value for name, value in settings.items() if _is_plain(value)})
    return tracker


def _finish(tracker: Any) -> None:
    with stopping.deferred(), redirect_stdout(sys.stderr):
        tracker.finish()


def _is_plain(value: Any) -> bool:
    return isinstance(value, bool | int | float | str)
