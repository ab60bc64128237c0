"""Artifacts of a chain of two steps, written as the stages write them, without a model."""

import json
from pathlib import Path
from typing import Any

from minitron_cli import io
from minitron_cli.artifacts import fingerprint, manifest
from minitron_cli.artifacts.artifact import Artifact
from minitron_cli.artifacts.manifest import Manifest
from minitron_cli.artifacts.workspace import Workspace
from minitron_cli.distill.config import DistillConfig
from minitron_cli.results.base import Result
from minitron_cli.results.evaluation import EvaluationResult
from minitron_cli.results.importance import ImportanceResult
from minitron_cli.results.prune import PruneResult
from minitron_cli.results.training import TrainingResult
from tests.unit.report.sample import evaluation, size

BIG = "org/Big-8B@" + "a" * 40
TRAINED = {
    "student": size(4),
    "uses_teacher": True,
    "steps": 1,
    "tokens": 8,
    "weights_of_step": 1,
    "sequence_length": 8,
    "validations": 0,
    "validation_tokens": 0,
}
CURVES = {"metrics.jsonl": "", "validation.jsonl": ""}
STEPS = (8_000_000_000, 6_000_000_000, 4_000_000_000)


def write(
    workspace: Workspace,
    stage: str,
    inputs: dict[str, str],
    result: Result,
    *,
    label: str = "",
    config: dict[str, Any] | None = None,
    files: dict[str, str] | None = None,
) -> Artifact:
    """A finished artifact, which becomes the current one."""
    key = manifest.key_of(stage, 1, config or {}, inputs)
    path = workspace.stage_dir(stage) / f"{label}-{key[:8]}".lstrip("-")
    path.mkdir(parents=True)
    result.write(path)
    for name, text in (files or {}).items():
        (path / name).write_text(text)
    records = {file.name: io.file_record(file) for file in sorted(path.iterdir())}
    made = Manifest(
        schema_version=manifest.SCHEMA_VERSION,
        stage=stage,
        stage_version=1,
        label=label,
        key=key,
        config=config or {},
        inputs=inputs,
        files=records,
    )
    manifest.write(path, made)
    workspace.point(Artifact.open(path))
    return Artifact.open(path)


def rewrite(artifact: Artifact, name: str, text: str) -> None:
    """Replace a file of an artifact, and its hash in the manifest, as if the stage had written it so."""
    (artifact.path / name).write_text(text)
    (artifact.path / manifest.MANIFEST).unlink()
    files = {**artifact.manifest.files, name: io.file_record(artifact.path / name)}
    manifest.write(artifact.path, artifact.manifest.model_copy(update={"files": files}))


def importance(workspace: Workspace, model: str) -> Artifact:
    found = ImportanceResult(model=size(8), samples=1, sequence_length=8)
    return write(workspace, "importance", {"model": model, "data": "text"}, found, files={"scores": model})


def prune(workspace: Workspace, model: str, scores: Artifact, step: int, label: str = "", **config: Any) -> Artifact:
    before, after = STEPS[step - 1 : step + 1]
    found = PruneResult(parent=size(before, ffn=8), child=size(after, ffn=4), checks=(), serving=())
    files = {"config.json": json.dumps({"of": [step, label, repr(config)]}), "plan.json": "{}"}
    inputs = {"model": model, "scores": scores.fingerprint}
    return write(workspace, "prune", inputs, found, label=label, config=config, files=files)


def distill(workspace: Workspace, teacher: str, student: Artifact, label: str = "distilled", **config: Any) -> Artifact:
    found = TrainingResult(**TRAINED)
    settings = DistillConfig(**config).model_dump(mode="json", exclude_defaults=True)
    files = {"config.json": json.dumps({"of": [student.key, teacher, settings, label]})}
    inputs = {"teacher": teacher, "student": model_of(student), "train": "text"}
    return write(workspace, "distill", inputs, found, label=label, config=settings, files={**CURVES, **files})


def evaluate(workspace: Workspace, **models: tuple[str, float]) -> Artifact:
    """Label -> fingerprint and loss of each model, the parent first."""
    found = {
        label: evaluation(loss).model_copy(update={"fingerprint": known}) for label, (known, loss) in models.items()
    }
    inputs = {f"model {label}": known for label, (known, _) in models.items()}
    return write(workspace, "evaluate", inputs, EvaluationResult(models=found))


def model_of(made: Artifact) -> str:
    """Fingerprint of an artifact as a model."""
    return fingerprint.of_directory(made.path)


def chain(root: Path) -> tuple[Workspace, list[Artifact]]:
    """Two steps from `BIG`, whose second student learned from the original; the last artifact is the evaluation."""
    workspace = Workspace(root / "runs" / "small")
    scores = importance(workspace, BIG)
    wide = distill(workspace, BIG, prune(workspace, BIG, scores, 1))
    again = importance(workspace, model_of(wide))
    narrow = prune(workspace, model_of(wide), again, 2)
    student = distill(workspace, BIG, narrow)
    models = {"parent": (model_of(wide), 2.0), "pruned": (model_of(narrow), 3.0), "distilled": (model_of(student), 2.5)}
    return workspace, [wide, narrow, student, evaluate(workspace, **models)]
