"""Power failures, simulated: what was committed is whole whatever the disk kept, and the next run finishes."""

import contextlib
import random
from typing import ClassVar

import pytest

from minitron_cli import io
from minitron_cli.artifacts import manifest
from minitron_cli.artifacts.artifact import Artifact
from minitron_cli.artifacts.build import Context, produce
from minitron_cli.artifacts.workspace import Workspace
from minitron_cli.errors import MinitronError
from minitron_cli.results.base import Result
from minitron_cli.spec import Spec
from tests.faults.crashes import Recorder, Unsynced, lay_out, states
from tests.faults.harness import artifacts, half_made, here, leftovers


class Config(Spec):
    size: int = 1


class Written(Result):
    """Result of the stage under test."""

    schema_name: ClassVar[str] = "written/1"
    verb: ClassVar[str] = "minitron prune"


def stage(root):
    def build(work):
        work.remember("state", lambda: {"n": 1})
        for i in range(3):
            io.write_new(work.path / f"part-{i}", [bytes([i + 1]) * 60, bytes([i + 1]) * 40])
        work.write_json("config.json", {"a": 1})
        return Written()

    workspace = Workspace(root / "run")
    produce(Context(workspace), stage="prune", version=1, config=Config(), inputs={"model": "m"}, build=build)


def recorded(root, monkeypatch, recorder=Recorder):
    root.mkdir()
    with monkeypatch.context() as patch:
        disk = recorder(root)
        patch.setattr(io, "disk", disk)
        stage(root)
    return disk


def as_recorded(artifact):
    """Hashes of files without reading them: those of the manifest."""
    return lambda files: [artifact.manifest.files[file.name] for file in files]


def trusted_and_wrong(root, wanted):
    """Artifacts that a later stage would read, sizes checked only, and that are not what was made."""
    for path in root.glob("run/prune/[!.]*/"):
        with contextlib.suppress(MinitronError):
            artifact = Artifact(path, manifest.read(path))
            if list(artifact.damage(as_recorded(artifact))):
                continue
            found = {p.name: p.read_bytes() for p in path.iterdir() if p.name != "run.json"}
            if found != wanted[str(path.relative_to(root))]:
                yield artifact


def test_no_crash_shows_anything_half_made(place, monkeypatch):
    disk = recorded(place / "root", monkeypatch)
    wanted, count = artifacts(place / "root"), 0
    for state in states(disk.moments, per_moment=20):
        root = lay_out(state, place / "after")
        assert half_made(root) == [], sorted(state)
        assert not list(trusted_and_wrong(root, wanted))
        count += 1
    print(f"\n{len(disk.moments)} moments, {count} states")
    assert count > 40


def test_what_is_done_is_done(place, monkeypatch):
    """Once the stage has returned, no crash takes its result back."""
    disk = recorded(place / "root", monkeypatch)
    wanted = artifacts(place / "root")
    for state in states(disk.moments[-1:], per_moment=200):
        assert artifacts(lay_out(state, place / "after")) == wanted


@pytest.mark.slow
def test_the_next_run_finishes_after_any_crash(place, monkeypatch):
    disk = recorded(place / "root", monkeypatch)
    wanted = artifacts(place / "root")
    every = list(states(disk.moments, per_moment=20))
    for state in random.Random(1).sample(every, min(len(every), 400)):
        root = lay_out(state, place / "after")
        assert here(stage, root).trace == ""
        assert artifacts(root) == wanted
        assert leftovers(root) == []


def test_without_syncing_the_simulation_finds_damage_that_is_trusted(place, monkeypatch):
    disk = recorded(place / "root", monkeypatch, Unsynced)
    wanted = artifacts(place / "root")
    after = (lay_out(state, place / "after") for state in states(disk.moments, per_moment=20))
    assert any(list(trusted_and_wrong(root, wanted)) for root in after)


def test_writing_in_place_the_simulation_finds_half_made_artifacts(place, monkeypatch):
    monkeypatch.setattr(io, "temporary_dir", lambda parent, name: io.disk.make_dir(parent / name) or parent / name)
    monkeypatch.setattr(io, "publish", lambda temporary, final: True)
    disk = recorded(place / "root", monkeypatch)
    assert any(half_made(lay_out(state, place / "after")) for state in states(disk.moments, per_moment=20))
