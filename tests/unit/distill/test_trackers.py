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


def test_what_a_tracker_prints_is_not_on_stdout(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """There is the result of the command, which may be JSON."""

    class Chatty:
        def start(self) -> None:
            print("started")

        def store_init_configuration(self, settings: dict[str, Any]) -> None:
            print("configured")

        def log(self, figures: dict[str, float], step: int) -> None: ...

        def finish(self) -> None:
            print("finished")

    monkeypatch.setattr(trackers, "check", lambda names: None)
    monkeypatch.setattr(trackers, "_tracker", lambda *_: Chatty())
    with trackers.opened(["chatty"], tmp_path, "project", "run", {}) as log:
        log({"step": 1, "loss": 2.0})
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.split() == ["started", "configured", "finished"]
