"""The verbs as Python functions over the config models of recipes. The command line calls these.

    from minitron_cli import api
    with api.workspace("runs/small") as context:
        scores = api.importance(context, "models/large", data)
        child = api.prune(context, "models/large", PruneConfig(budget={"target": "75%"}), scores=scores, data=data)

Every function returns an artifact: `artifact.path` is its directory, `artifact.result(PruneResult)` its typed result.
An artifact that exists for the same settings and inputs is returned without work; a killed call resumes.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from minitron_cli import device as devices
from minitron_cli.artifacts import agreement
from minitron_cli.artifacts.artifact import Artifact
from minitron_cli.artifacts.build import Context
from minitron_cli.artifacts.workspace import Workspace
from minitron_cli.data.sources import DataConfig
from minitron_cli.distill.config import CorrectConfig, DistillConfig
from minitron_cli.evaluate.config import EvaluateConfig
from minitron_cli.importance.config import ImportanceConfig
from minitron_cli.landscape.config import LandscapeConfig
from minitron_cli.prune.config import PruneConfig
from minitron_cli.recipe import Recipe
from minitron_cli.search.config import SearchConfig
from minitron_cli.signals.config import TeachConfig
from minitron_cli.sparse.config import SparsifyConfig
from minitron_cli.ticket.config import SupermaskConfig, TicketConfig, TransferConfig

if TYPE_CHECKING:
    from minitron_cli.inputs.source_model import SourceModel
    from minitron_cli.pipeline import Results
    from minitron_cli.results.verification import Verification

    Model = str | Path | SourceModel  # a directory, a hub id, an alias such as llama-3.1-8b, or an open model

__all__ = [
    "correct",
    "distill",
    "evaluate",
    "importance",
    "landscape",
    "prune",
    "report",
    "run",
    "search",
    "sparsify",
    "supermasks",
    "teach",
    "tickets",
    "transfer",
    "verify",
    "workspace",
]


@contextmanager
def workspace(
    path: str | Path,
    *,
    device: str = "auto",
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    overwrite: bool = False,
    resume: bool = True,
    offline: bool = False,
) -> Iterator[Context]:
    """Context in which verbs run and write to `path`, whose lock is held meanwhile.

    `device="auto"` is the first accelerator, else the CPU; `dtype="auto"` runs models in their stored dtype, or in
    float32 on a CPU that has no instructions for it. `overwrite` makes existing results again, `resume=False` discards
    the state of interrupted work, and `offline` downloads nothing. EnvironmentFault if the device cannot be used.
    """
    directory = Workspace(Path(path))
    context = Context(
        directory, device=devices.resolve(device), dtype=dtype, overwrite=overwrite, resume=resume, offline=offline
    )
    with agreement.locked(directory):
        yield context


def importance(context: Context, model: "Model", data: DataConfig, config: ImportanceConfig | None = None) -> Artifact:
    """Score heads, neurons, experts, hidden channels and layers of a model on calibration text (ImportanceResult)."""
    from minitron_cli.stages import importance as stage

    return stage.run(context, _opened(context, model), data, config or ImportanceConfig())


def search(
    context: Context,
    model: "Model",
    data: DataConfig,
    config: SearchConfig,
    *,
    scores: Artifact,
    teacher: "Model | None" = None,
    prune: PruneConfig | None = None,
) -> Artifact:
    """Find the best shape within constraints (SearchResult).

    `scores` comes from `importance`. Candidates are retrained on the predictions of `teacher`, by default the model,
    and repaired before they are scored if `prune`, the configuration of the later pruning, repairs the child.
    """
    from minitron_cli.stages import search as stage

    guide = None if teacher is None else _opened(context, teacher)
    return stage.run(context, _opened(context, model), scores, data, config, teacher=guide, prune=prune)


def prune(
    context: Context,
    model: "Model",
    config: PruneConfig,
    *,
    scores: Artifact,
    data: DataConfig | None = None,
    search: Artifact | None = None,
) -> Artifact:
    """Prune a model to a shape, to a budget, or to the winner of a search (PruneResult). The artifact is a checkpoint.

    `data` is needed to choose a shape for a budget and to repair the child.
    """
    from minitron_cli.stages import prune as stage

    return stage.run(context, _opened(context, model), config, scores=scores, data=data, search=search)


def sparsify(
    context: Context,
    model: "Model | Artifact",
    config: SparsifyConfig | None = None,
    *,
    data: DataConfig | None = None,
    teacher: "Model | None" = None,
    training: DistillConfig | None = None,
) -> Artifact:
    """Make weights of a model's decoder blocks zero (SparsifyResult). The artifact is a checkpoint with its masks.

    `data` is needed unless weights are chosen by magnitude and not repaired. With `config.rounds`, the model is trained
    between rounds on the predictions of `teacher`, the model itself if that is None.
    """
    from minitron_cli.stages import sparsify_rounds as stage

    source = _opened(context, model.path if isinstance(model, Artifact) else model)
    guide = source if teacher is None else _opened(context, teacher)
    how = training or DistillConfig()
    return stage.run(context, source, config or SparsifyConfig(), data, teacher=guide, training=how)


def correct(context: Context, model: "Model", data: DataConfig, config: CorrectConfig) -> Artifact:
    """Train a model on the text, to be a better teacher there (CorrectionResult). The artifact is a checkpoint."""
    from minitron_cli.stages import correct as stage

    return stage.run(context, _opened(context, model), data, config)


def teach(
    context: Context,
    model: "Model",
    data: DataConfig,
    config: TeachConfig | None = None,
    *,
    training: DistillConfig | None = None,
) -> Artifact:
    """Store what a model says of the text (TeachResult), which `distill` reads in place of the teacher.

    `training`, the distillation that the signals are for, gives the settings that are left out: length, seed,
    temperature and held-out blocks.
    """
    from minitron_cli.stages import teach as stage

    return stage.run(context, _opened(context, model), data, config or TeachConfig(), training=training)


def distill(
    context: Context,
    student: str | Path | Artifact,
    teacher: "Model",
    data: DataConfig,
    config: DistillConfig,
    *,
    label: str = "distilled",
) -> Artifact:
    """Train a model on the predictions of a teacher (TrainingResult). The artifact is a checkpoint.

    `student` is what `prune` or `sparsify` returns, a directory, or a hub id; it has the teacher's tokenizer. `label`
    names the student in tables and in the directory of the artifact.
    """
    from minitron_cli.stages import distill as stage

    source = student.path if isinstance(student, Artifact) else student
    return stage.run(context, _opened(context, teacher), source, data, config, label=label)


def evaluate(
    context: Context,
    models: Mapping[str, str | Path | Artifact],
    parent: "Model",
    data: DataConfig | None = None,
    config: EvaluateConfig | None = None,
    *,
    allow_code: bool = False,
) -> Artifact:
    """Measure models, by label, beside their parent on the same text and tasks (EvaluationResult).

    `data` is needed for perplexity and cloze. `allow_code` permits tasks that run code which a model writes.
    """
    from minitron_cli.stages import evaluate as stage

    labelled = [(label, m.path if isinstance(m, Artifact) else Path(m)) for label, m in models.items()]
    return stage.run(
        context, labelled, _opened(context, parent), data, config or EvaluateConfig(), allow_code=allow_code
    )


def landscape(
    context: Context, models: "Mapping[str, Model]", data: DataConfig, config: LandscapeConfig | None = None
) -> Artifact:
    """Measure the loss around models of one shape, by label, and between the first and each other (LandscapeResult)."""
    from minitron_cli.stages import landscape as stage

    opened = {label: _opened(context, model) for label, model in models.items()}
    return stage.run(context, opened, data, config or LandscapeConfig())


def tickets(context: Context, model: "Model", data: DataConfig, config: TicketConfig | None = None) -> Artifact:
    """Train lottery tickets of a model's shape and their controls at every sparsity (TicketResult)."""
    from minitron_cli.stages import ticket as stage

    return stage.run(context, _opened(context, model), data, config or TicketConfig())


def transfer(
    context: Context,
    tickets: "str | Path | Artifact | Sequence[str | Path | Artifact]",
    data: DataConfig,
    config: TransferConfig | None = None,
) -> Artifact:
    """Train tickets that were found on another text, and their controls (TransferResult).

    `tickets`: what `tickets` returns, or directories of some of its rounds.
    """
    from minitron_cli.stages import transfer as stage

    given = [tickets] if isinstance(tickets, str | Path | Artifact) else tickets
    directories = [one.path if isinstance(one, Artifact) else Path(one) for one in given]
    return stage.run(context, directories, data, config or TransferConfig())


def supermasks(context: Context, model: "Model", data: DataConfig, config: SupermaskConfig | None = None) -> Artifact:
    """Measure weights of a model's shape that were never trained under masks of every criterion (SupermaskResult)."""
    from minitron_cli.stages import supermask as stage

    return stage.run(context, _opened(context, model), data, config or SupermaskConfig())


def report(context: Context) -> Artifact:
    """Write the HTML page and the model card of the workspace's product (ReportResult)."""
    from minitron_cli.stages import report as stage

    return stage.run(context)


def verify(path: str | Path) -> "Verification":
    """Compare every byte of the workspace at `path` with what was written. ArtifactError if there is none."""
    from minitron_cli.report import verification

    return verification.verify(Workspace(Path(path)))


def run(context: Context, recipe: Recipe, *, fail_if_worse: bool = False) -> "list[Results]":
    """Run every stage of a recipe, and every step of a chain; one entry per step.

    With `fail_if_worse`, RunFailed after a training that made its objective worse on held-out text.
    """
    from minitron_cli import pipeline

    return pipeline.run(recipe, context, fail_if_worse=fail_if_worse)


def _opened(context: Context, model: "Model") -> "SourceModel":
    from minitron_cli.inputs.source_model import open_source_model

    return open_source_model(model, offline=context.offline) if isinstance(model, str | Path) else model
