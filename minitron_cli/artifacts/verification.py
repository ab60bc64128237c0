"""Check of a workspace: every byte of every artifact against its manifest. Trusts no cache."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from minitron_cli.artifacts import file_hashes, fingerprint
from minitron_cli.artifacts import manifest as manifests
from minitron_cli.artifacts.artifact import Artifact
from minitron_cli.artifacts.manifest import MANIFEST, RUN, Manifest, UnreadableManifest
from minitron_cli.artifacts.workspace import CURRENT, Workspace
from minitron_cli.errors import ArtifactError

MADE_HERE = ("scores", "search", "student", "signals", "outliers")
"""Names of inputs that another stage of the same workspace has made, unless the user gave them."""


@dataclass(frozen=True)
class Checked:
    """One artifact and what is wrong with it."""

    path: Path
    manifest: Manifest | None
    """None if it cannot be read."""
    damage: Sequence[str]
    """Files and what is wrong with each; empty if the artifact is as it was written."""

    @property
    def stage(self) -> str:
        return self.path.parent.name

    @property
    def fingerprints(self) -> set[str]:
        """Fingerprints under which later stages list it: as an artifact, and as a model."""
        return {self.manifest.fingerprint, fingerprint.of_model(self.manifest)} if self.manifest else set()


def paths(workspace: Workspace) -> list[Path]:
    """Directories of all artifacts, readable or not."""
    stages = (path for path in workspace.root.iterdir() if path.is_dir() and not path.name.startswith("."))
    return [path for stage in sorted(stages) for path in _of_stage(stage)]


def _of_stage(stage: Path) -> list[Path]:
    found = sorted(path for path in stage.iterdir() if path.is_dir() and not path.name.startswith("."))
    is_stage = (stage / CURRENT).exists() or any((path / MANIFEST).exists() for path in found)
    return found if is_stage else []


def check(path: Path, step: Callable[[int], None]) -> Checked:
    """The artifact at `path` with all its damage. `step` is told the bytes that were read."""
    try:
        artifact = Artifact(path, manifests.read(path))
    except UnreadableManifest as e:
        return Checked(path, None, (e.problem,))
    return Checked(path, artifact.manifest, tuple(_damage(artifact, step)))


def _damage(artifact: Artifact, step: Callable[[int], None]) -> Iterator[str]:
    yield from artifact.damage(lambda paths: file_hashes.fresh(paths, step))
    try:
        artifact.read_run()
    except ArtifactError:
        yield f"{RUN} is missing or damaged"


def lost_inputs(checked: Collection[Checked], given: Collection[str]) -> Iterator[tuple[Checked, str]]:
    """Artifacts with the name of an input that the workspace made and no longer has. `given`: fingerprints of inputs
    that the user gave."""
    known = {*given, *(name for one in checked for name in one.fingerprints)}
    for one in checked:
        inputs = one.manifest.inputs if one.manifest else {}
        is_made_here = inputs.keys() if one.stage == "report" else MADE_HERE
        yield from ((one, name) for name in is_made_here if name in inputs and inputs[name] not in known)


def dangling_pointers(workspace: Workspace) -> Iterator[Path]:
    """Files that name the current artifact of a stage, and name none."""
    for pointer in sorted(workspace.root.glob(f"*/{CURRENT}")):
        if workspace.current_path(pointer.parent.name) is None:
            yield pointer
