import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from contextlib import suppress

import pytest

from minitron_cli import io, progress
from minitron_cli.artifacts.workspace import Workspace, last_used, open_workspace, remember, slug
from minitron_cli.errors import ArtifactError, InputError, Interrupted
from tests.unit.artifacts.test_artifact import made


@pytest.fixture
def workspace(tmp_path):
    return Workspace(tmp_path / "runs" / "one")


def stored(workspace, name="a-ffffffff", **fields):
    workspace.stage_dir("prune").mkdir(parents=True, exist_ok=True)
    return made(workspace.stage_dir("prune"), name, **fields)


def test_nothing_is_there_at_first(workspace, tmp_path):
    assert workspace.current("prune") is None
    assert workspace.artifacts("prune") == []
    assert workspace.settings == {}
    with pytest.raises(ArtifactError, match=r"has no prune result: run `minitron prune --run \w+ --runs-dir .*` first"):
        workspace.require("prune", "minitron prune")
    assert not list(tmp_path.iterdir())


def test_the_pointer_says_which_is_current(workspace):
    one, two = stored(workspace), stored(workspace, "b-ffffffff", label="b")
    assert workspace.current("prune") is None
    workspace.point(two)
    assert workspace.current("prune") == workspace.require("prune", "") == two
    workspace.point(one)
    assert workspace.current("prune") == one
    assert workspace.artifacts("prune") == [one, two]


def test_pointing_again_writes_nothing(workspace):
    one = stored(workspace)
    workspace.point(one)
    before = (workspace.stage_dir("prune") / "current").stat()
    workspace.point(one)
    assert (workspace.stage_dir("prune") / "current").stat() == before


@pytest.mark.parametrize("content", ["gone-12345678\n", "", "\n", "../../../etc", "\0", "a" * 5000])
def test_a_pointer_to_nothing_is_as_none(workspace, content):
    stored(workspace)
    (workspace.stage_dir("prune") / "current").write_text(content)
    assert workspace.current("prune") is None


def test_a_damaged_neighbour_does_not_hide_the_sound(workspace):
    one, two = stored(workspace), stored(workspace, "b-ffffffff", label="b")
    (two.path / "config.json").unlink()
    (workspace.stage_dir("prune") / ".tmp-x").mkdir()
    assert workspace.artifacts("prune") == [one]


def test_settings_are_merged(workspace):
    workspace.save_settings(model="m", data=[1])
    workspace.save_settings(data=[2])
    assert workspace.settings == {"model": "m", "data": [2]}
    before = (workspace.root / "settings.json").stat()
    workspace.save_settings(model="m")
    assert (workspace.root / "settings.json").stat() == before


def test_the_last_used_workspace_is_found_again(tmp_path):
    with pytest.raises(ArtifactError, match="has no current workspace: name one with --run, or start with"):
        open_workspace(tmp_path, None)
    one = open_workspace(tmp_path, None, default="one")
    remember(one)
    assert last_used(tmp_path) == "one"
    assert open_workspace(tmp_path, None) == one
    assert open_workspace(tmp_path, "two").root == tmp_path / "two"


@pytest.mark.parametrize("name", ["../x", "a/b", ".hidden", "-x", "a b", "a\n", "\0", "~"])
def test_a_workspace_name_is_one_plain_word(tmp_path, name):
    with pytest.raises(InputError, match="use letters, digits"):
        open_workspace(tmp_path, name)


@pytest.mark.parametrize("name", ["current", "Current"])
def test_no_workspace_is_called_as_the_pointer_to_one(tmp_path, name):
    """Where case makes no difference to a file system, as on macOS, both are one path."""
    with pytest.raises(InputError, match="is reserved for the file that names the last workspace: choose"):
        open_workspace(tmp_path, name)


@pytest.mark.parametrize(
    "name",
    [
        "meta-llama/Llama-3.1-8B",
        "releases/current",
        "./my model",
        "/a/b/",
        "..",
        "é",
        "",
        "-",
        "x" * 400,
        "a\nb",
        "_own",
        "._-",
    ],
)
def test_any_model_has_a_workspace_name(tmp_path, name):
    open_workspace(tmp_path, slug(name))
    assert slug("meta-llama/Llama-3.1-8B") == "llama-3.1-8b"


def is_held(root):
    with open(root / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


class TestLock:
    def test_an_unused_workspace_disappears(self, workspace, tmp_path):
        with workspace.lock():
            assert workspace.root.is_dir()
        assert not (tmp_path / "runs").exists()

    def test_it_disappears_before_another_process_may_fill_it(self, workspace, monkeypatch):
        held = []
        monkeypatch.setattr(
            "minitron_cli.artifacts.workspace._remove_if_empty", lambda root: held.append(is_held(root))
        )
        with workspace.lock():
            pass
        assert held == [True]

    def test_a_used_workspace_stays(self, workspace):
        with workspace.lock():
            workspace.save_settings(model="m")
        assert workspace.settings == {"model": "m"}

    def test_it_is_released_after_an_error(self, workspace):
        with pytest.raises(ZeroDivisionError), workspace.lock():
            raise ZeroDivisionError
        with workspace.lock():
            pass

    def holder(self, workspace, seconds=60):
        script = (
            "import sys, time; from pathlib import Path; from minitron_cli.artifacts.workspace import Workspace\n"
            f"with Workspace(Path({str(workspace.root)!r})).lock(): print('held', flush=True); time.sleep({seconds})"
        )
        process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
        assert process.stdout.readline() == "held\n"
        return process

    @pytest.mark.slow
    def test_a_second_process_waits_and_says_so(self, workspace):
        said = []
        progress.show_on(type("Told", (), {"say": lambda self, text: said.append(text)})())
        process = self.holder(workspace)
        threading.Timer(2.5, process.terminate).start()
        with workspace.lock():
            process.wait()
        assert said == [f"waiting for another minitron process in {workspace.root}"]

    @pytest.mark.slow
    def test_the_wait_can_be_stopped(self, workspace):
        process = self.holder(workspace)
        progress.request_stop(15)
        try:
            with pytest.raises(Interrupted), workspace.lock():
                pass
        finally:
            process.kill()
            process.wait()

    @pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK])
    def test_a_file_system_without_locks_is_worked_on(self, workspace, monkeypatch, number):
        monkeypatch.setattr(fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(number, os.strerror(number))))
        with warnings.catch_warnings(action="ignore"), workspace.lock():
            workspace.save_settings(model="m")
        assert workspace.settings == {"model": "m"}

    def test_a_disk_error_while_locking_is_told(self, workspace, monkeypatch):
        monkeypatch.setattr(fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "broken")))
        with pytest.raises(OSError, match="broken"), workspace.lock():
            pass

    @pytest.mark.slow
    def test_a_waiter_survives_that_the_holder_removes_an_unused_workspace(self, workspace):
        process = self.holder(workspace, seconds=1)
        with workspace.lock():
            assert process.wait() == 0
            assert is_held(workspace.root)

    @pytest.mark.parametrize("removes", [shutil.rmtree, lambda root: root.rename(root.with_name(".tmp-del"))])
    def test_no_lock_is_held_on_a_file_that_was_removed_meanwhile(self, workspace, monkeypatch, removes):
        """The holder before was killed while it removed the workspace, or a user removed it."""

        def flock_after_removal(*held):
            monkeypatch.setattr(fcntl, "flock", flock)
            removes(workspace.root)
            flock(*held)

        flock = fcntl.flock
        monkeypatch.setattr(fcntl, "flock", flock_after_removal)
        with workspace.lock():
            assert is_held(workspace.root)

    def test_a_directory_that_cannot_be_made_is_told(self, workspace, monkeypatch):
        monkeypatch.setattr(io, "make_dirs", lambda path: (_ for _ in ()).throw(FileNotFoundError(2, "gone", path)))
        with pytest.raises(FileNotFoundError), workspace.lock():
            pass

    def test_a_new_neighbor_of_a_removed_workspace_stays(self, workspace, monkeypatch):
        """It is made after the last look at the directory of workspaces."""

        def remove(path):
            (path / "two").mkdir()
            path.rmdir()

        monkeypatch.setattr(io.disk, "remove_dir", remove)
        with workspace.lock():
            pass
        assert [path.name for path in workspace.root.parent.iterdir()] == ["two"]

    def test_a_killed_holder_holds_nothing(self, workspace):
        process = self.holder(workspace)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        started = time.monotonic()
        with workspace.lock():
            assert time.monotonic() - started < 1


def test_a_command_that_wrote_no_file_leaves_no_workspace(workspace):
    with workspace.lock():
        io.make_dirs(workspace.tokens)
    assert not workspace.root.parent.exists()
    with workspace.lock():
        io.make_dirs(workspace.tokens)
        (workspace.tokens / "a").write_text("a")
    assert workspace.tokens.is_dir()


def test_a_command_that_makes_results_again_knows_its_own(workspace):
    """If it was stopped and is given again; not if another command came between, or it had ended."""

    def since(command, *, stopped=False, **options):
        with suppress(Interrupted), workspace.overwriting(command, **options) as found:
            if stopped:
                raise Interrupted("stopped", 15)
        return found

    io.make_dirs(workspace.root)
    first = since("a", stopped=True)
    assert since("a", is_dry=True) == first
    assert since("a", stopped=True) == first
    assert since("b", is_dry=True) > first
    assert since("a") == first
    second = since("a", stopped=True)
    assert second > first
    assert since(None) is None
    assert since("a", stopped=True) > second
    (workspace.root / "overwriting.json").write_text("{")
    assert since("a") > second
    assert not list(workspace.root.iterdir())
