"""A product of a workspace and the artifacts that belong to it, joined by the fingerprints that they record."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from minitron_cli import progress
from minitron_cli.artifacts import fingerprint
from minitron_cli.artifacts.artifact import Artifact
from minitron_cli.artifacts.manifest import MANIFEST
from minitron_cli.artifacts.workspace import Workspace, pretraining_of
from minitron_cli.checkpoint import model_names
from minitron_cli.cost.lineage import descends, fingerprints, lineage
from minitron_cli.distill.config import DistillConfig
from minitron_cli.errors import ArtifactError
from minitron_cli.report.evaluation import LABELS, Evaluated, Kind
from minitron_cli.results.base import Result
from minitron_cli.results.evaluation import ORIGINAL, PARENT, STUDENT, EvaluationResult
from minitron_cli.results.of_stage import RESULTS
from minitron_cli.results.prune import PruneResult
from minitron_cli.results.training import TrainingResult


def current_models(workspace: Workspace) -> dict[str, Artifact]:
    """Stage -> model that the workspace made last, of `prune`, `sparsify` and `distill` in this order.

    Without those that were made from another model than the current one of the stage before.
    """
    pruned, sparse, distilled = (workspace.current(stage) for stage in ("prune", "sparsify", "distill"))
    if pruned and sparse and not descends(workspace, sparse, pruned):
        sparse = None
    starts = {fingerprint.of_model(made.manifest) for made in (pruned, sparse) if made}
    if starts and distilled and distilled.manifest.inputs["student"] not in starts:
        distilled = None
    return {made.stage: made for made in (pruned, sparse, distilled) if made}


@dataclass(frozen=True)
class Product:
    """One result, what it was made from, and what was made beside it for comparison."""

    workspace: Workspace
    artifact: Artifact

    @classmethod
    def current(cls, workspace: Workspace) -> "Product":
        """The workspace's distilled model, else what there is so far. ArtifactError if there is nothing."""
        models = current_models(workspace).values()
        stages = (workspace.current(stage) for stage in ("search", "importance", "correct", "evaluate"))
        found = next(filter(None, (*reversed(models), *stages)), None)
        if found is None:
            raise workspace.lacks("results to report", "minitron importance MODEL --data TEXT")
        return cls(workspace, found)

    @cached_property
    def lineage(self) -> list[Artifact]:
        """Artifacts that the product was made from, itself last."""
        return lineage(self.workspace, self.artifact)

    @cached_property
    def made(self) -> dict[str, Artifact]:
        """Fingerprint -> artifact that the product was made from, or the product."""
        return {known: made for made in self.lineage for known in fingerprints(made)}

    def source(self, stage: str, made: Artifact | None, name: str) -> Artifact | None:
        """The product, or the artifact that is the input `name` of another one, whichever is of the stage."""
        found = self.made.get(made.manifest.inputs.get(name, "")) if made else None
        return next((one for one in (self.artifact, found) if one and one.stage == stage), None)

    @cached_property
    def prune(self) -> Artifact | None:
        """The pruned model."""
        return self._from("prune", self.artifact)

    @cached_property
    def sparse(self) -> Artifact | None:
        """The model with zeros that was made from the pruned one, or from the parent."""
        return self._from("sparsify", self.artifact)

    @property
    def _first_round(self) -> Artifact | None:
        """The first model with zeros, of which `sparse` was made by further rounds, or that itself."""
        first = earlier = self.sparse
        while earlier:
            first, before = earlier, self.made.get(earlier.manifest.inputs["model"])
            earlier = self._from("sparsify", before) if before else None
        return first

    def _from(self, stage: str, made: Artifact) -> Artifact | None:
        """Artifact of a stage that another was made from by later stages on the same shape, or that one itself."""
        while made.stage != stage and made.stage in _STARTS:
            start = self.made.get(made.manifest.inputs[_STARTS[made.stage]])
            if start is None:
                return None
            made = start
        return made if made.stage == stage else None

    @cached_property
    def search(self) -> Artifact | None:
        """Search that chose the shape."""
        return self.source("search", self.prune, "search")

    @cached_property
    def importance(self) -> Artifact | None:
        """Scores by which the model was pruned."""
        return self.source("importance", self.prune or self.search, "scores")

    @cached_property
    def corrected(self) -> Artifact | None:
        """Teacher that was trained on the text, if it taught the product."""
        return self.source("correct", self.artifact, "teacher")

    @cached_property
    def parent(self) -> str:
        """Fingerprint of the model that was pruned, or that taught a student which was not made here."""
        inputs = (self.prune or self.search or self._first_round or self.corrected or self.artifact).manifest.inputs
        return inputs.get("model") or inputs.get(f"model {PARENT}") or inputs.get("teacher", "")

    @cached_property
    def steps(self) -> tuple[Artifact, ...]:
        """Pruned models from the original model to this product, one per step of a chain."""
        earlier = self.made.get(self.parent)
        before = Product(self.workspace, earlier).steps if earlier else ()
        return (*before, self.prune) if self.prune else before

    @cached_property
    def step_labels(self) -> dict[str, str]:
        """Key of an artifact of the lineage -> label of its step, in a chain; empty if there was one step."""
        found: dict[str, str] = {}
        for number, pruned in enumerate(self.steps if len(self.steps) > 1 else (), 1):
            sources = {*pruned.manifest.inputs.values(), pruned.fingerprint}
            for made in self.lineage:
                start = self._from("prune", made)
                is_source = made.stage in _SOURCES and made.fingerprint in sources
                if is_source or (start and start.key == pruned.key):
                    found.setdefault(made.key, pruned.label or f"step {number}")
        return found

    @property
    def original(self) -> str:
        """Fingerprint of the model that the first step started from."""
        return self.steps[0].manifest.inputs["model"] if self.steps else self.parent

    @cached_property
    def trained(self) -> tuple[Artifact, ...]:
        """The distilled model, and the controls that started from the same pruned model or one of its shape."""
        prune, sparse = self.prune, self.sparse
        if self.artifact.stage != "distill":
            return ()
        if not (prune or sparse):
            return (self.artifact,)
        starts = {fingerprint.of_model(made.manifest) for made in (prune, sparse, *self._pruned_otherwise) if made}
        zeros = self.workspace.artifacts("sparsify") if sparse else []
        distilled = self.workspace.artifacts("distill")
        continued = {made.manifest.inputs["model"] for made in zeros}
        between = [made for made in distilled if fingerprint.of_model(made.manifest) in continued]
        starts = _with_continued(starts, [*zeros, *between])
        others = [made for made in distilled if made.label != self.artifact.label and made not in between]
        started = (made for made in others if made.manifest.inputs["student"] in starts)
        return (self.artifact, *(made for made in started if is_readable(made, TrainingResult)))

    @cached_property
    def _pruned_otherwise(self) -> list[Artifact]:
        """Models of the product's sizes that were pruned in another way, for controls."""
        prune = self.prune
        pruned = self.workspace.artifacts("prune") if prune else []
        return [
            made for made in pruned if prune and made.label and made.key != prune.key and self._is_control(prune, made)
        ]

    @cached_property
    def _untrained(self) -> list[Artifact]:
        """Those of them that were evaluated as they are."""
        measured = self.evaluation.manifest.inputs.values() if self.evaluation else ()
        return [made for made in self._pruned_otherwise if fingerprint.of_model(made.manifest) in measured]

    def _is_control(self, prune: Artifact, other: Artifact) -> bool:
        """Whether another artifact is a control: parent or original pruned to the same sizes in another way."""
        if other.manifest.inputs["model"] not in (self.parent, self.original) or not is_readable(other, PruneResult):
            return False
        return prune.result(PruneResult).child.sizes == other.result(PruneResult).child.sizes

    @cached_property
    def kinds(self) -> dict[str, tuple[Kind, Artifact | None]]:
        """Fingerprint of a model -> its part in this product."""
        parts: list[tuple[Kind, Artifact | None]] = [("control", made) for made in self._untrained]
        parts += [("teacher", self.corrected), ("pruned", self.prune), ("sparse", self.sparse)]
        parts += [("control" if made is not self.artifact else "distilled", made) for made in self.trained]
        found = {fingerprint.of_model(made.manifest): (kind, made) for kind, made in parts if made}
        of_chain = self.evaluation.manifest.inputs.get(f"model {ORIGINAL}") if self.evaluation else None
        given: dict[str, tuple[Kind, Artifact | None]] = {of_chain: ("original", None)} if of_chain else {}
        if self.artifact.stage == "distill" and self.student(self.artifact):
            given[self.artifact.manifest.inputs["student"]] = ("student", None)
        return {**given, self.parent: ("parent", None), **found}

    @cached_property
    def evaluation(self) -> Artifact | None:
        """Evaluation that measured the product beside its parent, the newest of several; None if none did."""
        if self.artifact.stage == "evaluate":
            return self.artifact
        is_model = self.artifact.stage in _MODELS
        measured = {fingerprint.of_model(self.artifact.manifest) if is_model else self.parent, self.parent}
        current = self.workspace.current("evaluate")
        found = [
            made
            for made in self.workspace.artifacts("evaluate")
            if measured <= set(made.manifest.inputs.values())
            and made.manifest.inputs[f"model {PARENT}"] == self.parent
            and is_readable(made, EvaluationResult)
        ]
        return max(found, key=lambda made: (made == current, (made.path / MANIFEST).stat().st_mtime), default=None)

    def models(self) -> Iterator[Evaluated]:
        """Evaluated models that belong to the product, in the order of the table.

        Models of another lineage are left out. One that the workspace did not make was named by the user, and stays.
        """
        models = self.evaluation.result(EvaluationResult).models if self.evaluation else {}
        here = {fingerprint.of_model(made.manifest) for stage in _MODELS for made in self.workspace.artifacts(stage)}
        untrained = [made.label for made in self._untrained]  # stand before what was made better than they
        order = [ORIGINAL, PARENT, *untrained, *LABELS, *sorted(models)]
        for label, found in sorted(models.items(), key=lambda item: order.index(item[0])):
            kind, made = self.kinds.get(found.fingerprint, (LABELS.get(label, "control"), None))
            is_foreign = self.artifact.stage == "evaluate" or (label not in LABELS and found.fingerprint not in here)
            if found.fingerprint in self.kinds or is_foreign:
                yield Evaluated(label, kind, found, _tokens(made) if made else None)

    @cached_property
    def artifacts(self) -> list[Artifact]:
        """Artifacts that the view shows: what the controls, then the product, were made from, and the evaluation.

        In this order each training follows the pruning that it starts from, so commands in this order find it.
        """
        start = self.artifact.manifest.inputs.get("student")
        controls = sorted(self.trained[1:], key=lambda made: made.manifest.inputs["student"] == start)
        found = [one for made in (*self._untrained, *controls, self.artifact) for one in lineage(self.workspace, made)]
        return list({made.key: made for made in (*found, *filter(None, [self.evaluation]))}.values())

    @cached_property
    def given(self) -> dict[str, Any]:
        """What the user gave for the inputs of these artifacts, by fingerprint (`Workspace.given`)."""
        roots = dict.fromkeys(made.path.parent.parent for made in self.artifacts)
        known = {name: value for root in roots for name, value in Workspace(root).given.items()}
        inputs = {name for made in self.artifacts for name in made.manifest.inputs.values()}
        return {name: value for name, value in sorted(known.items()) if name in inputs}

    @property
    def pretraining_tokens(self) -> int | None:
        """Tokens that the original model had been trained on; None if they are not known."""
        known = self.workspace.given.get(pretraining_of(self.original))
        return known["tokens"] if known else None

    @property
    def to_evaluate(self) -> str:
        """Command that evaluates the product; empty if it was evaluated or is no model."""
        if self.evaluation or self.artifact.stage not in _MODELS:
            return ""
        current = self.workspace.current(self.artifact.stage)
        return "minitron eval" if current == self.artifact else f"minitron eval {place(self.artifact.path)}"

    def teacher(self, made: Artifact) -> str:
        """Name of a distilled model's teacher, or of the one that signals are of, if it is neither the parent nor the
        corrected parent."""
        known = made.manifest.inputs["teacher"]
        parent = self.parent if made.stage == "teach" else Product(self.workspace, made).parent
        source = self.made.get(known)
        is_corrected = source and source.stage == "correct" and source.manifest.inputs["model"] == parent
        return "" if known == parent or is_corrected else self.name(known) or "TEACHER"

    def name(self, model: str) -> str:
        """Name of the model with this fingerprint: its hub id, directory or path; empty if it is not known."""
        if made := self.made.get(model):
            return place(made.path)
        hub_id, _, commit = model.partition("@")
        given = self.given.get(model, "")
        is_made = (Path(given) / MANIFEST).is_file()
        return hub_id if commit else place(Path(given)) if is_made else without_directories(given)

    def student(self, made: Artifact) -> str:
        """Name of a distilled model's student if no stage made it; empty otherwise."""
        known = made.manifest.inputs["student"]
        return "" if known in self.made or known in self._made_here else self.name(known) or "STUDENT"

    def named_for(self, evaluation: Artifact) -> list[str]:
        """Names of the models of an evaluation; none if they are those that `minitron eval` takes by itself."""
        made = {
            known: one for stage in _MODELS for one in self.workspace.artifacts(stage) for known in fingerprints(one)
        }
        wanted = named_models(evaluation.manifest.inputs)
        return [place_of_verb(made[one]) if one in made else self.name(one) or "MODEL" for one in wanted]

    def directory(self, model: str) -> Path | None:
        """Directory of the model with this fingerprint that the user gave, if it is on this machine."""
        hub_id, _, commit = model.partition("@")
        given = self.given.get(model)
        return model_names.cached(hub_id) if commit else model_names.directory(given) if given else None

    @cached_property
    def _made_here(self) -> frozenset[str]:
        """Fingerprints of all models of the workspace, those of controls included."""
        made = (artifact for stage in _MODELS for artifact in self.workspace.artifacts(stage))
        return frozenset(known for artifact in made for known in fingerprints(artifact))

    @property
    def title(self) -> str:
        """Name of the original model for readers: that of its stage if minitron made it; empty if it is not known."""
        given = Path(self.given.get(self.original, ""))
        return given.parent.name if (given / MANIFEST).is_file() else self.name(self.original)


_MODELS = ("prune", "sparsify", "distill", "correct")  # the stages that make a model
_SOURCES = ("importance", "search")  # the stages that a pruning reads beside its parent
_STARTS = {"distill": "student", "sparsify": "model"}  # a stage that keeps the shape -> its input


def _with_continued(starts: set[str], steps: Sequence[Artifact]) -> set[str]:
    """Fingerprints of models, and of those that were made of them in one or more of some steps on the same shape."""
    found = {fingerprint.of_model(one.manifest) for one in steps if one.manifest.inputs[_STARTS[one.stage]] in starts}
    return starts if found <= starts else _with_continued(starts | found, steps)


def place(artifact: Path) -> str:
    """Path of an artifact from the directory in which minitron was run: `runs/NAME/distill/distilled-4f1a22c0`."""
    return "/".join(artifact.absolute().parts[-4:])


def named_models(inputs: Mapping[str, str]) -> list[str]:
    """Fingerprints of the models that an evaluation was given, by its inputs; none if `minitron eval` took its own."""
    besides = {
        label.removeprefix("model "): known
        for label, known in inputs.items()
        if label.startswith("model ") and label not in (f"model {PARENT}", f"model {ORIGINAL}")
    }
    return [] if besides.keys() <= {"pruned", "sparse", STUDENT, "distilled"} else list(besides.values())


def place_of_verb(made: Artifact) -> str:
    """The same path of a model as its verb writes it, which knows no labels of steps, rounds and controls."""
    if made.stage not in _MODELS:
        return place(made.path)
    label = made.label if made.stage == "correct" else ""
    if made.stage == "distill":
        label = DistillConfig.model_validate(made.manifest.config).label
    return place(made.path.with_name(f"{label}-{made.key[:8]}".lstrip("-")))


def _tokens(made: Artifact) -> int | None:
    """Training tokens of a model; None if it was not trained."""
    result = made.result(RESULTS[made.stage])
    return result.tokens if isinstance(result, TrainingResult) else None


def is_readable(made: Artifact, kind: type[Result]) -> bool:
    """Whether a result is of this version of minitron; otherwise it is left out, which a warning says."""
    try:
        made.result(kind)
    except ArtifactError as e:
        progress.warn(f"left out of the report: {e}")
        return False
    return True


def without_directories(value: Any) -> Any:
    """Settings with absolute paths shortened to file names: a published card must not show this machine's layout."""
    if isinstance(value, dict):
        return {name: without_directories(one) for name, one in value.items()}
    if isinstance(value, list):
        return [without_directories(one) for one in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value
