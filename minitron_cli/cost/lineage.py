"""Of what an artifact was made, back to the model that was given, and what all of it cost."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from minitron_cli.artifacts import fingerprint
from minitron_cli.artifacts.artifact import Artifact
from minitron_cli.artifacts.manifest import MANIFEST
from minitron_cli.artifacts.workspace import Workspace
from minitron_cli.cost import compute
from minitron_cli.cost.compute import Entry

GIVEN = "teacher"  # a stage that makes a model to begin with: no part of what its compression costs


def lineage(workspace: Workspace, product: Artifact) -> list[Artifact]:
    """All that went into `product`, itself last; each once, however many ways lead to it.

    Where the parent is itself such a product, what went into it comes first. What is gone is not known.
    """
    made = {known: artifact for artifact in _everything(workspace) for known in _fingerprints(artifact)}
    found: dict[str, Artifact] = {}

    def follow(artifact: Artifact) -> None:
        for name in artifact.manifest.inputs.values():
            source = made.get(name)
            if source and source.key not in found and source.stage != GIVEN:
                follow(source)
        found[artifact.key] = artifact

    follow(product)
    return list(found.values())


def _everything(workspace: Workspace, seen: frozenset[Path] = frozenset()) -> Iterator[Artifact]:
    """The workspace's artifacts and, if its model is one of another workspace's, that one's."""
    root = workspace.root.resolve()
    stages = sorted({path.parent.parent.name for path in root.glob(f"*/*/{MANIFEST}")})
    for stage in stages:
        yield from workspace.artifacts(stage)
    model = Path(str(workspace.settings.get("model") or ""))
    if (model / MANIFEST).is_file():
        other = model.resolve().parent.parent
        if other not in seen | {root}:
            yield from _everything(Workspace(other), seen | {root})


def _fingerprints(artifact: Artifact) -> Iterator[str]:
    """What later stages may call it: as a model, or as anything else."""
    yield artifact.fingerprint
    if "config.json" in artifact.manifest.files:
        yield fingerprint.of_directory(artifact.path)


def spent(artifact: Artifact) -> list[Entry]:
    return compute.of_json(artifact.summary.get("ledger", []))


def device_hours(artifacts: Iterable[Artifact]) -> dict[str, float]:
    """Device -> hours of all processes, of the runs that were stopped on the way too."""
    hours: dict[str, float] = {}
    for run in (artifact.run for artifact in artifacts):
        if "seconds_in_all" in run:
            device, seconds = run["device"], run["seconds_in_all"] * run["processes"]
            hours[device] = hours.get(device, 0.0) + seconds / 3600
    return hours


def accelerator_hours(artifacts: Iterable[Artifact]) -> dict[str, float]:
    """Those that a report may name: what is made on the CPU is the same bytes whenever it is made."""
    return {device: hours for device, hours in device_hours(artifacts).items() if device != "cpu"}
