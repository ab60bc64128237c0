"""Measurements of a model in earlier evaluations of the workspace, on the same text and tasks. Runs no model."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from minitron_cli.artifacts.artifact import Artifact
from minitron_cli.artifacts.build import Context
from minitron_cli.errors import ArtifactError
from minitron_cli.evaluate.config import PERPLEXITY
from minitron_cli.evaluate.measurements import Measurements
from minitron_cli.results.evaluation import ORIGINAL, PARENT, EvaluationResult, MetricResult

ITEMS = "items.json"
OF_OTHERS = {"kl": PARENT, "kl_original": ORIGINAL}
"""Metric on text that depends on another model than the measured one -> the label of that model."""
OTHER_RECORDS = "speed"  # a setting of what is measured besides, in `run.json`


def earlier(
    context: Context,
    fingerprint: str,
    manifest: Mapping[str, Any],
    *,
    references: Mapping[str, str] = {},
    per_byte: bool,
) -> Measurements | None:
    """What evaluations found of the model with this fingerprint; None if none measured it, or if that is to be made
    again.

    `manifest`: stage, version, config and inputs without the models, which have to be equal. `references`: name of
    each KL that is wanted -> fingerprint of the model from which it is measured; a KL that no evaluation has measured
    from that model is left out. `per_byte`: whether models of another tokenizer take part, for which all are measured
    per byte.
    """
    found: Measurements | None = None
    divergences: dict[str, MetricResult] = {}
    for result, items in _evaluations(context, manifest):
        if label := _label(result, fingerprint, per_byte=per_byte):
            found = found or _measurements(result, items, label)
            divergences |= {
                name: metric
                for name, metric in result.models[label].results.get(PERPLEXITY, {}).items()
                if name in references and _fingerprint(result, OF_OTHERS[name]) == references[name]
            }
    if found is None or not divergences:
        return found
    return found | Measurements(results={PERPLEXITY: {**found.results[PERPLEXITY], **divergences}})


def _evaluations(context: Context, manifest: Mapping[str, Any]) -> Iterator[tuple[EvaluationResult, dict[str, Any]]]:
    """Evaluations under these conditions that are not to be made again, and the items of their models by label."""
    for made in context.workspace.artifacts(manifest["stage"]):
        if context.overwrites(made.path):
            continue
        if _conditions(made) == {**manifest, "config": _config(manifest["config"])}:
            with suppress(ArtifactError):  # one that is damaged or of another version: its models are measured again
                yield made.result(EvaluationResult), made.read_json(ITEMS)["models"]


def _label(result: EvaluationResult, fingerprint: str, *, per_byte: bool) -> str | None:
    """Label of a model in an evaluation that measured it as it is to be measured now."""
    labels = [label for label, model in result.models.items() if model.fingerprint == fingerprint]
    is_per_byte = any(model.other_tokenizer for model in result.models.values())
    is_alike = labels and is_per_byte == per_byte and not result.models[labels[0]].other_tokenizer
    return labels[0] if is_alike else None


def _fingerprint(result: EvaluationResult, label: str) -> str | None:
    return result.models[label].fingerprint if label in result.models else None


def _conditions(made: Artifact) -> dict[str, Any]:
    found = made.manifest
    inputs = {name: value for name, value in found.inputs.items() if not name.startswith("model ")}
    return {
        "stage": found.stage,
        "version": found.stage_version,
        "config": _config(found.config),
        "inputs": inputs,
    }


def _config(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name != OTHER_RECORDS}


def _measurements(result: EvaluationResult, items: Mapping[str, Any], label: str) -> Measurements:
    found = result.models[label]
    results = {
        task: {name: metric for name, metric in metrics.items() if task != PERPLEXITY or name not in OF_OTHERS}
        for task, metrics in found.results.items()
    }
    return Measurements.model_validate({"results": results, "items": items[label], "sources": found.sources})
