import os
import signal
import subprocess
import sys
import threading
import time
from typing import ClassVar

import pytest

from minitron_cli import io, progress
from minitron_cli.artifacts import agreement
from minitron_cli.artifacts.artifact import Artifact
from minitron_cli.artifacts.build import Context, DryRunStop, StageBuild, produce
from minitron_cli.artifacts.workspace import Workspace
from minitron_cli.errors import CheckpointError, Interrupted, RunFailed
from minitron_cli.results.base import Result
from minitron_cli.results.run_record import ExportCheck
from minitron_cli.spec import Spec
from tests.processes import together


class Inner(Spec):
    rate: float = 0.5


class Config(Spec):
    size: int = 1
    inner: Inner = Inner()
    parts: tuple[int, ...] = (1, 2)


class Told:
    """A display that keeps remarks."""

    def __init__(self):
        self.said, self.warned = [], []
        self.say, self.warn = self.said.append, self.warned.append


@pytest.fixture
def told():
    display = Told()
    progress.show_on(display)
    return display


class Counted(Result):
    """Result of the stage under test."""

    schema_name: ClassVar[str] = "counted/1"
    verb: ClassVar[str] = "minitron prune"

    n: int = 0


class Bench:
    """A stage that counts how often it works."""

    def __init__(self, root):
        self.context = {"workspace": Workspace(root)}
        self.built = 0

    def build(self, work):
        self.built += 1
        io.write_new(work.path / "data", b"x" * 100)
        work.write_json("config.json", {"a": 1})
        work.measured.export_check = ExportCheck(compared="whole", seconds=7.0)
        return Counted(n=3)

    def __call__(
        self, config=None, *, build=None, inputs=None, version=1, label="", given=None, together=False, **context
    ):
        return produce(
            Context(**self.context | context),
            stage="prune",
            version=version,
            config=config or Config(),
            inputs=inputs or {"model": "m"},
            build=build or self.build,
            label=label,
            given=lambda: given or {},
            together=together,
        )


@pytest.fixture
def run(tmp_path):
    return Bench(tmp_path / "ws")


def left(root):
    return sorted(str(p.relative_to(root)) for p in root.rglob("*"))


def test_a_stage_builds_once(run, told):
    first, again = run(), run()
    assert (run.built, again) == (1, first)
    assert told.said == [f"prune: wrote {first.path}", f"prune: up to date ({first.path})"]
    assert sorted(p.name for p in first.path.iterdir()) == [
        "config.json",
        "data",
        "manifest.json",
        "result.json",
        "run.json",
    ]
    assert first.result(Counted) == Counted(n=3)
    assert first.run.export_check == ExportCheck(compared="whole", seconds=7.0)
    assert first.run.host
    assert run.context["workspace"].current("prune") == first


@pytest.mark.parametrize("is_done", [False, True])
def test_what_a_killed_run_was_writing_is_removed_wherever_it_lies(run, is_done):
    """given.json and settings.json lie in the workspace itself, and are not written again once they are right."""
    if is_done:
        run()
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    root = run.context["workspace"].root
    io.make_dirs(root / "prune")
    for place in (root, root / "prune"):
        (place / f"{io.TEMPORARY}given.json-0-{ended.stdout.strip()}").write_text("{")
    run()
    assert not [name for name in left(root) if io.TEMPORARY in name]


@pytest.mark.parametrize(
    "change",
    [
        {"config": Config(size=2)},
        {"config": Config(inner=Inner(rate=0.25))},
        {"config": Config(parts=(2, 1))},
        {"inputs": {"model": "other"}},
        {"inputs": {"model": "m", "scores": "s"}},
        {"version": 2},
    ],
    ids=str,
)
def test_another_intent_is_another_artifact(run, change):
    first, second = run(), run(**change)
    assert run.built == 2
    assert first.path != second.path
    assert first.path.is_dir()
    assert run.context["workspace"].current("prune") == second
    assert run() == first
    assert run.built == 2
    assert run.context["workspace"].current("prune") == first


@pytest.mark.parametrize(
    "same", [{"config": Config(size=1)}, {"device": "cpu", "dtype": "float32", "offline": True}], ids=str
)
def test_how_to_run_is_no_part_of_identity(run, same):
    run()
    run(**same)
    assert run.built == 1


def test_a_label_names_the_directory(run):
    path = run(label="student").path
    assert path.name.startswith("student-")
    assert run().path.name == path.name.removeprefix("student-")


@pytest.mark.slow
def test_what_surrounds_a_run_does_not_show_in_its_bytes(tmp_path):
    script = (
        "import sys, os; from pathlib import Path; sys.path.insert(0, os.environ['REPO'])\n"
        "from tests.unit.artifacts.test_build import Bench\n"
        "print(Bench(Path(sys.argv[1]))().path)"
    )
    found = []
    for i, (umask, seed, zone) in enumerate([("022", "0", "UTC"), ("077", "1", "Asia/Tokyo")]):
        cwd = tmp_path / f"cwd{i}"
        cwd.mkdir()
        environment = os.environ | {
            "PYTHONHASHSEED": seed,
            "TZ": zone,
            "REPO": os.getcwd(),
            "LC_ALL": ["C", "C.UTF-8"][i],
        }
        command = [
            "sh",
            "-c",
            f'umask {umask}; exec "$0" -c "$1" "$2"',
            sys.executable,
            script,
            str(tmp_path / f"ws {i}"),
        ]
        path = subprocess.check_output(command, cwd=cwd, env=environment, text=True).strip()
        artifact = Artifact.open(path, verify=True)
        found.append({p.name: p.read_bytes() for p in artifact.path.iterdir() if p.name != "run.json"})
    assert found[0] == found[1]


class TestDryRun:
    def test_it_says_what_it_would_write_and_touches_nothing(self, run, tmp_path):
        with pytest.raises(DryRunStop) as caught:
            run(dry_run=True)
        assert (caught.value.stage, caught.value.path.parent, caught.value.changed) == (
            "prune",
            tmp_path / "ws" / "prune",
            [],
        )
        assert not list(tmp_path.iterdir())
        assert run.built == 0

    def test_it_names_what_changed(self, run):
        run()
        before = left(run.context["workspace"].root)
        with pytest.raises(DryRunStop) as caught:
            run(Config(size=2, inner=Inner(rate=0.1)), inputs={"model": "m", "scores": "s"}, version=2, dry_run=True)
        assert caught.value.changed == ["inner.rate", "input scores", "size", "stage version"]
        assert str(caught.value).endswith("(changed: inner.rate, input scores, size, stage version)")
        assert left(run.context["workspace"].root) == before

    def test_up_to_date_is_said_and_the_pointer_stays(self, run, told):
        first, second = run(), run(Config(size=2))
        assert run(dry_run=True) == first
        assert told.said[-1] == f"prune: up to date ({first.path})"
        assert run.context["workspace"].current("prune") == second

    def test_a_damaged_result_would_be_made_again(self, run, told):
        artifact = run()
        (artifact.path / "data").write_bytes(b"y" * 100)
        with pytest.raises(DryRunStop):
            run(dry_run=True)
        assert (artifact.path / "data").read_bytes() == b"y" * 100

    def test_a_damaged_neighbour_does_not_matter(self, run):
        artifact = run()
        (artifact.path / "data").unlink()
        with pytest.raises(DryRunStop) as caught:
            run(Config(size=2), dry_run=True)
        assert caught.value.changed == []


class TestDamage:
    @pytest.mark.parametrize("damage", ["flip", "missing", "extra", "no manifest", "manifest", "empty"])
    def test_a_damaged_result_is_made_again_with_a_warning(self, run, told, damage):
        artifact = run()
        wanted = {p.name: p.read_bytes() for p in artifact.path.iterdir() if p.name != "run.json"}
        if damage == "flip":
            (artifact.path / "data").write_bytes(b"x" * 99 + b"y")
        elif damage == "extra":
            (artifact.path / "stranger").write_text("")
        elif damage == "manifest":
            (artifact.path / "manifest.json").write_text("{}")
        else:
            for path in artifact.path.iterdir():
                if damage == "empty" or path.name == {"missing": "data", "no manifest": "manifest.json"}[damage]:
                    path.unlink()
        again = run()
        assert run.built == 2
        assert [f"{artifact.path} is made again: " in text for text in told.warned] == [True]
        assert {p.name: p.read_bytes() for p in again.path.iterdir() if p.name != "run.json"} == wanted
        assert left(run.context["workspace"].root / "prune") == sorted(
            [again.path.name, "current", *(f"{again.path.name}/{name}" for name in [*wanted, "run.json"])]
        )

    def test_another_key_under_the_same_name_is_replaced(self, run, told):
        artifact, other = run(), run(Config(size=2))
        for path in artifact.path.iterdir():
            path.unlink()
        artifact.path.rmdir()
        other.path.rename(artifact.path)
        assert run().key == artifact.key
        assert "it has another key" in told.warned[0]

    def test_overwriting_keeps_the_old_until_the_new_is_whole(self, run):
        artifact = run()

        def fail(work):
            assert Artifact.open(artifact.path, verify=True)
            raise CheckpointError("no")

        with pytest.raises(CheckpointError):
            run(overwrite=True, build=fail)
        assert Artifact.open(artifact.path, verify=True) == artifact
        before = artifact.path.stat().st_ino
        assert run(overwrite=True) == artifact
        assert artifact.path.stat().st_ino != before

    def test_what_an_overwriting_run_has_made_is_not_made_again(self, run):
        run()
        before = time.time_ns() - 10**9  # clocks of files are coarse
        assert run.built == 1
        run(overwrite=True, overwriting_since=time.time_ns() + 10**9)
        assert run.built == 2
        run(overwrite=True, overwriting_since=before)
        assert run.built == 2


class TestFailure:
    @pytest.mark.parametrize(
        "error", [CheckpointError("no"), Interrupted("stop", 15), KeyboardInterrupt(), OSError(28, "full")]
    )
    def test_nothing_is_left_and_the_error_passes(self, run, tmp_path, error):
        def fail(work):
            io.write_new(work.path / "half", b"x")
            raise error

        with pytest.raises(type(error)):
            run(build=fail)
        assert left(tmp_path / "ws") == []

    def test_the_first_error_is_told(self, run, monkeypatch):
        def fail(work):
            monkeypatch.setattr(
                io.disk, "rename", lambda *_: (_ for _ in ()).throw(OSError(30, "read-only")), raising=False
            )
            raise CheckpointError("the cause")

        monkeypatch.setattr(io, "disk", io.Disk())
        with pytest.raises(CheckpointError, match="the cause"):
            run(build=fail)


class TestResume:
    def test_state_survives_a_failure_and_not_a_success(self, run, tmp_path):
        counted = []

        def build(work):
            state = work.remember("state", lambda: counted.append(1) or {"n": len(counted)})
            if state["n"] == 1 and len(counted) == 1 and not fail.is_set():
                fail.set()
                raise Interrupted("stop")
            work.write_json("n.json", state)
            return Counted(n=state["n"])

        fail = threading.Event()
        with pytest.raises(Interrupted):
            run(build=build)
        assert len(left(tmp_path / "ws")) == 4
        artifact = run(build=build)
        assert artifact.read_json("n.json") == {"n": 1}
        assert counted == [1]
        assert not [name for name in left(tmp_path / "ws") if ".scratch" in name or ".tmp" in name]

    @pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b'{"n": 2}'])
    def test_damaged_state_is_computed_again(self, run, told, content):
        def build(work):
            path = work.scratch / "state.json"
            work.remember("state", lambda: {"n": 1})
            path.write_bytes(content or path.read_bytes().replace(b"1", b"2", 1))
            assert work.remember("state", lambda: {"n": 3}) == {"n": 3}
            assert work.remember("state", lambda: {"n": 4}) == {"n": 3}
            return Counted()

        run(build=build)
        assert len(told.warned) == 1

    def test_no_resume_starts_over(self, run):
        def build(work):
            assert work.resume == keep
            io.make_dirs(work.scratch)
            seen.append(sorted(p.name for p in work.scratch.iterdir()))
            io.write_new(work.scratch / "state", b"")
            raise Interrupted("stop")

        seen = []
        for keep, expected in ((True, []), (False, [])):
            with pytest.raises(Interrupted):
                run(build=build, resume=keep)
            assert seen[-1] == expected
        keep = True
        with pytest.raises(FileExistsError):
            run(build=build)
        assert seen[-1] == ["clock.json", "state"]

    def test_state_belongs_to_one_key(self, run):
        def build(work):
            paths.append(work.scratch)
            raise Interrupted("stop")

        paths = []
        for config in (Config(), Config(size=2), Config()):
            with pytest.raises(Interrupted):
                run(config, build=build)
        assert paths[0] == paths[2] != paths[1]


class TestOtherProcesses:
    @pytest.mark.slow
    def test_the_result_of_a_faster_process_stands(self, run, tmp_path):
        def slow(work):
            if (faster := os.fork()) == 0:
                run(build=lambda work: run.build(work).model_copy(update={"n": 8}))
                os._exit(0)
            assert os.waitpid(faster, 0)[1] == 0
            return run.build(work)

        assert run(build=slow).result(Counted) == Counted(n=8)
        assert not [name for name in left(tmp_path / "ws") if ".tmp" in name]

    def test_followers_work_along_and_wait_for_the_first(self, run):
        def each(rank):
            def build(work):
                worked.append(rank)
                time.sleep(0.3 * (rank == 0))
                return Bench.build(run, work)

            worked = []
            return run(build=build, together=True), worked

        (artifact, first), (same, other) = together(2, each)
        assert artifact == same == run()
        assert (first, other) == ([0], [1])

    def test_followers_only_wait_where_one_process_does_it_all(self, run):
        def each(rank):
            return run(), run.built

        assert together(2, each) == [(run(), 1), (run(), 0)]

    @pytest.mark.parametrize("slow", ["point", "save_given"])
    def test_followers_wait_for_what_is_written_after_the_artifact(self, run, monkeypatch, slow):
        """On a slow disk they read the pointers and records of before, and later stages had other keys."""

        def slowly(*args):
            time.sleep(0.5)
            return fast(*args)

        def each(rank):
            made = run(given={"model": "given"})
            return made == workspace.current("prune"), workspace.given

        workspace, fast = run.context["workspace"], getattr(Workspace, slow)
        monkeypatch.setattr(Workspace, slow, slowly)
        assert together(2, each) == [(True, {"model": "given"})] * 2

    @pytest.mark.parametrize("overwrite", [False, True])
    def test_a_follower_may_come_late(self, run, overwrite):
        """It took what the first process had made meanwhile for what was to be replaced, and waited forever."""

        def each(rank):
            time.sleep(0.5 * rank)
            return run(overwrite=overwrite)

        artifact = run()
        assert together(2, each, timeout_s=20) == [artifact] * 2

    def test_processes_that_make_different_artifacts_are_refused(self, run):
        def each(rank):
            threading.Timer(2, progress.request_stop, [signal.SIGTERM]).start()  # as the launcher would
            try:
                run(Config(size=rank))
            except (RunFailed, Interrupted) as e:
                return str(e)

        _, refused = together(2, each)
        assert "the processes do not agree: the first is to make prune" in refused

    def test_processes_that_are_asked_to_stop_wait_no_longer(self, run):
        """A follower for the first process, which works; the first for others, which have not heard that it is done."""

        def each(rank):
            threading.Timer(0.5, progress.request_stop, [signal.SIGTERM]).start()
            try:
                agreement.hear()
                run() if rank == 0 else agreement.hear()
            except Interrupted:
                return "stopped"

        def first_works(rank):
            agreement.tell("begun") if rank == 0 else None
            return each(rank) if rank else time.sleep(1)

        def others_are_late(rank):
            if rank:
                return agreement.tell("begun") or time.sleep(1)
            return each(rank)

        assert together(2, first_works)[1] == "stopped"
        assert together(2, others_are_late)[0] == "stopped"

    def test_followers_wait_for_the_new_where_the_old_is_damaged(self, run):
        artifact = run()
        (artifact.path / "data").unlink()
        assert together(2, lambda rank: run()) == [artifact] * 2


def test_a_build_offers_a_fresh_directory_and_a_scratch_beside_it(run):
    def build(work: StageBuild):
        assert list(work.path.iterdir()) == []
        assert not work.scratch.exists()
        assert work.path.parent == work.scratch.parent
        work.write_json("a.json", {})
        with pytest.raises(FileExistsError):
            work.write_json("a.json", {})
        return Counted()

    run(build=build)
