"""Several processes of one command: what they are started with, and that they end with their launcher."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import typer

from minitron_cli.artifacts import agreement
from minitron_cli.artifacts.workspace import Workspace
from minitron_cli.cli import app as program
from minitron_cli.cli import sessions, torchrun
from minitron_cli.cli.app import app
from minitron_cli.cli.options import BuildOptions, Show
from minitron_cli.errors import EnvironmentFault


def options() -> dict[str, list[str]]:
    """Verb -> its options, for every verb that can run in several processes."""
    verbs: dict[str, Any] = vars(typer.main.get_command(app))["commands"]
    named = {
        verb: [name for o in command.params for name in o.opts if name[0] == "-"] for verb, command in verbs.items()
    }
    return {verb: names for verb, names in named.items() if "--gpus" in names}


def abbreviates_torchrun(option: str) -> bool:
    from torch.distributed.run import get_args_parser

    theirs = [name for action in get_args_parser()._actions for name in action.option_strings]
    return any(name.startswith(option) for name in theirs)


def test_processes_look_for_modules_where_their_launcher_does(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In the working directory only if it does: a file there may be called like a library."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "json.py").write_text("print('not the library')")
    show = ["-c", "import sys, json"]
    for path, printed in ((sys.path, ""), (["", *sys.path], "not the library\n")):
        monkeypatch.setattr(sys, "path", path)
        command = [sys.executable, *torchrun._isolation(), *show]
        assert subprocess.check_output(command, text=True) == printed


@pytest.mark.parametrize("verb", options())
def test_every_option_reaches_the_processes(monkeypatch: pytest.MonkeyPatch, verb: str) -> None:
    """torchrun takes --run, for one, for an abbreviation of its own --run-path."""
    from torch.distributed.launcher import api

    started: list[tuple[str, ...]] = []

    class Launched:
        def __init__(self, config: Any, program: str) -> None:
            assert (config.nproc_per_node, program) == (2, sys.executable)

        def __call__(self, *arguments: str) -> None:
            started.append(arguments)

    monkeypatch.setattr(api, "elastic_launch", Launched)
    monkeypatch.setattr(torchrun.logging, "disable", lambda level: None)
    monkeypatch.setenv(torchrun.LAUNCHER, "1")
    words = [verb, *options()[verb], "a.b=c"]
    monkeypatch.setattr(sys, "argv", ["minitron", *words])
    with pytest.raises(SystemExit) as ended:
        torchrun.launch(2)
    assert ended.value.code == 0
    assert started == [("-u", "-m", "minitron_cli", *words)]


def test_some_options_would_be_taken_for_others() -> None:
    assert all("--run" in filter(abbreviates_torchrun, names) for names in options().values())


def test_a_process_without_a_launcher_watches_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(torchrun.LAUNCHER, raising=False)
    monkeypatch.setattr(torchrun, "_watch", lambda launcher: pytest.fail("watched"))
    torchrun.end_with_launcher()


@pytest.mark.parametrize(("rank", "code", "waits"), [(1, 2, True), (1, 143, False), (0, 2, False), (None, 2, False)])
def test_only_the_first_process_ends_at_once_with_its_error(
    monkeypatch: pytest.MonkeyPatch, rank: int | None, code: int, waits: bool
) -> None:
    """The launcher stops the others when one has ended, and only the first says what is wrong."""
    slept: list[float] = []
    monkeypatch.setattr(torchrun.time, "sleep", slept.append)
    monkeypatch.setattr(program, "app", lambda: sys.exit(code))
    monkeypatch.setattr(program, "_exit_at_once", sys.exit)
    monkeypatch.delenv(torchrun.LAUNCHER, raising=False)
    if rank is not None:
        monkeypatch.setenv("RANK", str(rank))
    with pytest.raises(SystemExit, match=str(code)):
        program.main()
    assert slept == [torchrun.FIRST_SECONDS] * waits


@pytest.mark.parametrize(("asked_before", "sent"), [(False, [15, 9]), (True, [9])])
def test_a_process_whose_launcher_had_ended_is_stopped(
    monkeypatch: pytest.MonkeyPatch, asked_before: bool, sent: list[int]
) -> None:
    """It had ended before the process looked for the first time, so that the process has another parent by now."""
    killed: list[tuple[int, int]] = []
    monkeypatch.setattr(torchrun.os, "kill", lambda pid, number: killed.append((pid, number)))
    monkeypatch.setattr(torchrun.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(torchrun.progress, "stop_requested", lambda: asked_before)
    torchrun._watch(os.getppid() + 1)
    assert killed == [(os.getpid(), number) for number in sent]


def workers(launcher: int) -> list[int]:
    listed = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    pairs = [tuple(map(int, line.split())) for line in listed.splitlines()]
    return [pid for pid, parent in pairs if parent == launcher]


def is_running(pid: int) -> bool:
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout
    return state.strip()[:1] not in ("", "Z")


def until(happened: Callable[[], Any], seconds: float = 120) -> Any:
    end = time.monotonic() + seconds
    while not (found := happened()):
        assert time.monotonic() < end
        time.sleep(0.1)
    return found


@pytest.mark.slow
def test_processes_end_when_their_launcher_is_killed(tiny: Path, tmp_path: Path) -> None:
    words = ["correct", tiny / "model", "--data", tiny / "text.jsonl", "--sequence-length", "16", "--device", "cpu"]
    words += [
        "--run",
        "named",
        "--runs-dir",
        tmp_path,
        "--gpus",
        "2",
        "--steps",
        "100000",
        "--batch-size",
        "4",
        "save_every=1",
    ]
    launcher = subprocess.Popen([sys.executable, "-m", "minitron_cli", *words])
    try:
        until(lambda: list(tmp_path.rglob("step-*")) or launcher.poll() is not None)
        processes = workers(launcher.pid)
    finally:
        launcher.kill()
        launcher.wait()
    try:
        assert len(processes) == 2
        until(lambda: not any(map(is_running, processes)), seconds=torchrun.SAVE_SECONDS)
    finally:
        for pid in filter(is_running, processes):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("asked_to_stop", [False, True])
def test_another_process_says_what_the_first_has_not_said(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], asked_to_stop: bool
) -> None:
    """When the first has ended with its own error, the launcher asks the others to stop."""
    monkeypatch.setattr(torchrun.time, "sleep", lambda _: None)
    monkeypatch.setattr(torchrun.progress, "stop_requested", lambda: asked_to_stop)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert program._fail(EnvironmentFault("no memory; close other programs"), Show()) == 3
    assert capfd.readouterr().err == "error: process 2 of 4: no memory; close other programs\n" * (not asked_to_stop)


FAIL = """
import os, sys

class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "minitron_cli.distill.trainer" and os.environ.get("RANK") == "1":
            {failure}

sys.meta_path.insert(0, Finder)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("failure", "code", "said"),
    [
        ("raise MemoryError", 3, "error: process 2 of 2: out of memory; lower the batch size"),
        (
            "os.kill(os.getpid(), 9)",
            137,
            "error: process 2 of 2 was killed by signal 9, as a system does",
        ),
    ],
)
def test_the_user_reads_why_one_of_several_processes_failed(
    tiny: Path, tmp_path: Path, failure: str, code: int, said: str
) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(FAIL.format(failure=failure))
    words = ["correct", tiny / "model", "--data", tiny / "text.jsonl", "--sequence-length", "16", "--device", "cpu"]
    words += ["--runs-dir", tmp_path / "runs", "--gpus", "2", "--steps", "2", "--batch-size", "4"]
    path = os.pathsep.join([str(tmp_path / "site"), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": path}
    found = subprocess.run(
        [sys.executable, "-m", "minitron_cli", *words], capture_output=True, text=True, env=environment
    )
    assert found.returncode == code, found.stderr
    assert [line for line in found.stderr.splitlines() if line.startswith(said)], found.stderr
    assert "stopped on request;" not in found.stderr


@pytest.mark.parametrize("rank", ["0", "1"])
def test_what_a_command_reads_is_what_the_one_before_has_left(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, rank: str
) -> None:
    """In every process: the first has the lock when the other command ends, and the others wait for it."""
    workspace = Workspace(tmp_path / "small")
    workspace.root.mkdir()
    workspace.save_settings(model="earlier")
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", "2")

    def wait() -> str:
        workspace.save_settings(model="later")
        return agreement.LOCKED

    @contextmanager
    def lock(_: Workspace) -> Iterator[None]:
        wait()
        yield

    monkeypatch.setattr(Workspace, "lock", lock)
    monkeypatch.setattr(agreement, "hear", wait)
    monkeypatch.setattr(agreement, "tell", lambda text: None)
    monkeypatch.chdir(tmp_path)
    with sessions.opened(BuildOptions(runs_dir=tmp_path, run="small"), "report") as session:
        assert session.requested.values["model"] == "later"
    assert workspace.settings["model"] == "later"
