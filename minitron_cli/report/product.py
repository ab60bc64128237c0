"""A product of a workspace and the artifacts that belong to it, found by the fingerprints that they record."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property

from minitron_cli.artifacts import fingerprint
from minitron_cli.artifacts.artifact import Artifact
from minitron_cli.artifacts.manifest import MANIFEST
from minitron_cli.artifacts.workspace import Workspace
from minitron_cli.cost.lineage import lineage
from minitron_cli.errors import ArtifactError
from minitron_cli.evaluate.gate import PARENT
from minitron_cli.report.evaluation import LABELS, Evaluated, Kind
from minitron_cli.results.evaluation import EvaluationResult
from minitron_cli.results.prune import PruneResult
from minitron_cli.results.training import CorrectionResult, TrainingResult


@dataclass(frozen=True)
class Product:
    """One result, what it was made from, and what was made beside it for comparison."""

    workspace: Workspace
    artifact: Artifact

    @classmethod
    def current(cls, workspace: Workspace) -> "Product":
        """The workspace's distilled model, else what there is so far. ArtifactError if there is nothing."""
        pruned, distilled = workspace.current("prune"), workspace.current("distill")
        if pruned and distilled and distilled.manifest.inputs["student"] != fingerprint.of_directory(pruned.path):
            distilled = None  # of an earlier pruned model
        stages = (workspace.current(stage) for stage in ("search", "importance", "correct", "evaluate"))
        found = next(filter(None, (distilled, pruned, *stages)), None)
        if found is None:
            raise ArtifactError(f"workspace {workspace.root} has no results to report: run `minitron importance` first")
        return cls(workspace, found)

    @cached_property
    def lineage(self) -> list[Artifact]:
        """Artifacts that the product was made from, itself last."""
        return lineage(self.workspace, self.artifact)

    def made_from(self, stage: str) -> Artifact | None:
        """Artifact of a stage that the product was made from, the nearest one; or the product itself."""
        return next((made for made in reversed(self.lineage) if made.stage == stage), None)

    @cached_property
    def prune(self) -> Artifact | None:
        """The pruned model."""
        return self.made_from("prune")

    @cached_property
    def trained(self) -> tuple[Artifact, ...]:
        """The distilled model, and the controls that started from the same pruned model or one of its shape."""
        if self.prune is None or self.artifact.stage != "distill":
            return ()
        prune = self.prune
        controls = [made for made in self.workspace.artifacts("prune") if _is_control_of(prune, made)]
        starts = {fingerprint.of_directory(made.path) for made in (prune, *controls)}
        trained = [made for made in self.workspace.artifacts("distill") if made.manifest.inputs["student"] in starts]
        return (self.artifact, *(made for made in trained if made.label != self.artifact.label))

    @cached_property
    def kinds(self) -> dict[str, tuple[Kind, Artifact | None]]:
        """Fingerprint of a model -> its part in this product."""
        stages = ("prune", "search", "importance", "correct")
        source = next(filter(None, map(self.made_from, stages)), None)
        found: dict[str, tuple[Kind, Artifact | None]] = {}
        if source:
            found[source.manifest.inputs["model"]] = ("parent", None)
        parts: list[tuple[Kind, Artifact | None]] = [("teacher", self.made_from("correct")), ("pruned", self.prune)]
        parts += [("control" if made is not self.artifact else "distilled", made) for made in self.trained]
        found |= {fingerprint.of_directory(made.path): (kind, made) for kind, made in parts if made}
        return found

    @cached_property
    def evaluation(self) -> tuple[Artifact, EvaluationResult] | None:
        """Evaluation beside the same parent: one that measured the product if there is one, the newest of several."""
        parents = {known for known, (kind, _) in self.kinds.items() if kind == "parent"}
        found = [
            (made, result)
            for made, result in self._evaluations()
            if made is self.artifact or result.models[PARENT].fingerprint in parents
        ]
        return max(found, key=lambda one: self._relevance(*one), default=None)

    def _evaluations(self) -> Iterator[tuple[Artifact, EvaluationResult]]:
        if self.artifact.stage == "evaluate":
            yield self.artifact, self.artifact.result(EvaluationResult)
            return
        for made in self.workspace.artifacts("evaluate"):
            with suppress(ArtifactError):  # of an earlier version, and not needed
                yield made, made.result(EvaluationResult)

    def _relevance(self, made: Artifact, result: EvaluationResult) -> tuple[bool, bool, float]:
        parts = (self.kinds.get(model.fingerprint) for model in result.models.values())
        has_product = any(part is not None and part[1] is self.artifact for part in parts)
        current = self.workspace.current("evaluate")
        return has_product, bool(current and current.key == made.key), (made.path / MANIFEST).stat().st_mtime

    def models(self) -> Iterator[Evaluated]:
        """Evaluated models that belong to the product, in the order of the table.

        Models of another lineage are left out. One that the workspace did not make was named by the user, and stays.
        """
        if self.evaluation is None:
            return
        models = self.evaluation[1].models
        for label in sorted(models, key=lambda label: (_ORDER.get(label, len(_ORDER)), label)):
            found = models[label]
            known = found.fingerprint
            if known in self.kinds:
                kind, made = self.kinds[known]
                yield Evaluated(label, kind, found, _tokens(made) if made else None)
            elif self.artifact.stage == "evaluate" or (label not in LABELS and known not in self._made):
                yield Evaluated(label, LABELS.get(label, "control"), found)

    @cached_property
    def _made(self) -> set[str]:
        """Fingerprints of all models in the workspace."""
        return {fingerprint.of_directory(made.path) for stage in _MODELS for made in self.workspace.artifacts(stage)}

    @cached_property
    def artifacts(self) -> list[Artifact]:
        """Artifacts that the view shows: the lineage, the controls and the evaluation, each once."""
        found = (*self.lineage, *self.trained, *([self.evaluation[0]] if self.evaluation else []))
        return list({made.key: made for made in found}.values())

    @cached_property
    def step(self) -> list[Artifact]:
        """Artifacts without those that the parent was made from: the last step of a compression in several."""
        parents = {known for known, (kind, _) in self.kinds.items() if kind == "parent"}
        made = (one for one in self.lineage if one.stage in _MODELS and fingerprint.of_directory(one.path) in parents)
        earlier = {before.key for parent in made for before in lineage(self.workspace, parent)}
        return [one for one in self.artifacts if one.key not in earlier]


_MODELS = ("prune", "distill", "correct")  # the stages that make a model
_ORDER = {label: i for i, label in enumerate(LABELS)}


def _tokens(made: Artifact) -> int | None:
    """Training tokens of a model; None if it was not trained."""
    results = {"correct": CorrectionResult, "distill": TrainingResult}
    return made.result(results[made.stage]).tokens if made.stage in results else None


def _is_control_of(prune: Artifact, other: Artifact) -> bool:
    """Whether another artifact is a control: the same parent pruned to the same sizes in another way."""
    if not other.label:
        return False
    with suppress(ArtifactError):  # of an earlier version
        mine, theirs = prune.result(PruneResult), other.result(PruneResult)
        return (mine.parent.sizes, mine.child.sizes) == (theirs.parent.sizes, theirs.child.sizes)
    return False
