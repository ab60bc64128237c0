"""Files that the user names for output: links, modes, devices, pipes, and what is refused before any work."""

import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from minitron_cli import io, progress
from minitron_cli.cli import copy_out, output_file
from minitron_cli.errors import EnvironmentFault, InputError, Interrupted
from tests.cli.program import Run

WRITTEN = b"new text\n"


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


class TestRegularFiles:
    def test_a_directory_that_takes_no_new_file_is_an_error_in_a_sentence(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As /proc does for root, and a directory that another program removes meanwhile."""

        def gone(*_: object, **__: object) -> None:
            raise FileNotFoundError(2, "No such file or directory")

        monkeypatch.setattr(io, "replace", gone)
        with pytest.raises(EnvironmentFault, match=r"x.xml cannot be written: .* takes no new file"):
            output_file.write(tmp_path / "x.xml", WRITTEN)

    def test_a_new_file_has_the_mode_of_any_new_file(self, tmp_path: Path) -> None:
        output_file.write(tmp_path / "a/b/new", WRITTEN)
        (tmp_path / "usual").touch()
        assert (tmp_path / "a/b/new").read_bytes() == WRITTEN
        assert (tmp_path / "a/b/new").stat().st_mode == (tmp_path / "usual").stat().st_mode

    @pytest.mark.parametrize("mode", [0o600, 0o664, 0o755])
    def test_a_file_keeps_its_mode_and_its_link(self, tmp_path: Path, mode: int) -> None:
        (tmp_path / "there").mkdir()
        target, link = tmp_path / "there/page", tmp_path / "link"
        target.write_text("old")
        target.chmod(mode)
        link.symlink_to("there/page")
        (tmp_path / "chain").symlink_to(link)
        output_file.write(tmp_path / "chain", WRITTEN)
        assert target.read_bytes() == WRITTEN
        assert stat.S_IMODE(target.stat().st_mode) == mode
        assert link.is_symlink()
        assert names(tmp_path / "there") == ["page"]

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
    def test_a_file_keeps_its_owner(self, tmp_path: Path) -> None:
        (tmp_path / "page").touch()
        os.chown(tmp_path / "page", 4321, 4322)
        output_file.write(tmp_path / "page", WRITTEN)
        found = (tmp_path / "page").stat()
        assert (found.st_uid, found.st_gid) == (4321, 4322)

    def test_a_link_to_nothing_makes_what_it_names(self, tmp_path: Path) -> None:
        (tmp_path / "link").symlink_to("deep/page")
        output_file.write(tmp_path / "link", WRITTEN)
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "deep/page").read_bytes() == WRITTEN

    def test_appending_keeps_what_is_there(self, tmp_path: Path) -> None:
        for _ in range(2):
            output_file.write(tmp_path / "page", WRITTEN, append=True)
        assert (tmp_path / "page").read_bytes() == 2 * WRITTEN

    @pytest.mark.parametrize("call", ["write", "fsync", "make_like", "replace"])
    def test_a_failure_leaves_the_old_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
        def fail(*_: object) -> None:
            raise OSError(28, "full")

        (tmp_path / "page").write_text("old")
        monkeypatch.setattr(io.disk, call, fail)
        with pytest.raises(OSError, match="full"):
            output_file.write(tmp_path / "page", WRITTEN)
        assert (tmp_path / "page").read_text() == "old"
        assert names(tmp_path) == ["page"]


class TestStreams:
    @pytest.fixture
    def fifo(self, tmp_path: Path) -> Path:
        os.mkfifo(tmp_path / "fifo")
        return tmp_path / "fifo"

    @pytest.mark.parametrize("append", [True, False])
    @pytest.mark.parametrize("through_link", [True, False])
    def test_a_pipe_gets_the_content_and_stays_a_pipe(
        self, tmp_path: Path, fifo: Path, append: bool, through_link: bool
    ) -> None:
        (tmp_path / "link").symlink_to("fifo")
        read: list[bytes] = []
        reader = threading.Thread(target=lambda: read.append(fifo.read_bytes()), daemon=True)
        content = WRITTEN * 20_000  # more than a pipe holds
        output_file.check(fifo)
        reader.start()
        output_file.write(tmp_path / "link" if through_link else fifo, content, append=append)
        reader.join(10)
        assert read == [content]
        assert fifo.is_fifo()

    def test_a_stop_ends_the_wait_for_a_reader(self, fifo: Path) -> None:
        progress.request_stop(15)
        with pytest.raises(Interrupted):
            output_file.write(fifo, WRITTEN)

    def test_a_device_is_written_to(self) -> None:
        before = os.stat(os.devnull)
        output_file.check(Path(os.devnull))
        output_file.write(Path(os.devnull), WRITTEN, append=True)
        assert os.stat(os.devnull).st_ino == before.st_ino

    @pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "link"])
    @pytest.mark.parametrize("kind", ["file", "pipe"])
    def test_stdout_continues_what_was_printed(self, tmp_path: Path, name: str, kind: str) -> None:
        """A file behind it is neither replaced nor written over."""
        (tmp_path / "link").symlink_to("/dev/stdout")
        program = (
            "from pathlib import Path; from minitron_cli.cli import output_file as o\n"
            f"p = Path({name!r}); o.check(p); print('before'); o.write(p, b'text\\n', append=True); print('after')"
        )
        out = tmp_path / "out"
        with out.open("wb") as file:
            done = subprocess.run(
                [sys.executable, "-c", f"import os; os.chdir({str(tmp_path)!r})\n{program}"],
                stdout=file if kind == "file" else subprocess.PIPE,
                check=True,
            )
        assert (out.read_bytes() if kind == "file" else done.stdout) == b"before\ntext\nafter\n"


class TestRefusals:
    def test_a_directory(self, tmp_path: Path) -> None:
        (tmp_path / "link").symlink_to(tmp_path)
        for path in (tmp_path, tmp_path / "link"):
            with pytest.raises(InputError, match="is a directory: name a file"):
                output_file.check(path)
            with pytest.raises(InputError, match="is a directory"):
                output_file.write(path, WRITTEN)

    def test_a_socket(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import socket

        monkeypatch.chdir(tmp_path)  # the length of a socket's path is limited
        with socket.socket(socket.AF_UNIX) as one:
            one.bind("socket")
            with pytest.raises(InputError, match="no regular file, device or pipe"):
                output_file.check(Path("socket"))

    def test_a_link_to_itself(self, tmp_path: Path) -> None:
        (tmp_path / "loop").symlink_to("loop")
        with pytest.raises(InputError, match="leads back to itself"):
            output_file.check(tmp_path / "loop")

    @pytest.mark.parametrize("below", ["file/page", "file/deep/page"])
    def test_a_file_in_the_place_of_a_directory(self, tmp_path: Path, below: str) -> None:
        (tmp_path / "file").touch()
        for check in (output_file.check, copy_out.check_new):
            with pytest.raises(InputError, match="file is no directory"):
                check(tmp_path / below)

    def test_a_descriptor_that_is_closed_or_read_only(self) -> None:
        read, write = os.pipe()
        os.close(write)
        for number in (read, write):
            with pytest.raises(InputError, match="not open for writing"):
                output_file.check(Path(f"/dev/fd/{number}"))
        os.close(read)

    @pytest.mark.parametrize("protected", ["page", ".", "deep"])
    def test_what_may_not_be_written(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protected: str) -> None:
        (tmp_path / "page").touch()
        (tmp_path / "deep").mkdir()
        no = tmp_path / protected
        monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != no and os.path.lexists(path))
        output = tmp_path / "deep/new/page" if protected == "deep" else tmp_path / "page"
        with pytest.raises(EnvironmentFault, match="may not be written to"):
            output_file.check(output)

    def test_two_outputs_in_one_file(self, tmp_path: Path) -> None:
        (tmp_path / "link").symlink_to("page")
        with pytest.raises(InputError, match="two outputs"):
            output_file.check_distinct(tmp_path / "page", None, tmp_path / "link")
        output_file.check_distinct(Path("/dev/stdout"), Path("/dev/stdout"))

    def test_a_new_directory_is_not_a_link_to_nothing(self, tmp_path: Path) -> None:
        (tmp_path / "link").symlink_to("nowhere")
        with pytest.raises(InputError, match="already exists"):
            copy_out.check_new(tmp_path / "link")


Command = Callable[[Path], list[str | Path]]
OUTPUTS: dict[str, Command] = {
    "eval --junit": lambda file: ["eval", "absent-model", "--junit", file],
    "eval --summary": lambda file: ["eval", "absent-model", "--summary", file],
    "show --plot": lambda file: ["show", "importance", "--plot", file],
    "report --output": lambda file: ["report", "-o", file],
    "prune --output": lambda file: ["prune", "absent-model", "--target", "50%", "-o", file],
    "correct --output": lambda file: ["correct", "-o", file],
    "distill --output": lambda file: ["distill", "absent-model", "-o", file],
    "recipes cp": lambda file: ["recipes", "cp", "demo", file],
}


@pytest.mark.parametrize("command", OUTPUTS.values(), ids=OUTPUTS)
def test_every_output_is_checked_first(run: Run, tmp_path: Path, command: Command) -> None:
    """Before the model, the data and the workspace, all of which are missing here."""
    (tmp_path / "file").touch()
    done = run(*command(tmp_path / "file/output"))
    assert done.exit_code == 2
    assert "file is no directory" in done.stderr
