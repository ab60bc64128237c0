"""What stands beside the models of an evaluation: models measured elsewhere, and distilled ones that it left out."""

from pydantic import ValidationError

from minitron_cli import progress
from minitron_cli.artifacts import fingerprint
from minitron_cli.artifacts.artifact import Artifact
from minitron_cli.artifacts.workspace import GIVEN, Workspace, others_beside
from minitron_cli.evaluate.metrics import KL, LOSS
from minitron_cli.figures import Figure
from minitron_cli.report.evaluation import TOKENS, Evaluated, evaluated
from minitron_cli.report.product import is_readable, place
from minitron_cli.report.view import Table
from minitron_cli.results.evaluation import PARENT, EvaluationResult, OtherEvaluation
from minitron_cli.results.training import TrainingResult


def models(evaluation: Artifact) -> list[Evaluated]:
    """All models of an evaluation, then those that were measured elsewhere."""
    return [*evaluated(evaluation.result(EvaluationResult)), *elsewhere(evaluation)]


def elsewhere(evaluation: Artifact) -> list[Evaluated]:
    """Models that were measured elsewhere, as the user gave them for the parent of an evaluation."""
    workspace = Workspace(evaluation.path.parent.parent)
    stored = workspace.given.get(others_beside(evaluation.manifest.inputs[f"model {PARENT}"]), {})
    try:
        return [Evaluated(label, "other", OtherEvaluation.model_validate(one)) for label, one in stored.items()]
    except ValidationError:
        progress.warn(f"left out: models measured elsewhere in {workspace.root / GIVEN}; evaluate again with `others`")
        return []


def not_measured(evaluation: Artifact) -> Table:
    """Distilled models of the workspace that an evaluation did not measure."""
    measured = set(evaluation.manifest.inputs.values())
    found = [
        made
        for made in Workspace(evaluation.path.parent.parent).artifacts("distill")
        if fingerprint.of_model(made.manifest) not in measured and is_readable(made, TrainingResult)
    ]
    results = [made.result(TrainingResult) for made in found]
    return Table.of_columns(
        "Distilled models that were not measured: `minitron eval PATH PATH` compares them",
        (Figure("path"), [place(made.path) for made in found]),
        (TOKENS, [one.tokens for one in results]),
        (LOSS, [getattr(one.after, "loss", None) for one in results]),
        (KL, [getattr(one.after, "kl", None) for one in results]),
    )
