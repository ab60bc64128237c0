"""What limits the figures of an evaluation: too few documents, or models of different tokenizers."""

from collections.abc import Mapping

from minitron_cli.figures import Figure
from minitron_cli.report.view import Table
from minitron_cli.results.evaluation import ModelEvaluation

ADVICE = "evaluate more documents to know about other texts"


def remarks(models: Mapping[str, ModelEvaluation]) -> list[Table]:
    """Tables of remarks, without rows where there is nothing to say. `models`: evaluated models by their labels."""
    return [_one_document(models), _other_tokenizers(models)]


def _one_document(models: Mapping[str, ModelEvaluation]) -> Table:
    """Tasks whose intervals cannot be over documents, and why."""
    documents = {
        task: metric.clusters
        for model in models.values()
        for task, metrics in model.results.items()
        for metric in metrics.values()
        if metric.is_of_one_document and metric.part_of is None
    }
    why = {
        task: "there is one document" if count == 1 else f"one of {count:,} documents outweighs the others"
        for task, count in documents.items()
    }
    title = "Intervals for other parts of the same documents, not for other documents"
    return Table(title, (Figure("task"), Figure("why")), tuple((task, f"{x}; {ADVICE}") for task, x in why.items()))


def _other_tokenizers(models: Mapping[str, ModelEvaluation]) -> Table:
    title = "Compared per byte only, because the tokenizer is not the parent's"
    rows = ((label, model.other_tokenizer) for label, model in models.items() if model.other_tokenizer)
    return Table(title, (Figure("model"), Figure("difference")), tuple(rows))
