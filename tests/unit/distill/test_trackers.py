"""Trackers are given the project and the run under names that their users look for."""

from pathlib import Path
from typing import Any

import pytest

from minitron_cli.distill import trackers


class Kept:
    """A tracker that keeps how it was made."""

    requires_logging_directory = False
    made: tuple[tuple[Any, ...], dict[str, Any]]

    def __init__(self, *names: str, **options: Any) -> None:
        Kept.made = names, options

    def start(self) -> None: ...

    def store_init_configuration(self, values: dict[str, Any]) -> None: ...

    def finish(self) -> None: ...


@pytest.mark.parametrize(
    ("name", "variable", "made"),
    [
        ("wandb", None, (("llama",), {"name": "distilled"})),
        ("wandb", "WANDB_PROJECT", (("mine",), {"name": "distilled"})),
        ("trackio", "TRACKIO_PROJECT", (("mine",), {"name": "distilled"})),
        ("mlflow", "WANDB_PROJECT", (("llama-distilled",), {})),
    ],
)
def test_runs_of_a_workspace_are_in_one_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, variable: str | None, made: tuple[Any, ...]
) -> None:
    from accelerate import tracking

    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, name, Kept)
    monkeypatch.setattr(tracking, "get_available_trackers", lambda: [name])
    for other in trackers.PROJECTS.values():
        monkeypatch.delenv(other, raising=False)
    if variable:
        monkeypatch.setenv(variable, "mine")
    with trackers.opened([name], tmp_path, "llama", "distilled", {}):
        assert Kept.made == made
