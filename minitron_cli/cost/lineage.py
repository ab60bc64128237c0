"""Provenance of an artifact back to the original model, and the device hours it took."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from minitron_cli.artifacts import fingerprint
from minitron_cli.artifacts.artifact import Artifact
from minitron_cli.artifacts.manifest import MANIFEST
from minitron_cli.artifacts.workspace import Workspace

GIVEN = "teacher"  # a stage that makes an original model: not part of the cost of its compression


def lineage(workspace: Workspace, product: Artifact) -> list[Artifact]:
    """Artifacts that `product` was made from, itself last, each once.

    If the parent is itself a product of minitron, its lineage comes first. Removed artifacts are left out. Of artifacts
    with the same content, as of a step that was renamed, it is the one that a run used last.
    """
    everything = sorted(_everything(workspace), key=lambda artifact: artifact.used)
    made = {known: artifact for artifact in everything for known in fingerprints(artifact)}
    found: dict[str, Artifact] = {}

    def follow(artifact: Artifact) -> None:
        inputs = artifact.manifest.inputs
        for name in sorted(inputs, key=lambda name: name == "signals"):  # made when model and text are named
            source = made.get(inputs[name])
            if source and source.key not in found and source.stage != GIVEN:
                follow(source)
        found[artifact.key] = artifact

    follow(product)
    return list(found.values())


def descends(workspace: Workspace, product: Artifact, ancestor: Artifact) -> bool:
    """Whether a product was made from another artifact, directly or in several steps."""
    return ancestor.key != product.key and any(made.key == ancestor.key for made in lineage(workspace, product))


def is_made_in(workspace: Workspace, known: str) -> bool:
    """Whether a model, given by its fingerprint, was made in a workspace, or in that of its parent."""
    return any(known in fingerprints(made) for made in _everything(workspace))


def _everything(workspace: Workspace, seen: frozenset[Path] = frozenset()) -> Iterator[Artifact]:
    """Artifacts of the workspace and, if its model was made in another workspace, of that one."""
    root = workspace.root.resolve()
    stages = sorted({path.parent.parent.name for path in root.glob(f"*/*/{MANIFEST}")})
    for stage in stages:
        yield from workspace.artifacts(stage)
    model = Path(str(workspace.settings.get("model") or ""))
    if (model / MANIFEST).is_file():
        other = model.resolve().parent.parent
        if other not in seen | {root}:
            yield from _everything(Workspace(other), seen | {root})


def fingerprints(artifact: Artifact) -> Iterator[str]:
    """Fingerprints under which other stages may list it: as an artifact, and as a model."""
    yield artifact.fingerprint
    if "config.json" in artifact.manifest.files:
        yield fingerprint.of_model(artifact.manifest)


def device_hours(artifacts: Iterable[Artifact]) -> dict[str, float]:
    """Device -> hours of all processes, interrupted runs included."""
    hours: dict[str, float] = {}
    for run in (artifact.run for artifact in artifacts):
        if run:
            hours[run.device] = hours.get(run.device, 0.0) + run.device_hours()
    return hours


def accelerator_hours(artifacts: Iterable[Artifact]) -> dict[str, float]:
    """Hours that a report may name. CPU hours are left out: a report must not change with the machine that made it."""
    return {device: hours for device, hours in device_hours(artifacts).items() if device != "cpu"}
