"""Several processes at one artifact, and a disk that is really full."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pytest

from minitron_cli import io
from minitron_cli.artifacts.build import Context, produce
from minitron_cli.artifacts.workspace import Workspace
from minitron_cli.results.base import Result
from minitron_cli.spec import Spec
from tests.faults.harness import artifacts, half_made, here, in_child, leftovers


class Config(Spec):
    size: int = 1


class Written(Result):
    """Result of the stage under test."""

    schema_name: ClassVar[str] = "written/1"
    verb: ClassVar[str] = "minitron prune"


def stage_of(locked, scratch=False, **context):
    """A stage of about a megabyte; without its lock unless `locked`, as on a file system whose locks do nothing."""

    def build(work):
        if scratch:
            work.remember("state", lambda: {"n": 1})
        for i in range(4):
            io.write_new(work.path / f"part-{i}", (bytes([i]) * 50_000 for _ in range(5)))
        return Written()

    def run(root):
        workspace = Workspace(root / "run")
        if locked:
            with workspace.lock():
                return work(workspace)
        return work(workspace)

    def work(workspace):
        inputs = {"model": "m"}
        return produce(
            Context(workspace, **context), stage="prune", version=1, config=Config(), inputs=inputs, build=build
        )

    return run


@pytest.mark.parametrize("rounds", [2, pytest.param(30, marks=pytest.mark.slow)])
@pytest.mark.parametrize("locked", [False, True], ids=["no lock", "lock"])
def test_four_writers_of_one_artifact(place, locked, rounds):
    stage = stage_of(locked)
    assert here(stage, place / "alone").code == 0
    wanted = artifacts(place / "alone")
    for round_ in range(rounds):
        root = place / str(round_)
        root.mkdir()
        children = [in_child(stage, root, io.Disk()) for _ in range(4)]
        assert "".join(child.wait().trace for child in children) == ""
        assert artifacts(root) == wanted
        assert leftovers(root) == []
        shutil.rmtree(root)


@pytest.mark.slow
@pytest.mark.parametrize("rounds", [1, pytest.param(5, marks=pytest.mark.slow)])
@pytest.mark.parametrize("context", [{}, {"overwrite": True}], ids=["damaged", "overwritten"])
def test_four_writers_over_an_old_artifact(place, context, rounds):
    """Under the lock: one after the other, each replacing what it was asked to replace."""
    stage = stage_of(locked=True, scratch=True, **context)
    assert here(stage, place / "root").code == 0
    wanted = artifacts(place / "root")
    for _ in range(rounds):
        if not context:
            next((place / "root").rglob("part-0")).write_bytes(b"")
        children = [in_child(stage, place / "root", io.Disk()) for _ in range(4)]
        assert "".join(child.wait().trace for child in children) == ""
        assert artifacts(place / "root") == wanted
        assert leftovers(place / "root") == []


def fill(place: Path):
    """On a disk of 1600 KiB: the stage, which needs 1000, fails cleanly, and finishes once there is room."""
    root = place / "root"
    for ballast in range(640, 1600, 80):
        (place / "ballast").write_bytes(bytes(ballast << 10))
        root.mkdir()
        ended = here(stage_of(locked=True), root)
        assert isinstance(ended.error, OSError), ended
        assert ended.error.errno == errno.ENOSPC, ended
        assert (half_made(root), leftovers(root), artifacts(root)) == ([], [], {})
        (place / "ballast").unlink()
        ended = here(stage_of(locked=True), root)
        assert ended.code == 0, ended.trace
        assert len(artifacts(root)) == 2
        shutil.rmtree(root)
        print(f"{ballast} KiB taken: refused, then finished")


def why_no_small_disk() -> str:
    if shutil.which("unshare") is None:
        return "no unshare"
    tried = subprocess.run(["unshare", "-Urm", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True, text=True)
    return tried.stderr.strip()


@pytest.mark.slow
def test_a_full_disk(tmp_path):
    if reason := why_no_small_disk():
        pytest.skip(f"cannot mount a small disk here: {reason}")
    script = (
        "import sys; from pathlib import Path; from tests.faults.test_together import fill; fill(Path(sys.argv[1]))"
    )
    mounted = 'mount -t tmpfs -o size=1600k none "$0"; exec "$1" -c "$2" "$0"'
    command = ["unshare", "-Urm", "sh", "-ec", mounted, str(tmp_path), sys.executable, script]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": os.getcwd()})
    print("\n" + done.stdout)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("refused, then finished") == 12
