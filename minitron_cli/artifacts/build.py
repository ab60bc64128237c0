"""Frame around every stage: return the finished artifact, or build it in a temporary directory and commit it."""

import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from minitron_cli import __version__, canonical_json, io, process_rank, progress
from minitron_cli.artifacts import agreement, file_hashes
from minitron_cli.artifacts.artifact import Artifact, commit
from minitron_cli.artifacts.elapsed_time import Clock, devices
from minitron_cli.artifacts.manifest import MANIFEST, SCHEMA_VERSION, Manifest, key_of, sealed, unsealed
from minitron_cli.artifacts.workspace import Workspace
from minitron_cli.device import settle_threads
from minitron_cli.errors import ArtifactError, DryRunStop, RunFailed
from minitron_cli.results.base import Result
from minitron_cli.results.price import Price
from minitron_cli.results.run_record import ExportCheck, RunRecord, SpeedRecord, ThroughputRecord

FOUND, MADE, DONE = "found", "made", "done"
"""What the first process tells the others of an artifact."""

Remember = Callable[[str, Callable[[], dict[str, Any]]], dict[str, Any]]
"""`StageBuild.remember`: the value kept under a name; computed and kept if there is none."""


@dataclass(frozen=True)
class Context:
    """Where and how a stage runs. Not part of a result's identity, except that stages add `dtype` where it matters."""

    workspace: Workspace
    device: str = "cpu"
    dtype: str = "auto"
    dry_run: bool = False
    overwrite: bool = False
    overwriting_since: int | None = None
    """Nanoseconds since the epoch: artifacts that were made from then on are of this run, or of the stopped one that it
    continues, and are not made again."""
    resume: bool = True
    offline: bool = False
    is_between: bool = False
    """Whether artifacts are steps on the way to another one, and do not become the current ones of their stages."""

    def overwrites(self, artifact: Path) -> bool:
        """Whether the artifact at this path is to be made again although it is there."""
        made, since = artifact / MANIFEST, self.overwriting_since
        return self.overwrite and (since is None or not made.is_file() or made.stat().st_mtime_ns < since)

    def record(self, given: Mapping[str, Any]) -> None:
        """Record what the user gave for inputs of a finished artifact, by their fingerprints (`Workspace.given`)."""
        if not self.dry_run and process_rank.is_first_process():
            self.workspace.save_given(given)


@dataclass
class Measured:
    """Times and speeds that a stage measured. They go into `run.json`, outside of the result's identity."""

    export_check: ExportCheck | None = None
    speed: SpeedRecord | None = None
    training: ThroughputRecord | None = None
    price: Price | None = None
    """What the stage was expected to take."""
    candidates: dict[str, dict[str, float]] = field(default_factory=dict)
    """Shape of a candidate -> kind of constraint -> measured cost."""


@dataclass
class StageBuild:
    """Directories that a stage works in, and what it measures."""

    path: Path
    """New directory; every file in it becomes part of the artifact."""
    scratch: Path
    """Directory for state to resume from, which only this key uses. The stage creates it."""
    resume: bool
    """Whether to continue from the state in `scratch`."""
    measured: Measured = field(default_factory=Measured)
    hashed: dict[Path, io.FileRecord] = field(default_factory=dict)
    """Records of finished files; the others are hashed after the work."""

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file of the artifact."""
        io.write_new_json(self.path / name, value)

    def link(self, old: Path, new: Path, record: io.FileRecord) -> None:
        """Take over a finished file from `scratch`, which was hashed when it was written."""
        io.link(old, new)
        self.hashed[new] = record

    @contextmanager
    def hashing(self) -> Iterator[None]:
        """Hash the files written so far in a thread while the `with` block runs, which must not change them."""
        import torch

        paths, threads = list(io.files_in(self.path).values()), torch.get_num_threads()
        torch.set_num_threads(max(1, threads - 1))
        try:
            with ThreadPoolExecutor(1) as pool:
                records = pool.submit(file_hashes.fresh, paths)
                yield
                self.hashed |= dict(zip(paths, records.result(), strict=True))
        finally:
            torch.set_num_threads(threads)

    def remember(self, name: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Value of `compute()`, kept in `scratch/<name>.json` so that a resumed stage does not compute it again."""
        if (found := self.remembered(name)) is None:
            io.make_dirs(self.scratch)
            io.replace(self._state(name), canonical_json.pretty(sealed(compute())))
            found = self.remembered(name)
            assert found is not None
        return found

    def remembered(self, name: str) -> dict[str, Any] | None:
        """Value that `remember` has kept; None if there is none, or if it is damaged."""
        path = self._state(name)
        if not path.is_file():
            return None
        if (content := unsealed(path)) is None:
            progress.warn_once(f"{path} has changed since it was written, so its value is computed again")
        return content

    def _state(self, name: str) -> Path:
        return self.scratch / f"{name}.json"


def produce(
    context: Context,
    *,
    stage: str,
    version: int,
    config: BaseModel,
    inputs: Mapping[str, str],
    build: Callable[[StageBuild], Result],
    label: str = "",
    forecast: Callable[[], Mapping[str, Any]] = dict,
    price: Callable[[], Price | None] = lambda: None,
    given: Callable[[], Mapping[str, Any]] = dict,
    together: bool = False,
) -> Artifact:
    """Artifact of a config and its inputs (name -> fingerprint): an existing one, or built and committed.

    `version` is raised by hand when the stage's code writes other bytes for the same config and inputs.
    `forecast` returns what a dry run reports of the artifact; `price` what it is going to take, and refuses what cannot
    be done. DryRunStop in a dry run if the artifact has to be built. `given` is recorded when it is finished
    (`Context.record`).
    With several processes the first one decides and builds; the others wait until all is written, or run `build` as
    well if `together` is true. RunFailed if they are to make another artifact.
    """
    resolved = config.model_dump(mode="json")
    key = key_of(stage, version, resolved, inputs)
    directory = context.workspace.stage_dir(stage)
    final = directory / f"{label}-{key[:8]}".lstrip("-")
    scratch = directory / f".scratch-{key[:8]}"
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        stage=stage,
        stage_version=version,
        label=label,
        key=key,
        config=resolved,
        inputs=dict(inputs),
        files={},
    )
    stale = _inode(final)  # an artifact that this run replaces
    if not (context.dry_run or process_rank.is_first_process()):
        return _follow(context, manifest, final, scratch, build if together else None)
    found = _sound(final, key) if stale and not context.overwrites(final) else None
    if found:
        progress.say(f"{stage}: up to date ({final})")
    if context.dry_run:
        if found:
            return found
        raise DryRunStop(stage, final, _changes(context.workspace, manifest), forecast(), price())
    agreement.tell(f"{_named(manifest)} {FOUND if found else MADE}")
    artifact = found or _build(context, manifest, final, stale, scratch, build, price)
    _settle(context, artifact, scratch)
    context.record(given())
    agreement.tell(DONE, until_heard=True)
    if not found:
        progress.say(f"{stage}: wrote {final}")
    return artifact


def _named(manifest: Manifest) -> str:
    """Name of an artifact in messages between processes."""
    return f"{manifest.stage} {manifest.key}"


def _sound(path: Path, key: str) -> Artifact | None:
    """Artifact at `path` if it is undamaged and has this key; otherwise None, after a warning."""
    try:
        artifact = Artifact.open(path)
        if artifact.key == key:
            return artifact
        problem = "it has another key"
    except ArtifactError as e:
        problem = str(e)
    progress.warn(f"{path} is made again: {problem}")
    return None


def _settle(context: Context, artifact: Artifact, scratch: Path) -> None:
    """Make a finished artifact the current one and remove temporary files of this and of interrupted runs."""
    artifact.mark_used()
    if not context.is_between:
        context.workspace.point(artifact)
    io.remove_tree(scratch)
    for directory in (artifact.path.parent, context.workspace.root):
        io.sweep(directory)


def _build(
    context: Context,
    manifest: Manifest,
    final: Path,
    stale: int | None,
    scratch: Path,
    build: Callable[[StageBuild], Result],
    price: Callable[[], Price | None],
) -> Artifact:
    io.make_dirs(final.parent)
    if not context.resume:
        io.remove_tree(scratch)
    io.sweep(final.parent)
    clock, started = Clock(scratch), time.monotonic()
    temporary = io.temporary_dir(final.parent, final.name)
    work = StageBuild(temporary, scratch, context.resume)
    settle_threads()
    try:
        work.measured.price = price()
        build(work).write(temporary)
        run = _record(work.measured, round(time.monotonic() - started, 3), clock.seconds, context.device)
        if stale and stale == _inode(final):  # unless another process has replaced it meanwhile
            io.remove_tree(final)
        return commit(temporary, final, manifest, run, work.hashed)
    except BaseException:
        with suppress(OSError):  # report the first error, not one of the cleanup
            clock.stop()
        with suppress(OSError):
            io.remove_tree(temporary)
            for directory in (scratch, final.parent):
                if directory.is_dir() and not any(path.is_file() for path in directory.rglob("*")):
                    io.remove_tree(directory)
        raise


def _inode(path: Path) -> int | None:
    """Inode of the directory at `path`; None if there is none."""
    return path.stat().st_ino if path.is_dir() else None


def _follow(
    context: Context, wanted: Manifest, final: Path, scratch: Path, build: Callable[[StageBuild], Result] | None
) -> Artifact:
    """Artifact that the first process has or makes. The others wait, or also run `build` and discard its files."""
    name, _, how = agreement.hear().rpartition(" ")
    if name != _named(wanted):
        raise RunFailed(
            f"the processes do not agree: the first is to make {name}, another one {_named(wanted)}; give all of them "
            "the same command, files and environment"
        )
    if build and how == MADE:
        settle_threads()
        with tempfile.TemporaryDirectory() as unused:
            build(StageBuild(Path(unused), scratch, context.resume))
    agreement.hear()  # if the first process fails, the launcher ends all
    while not (final / MANIFEST).is_file():  # until it is seen on the disk of another machine
        progress.raise_if_stopped()
        time.sleep(agreement.POLL_SECONDS)
    return Artifact.open(final)


def _record(measured: Measured, seconds: float, seconds_in_all: float, device: str) -> RunRecord:
    import torch

    return RunRecord(
        seconds=seconds,
        seconds_in_all=seconds_in_all,
        minitron=__version__,
        python=platform.python_version(),
        torch=torch.__version__,
        host=platform.node(),
        threads=torch.get_num_threads(),
        cpu_capability=torch.backends.cpu.get_cpu_capability(),
        **devices(device),
        export_check=measured.export_check,
        speed=measured.speed,
        training=measured.training,
        price=measured.price,
        measured=measured.candidates,
    )


def _changes(workspace: Workspace, wanted: Manifest) -> list[str]:
    """Names of config fields and inputs that differ from the stage's current artifact; empty without a readable one."""
    try:
        current = workspace.current(wanted.stage)
    except ArtifactError:
        current = None
    if current is None:
        return []
    old, new = _flat(current.manifest), _flat(wanted)
    return sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))


def _flat(manifest: Manifest) -> dict[str, Any]:
    """Inputs, config fields by dotted path, and stage version."""
    flat: dict[str, Any] = {f"input {name}": value for name, value in manifest.inputs.items()}
    todo: list[tuple[str, Any]] = list(manifest.config.items())
    while todo:
        name, value = todo.pop()
        if isinstance(value, dict):
            todo += [(f"{name}.{key}", inner) for key, inner in value.items()]
        else:
            flat[name] = value
    return flat | {"stage version": manifest.stage_version}
