"""Measurements of a model in an earlier evaluation of the workspace, on the same text and tasks. Runs no model."""

from collections.abc import Mapping
from typing import Any

from minitron_cli.artifacts.artifact import Artifact
from minitron_cli.artifacts.build import Context
from minitron_cli.errors import ArtifactError
from minitron_cli.evaluate.config import PERPLEXITY
from minitron_cli.evaluate.measurements import Measurements
from minitron_cli.results.evaluation import EvaluationResult

ITEMS = "items.json"
OF_OTHERS = ("kl", "kl_original")  # metrics on text that depend on another model than the measured one
OTHER_RECORDS = "speed"  # a setting of what is measured besides, in `run.json`


def earlier(context: Context, fingerprint: str, manifest: Mapping[str, Any], *, per_byte: bool) -> Measurements | None:
    """Everything but KL that an evaluation found of the model with this fingerprint; None if none measured it, or if
    that is to be made again.

    `manifest`: stage, version, config and inputs without the models, which have to be equal. `per_byte`: whether models
    of another tokenizer take part, for which all are measured per byte.
    """
    for made in context.workspace.artifacts(manifest["stage"]):
        if context.overwrites(made.path):
            continue
        if _conditions(made) == {**manifest, "config": _config(manifest["config"])} and (result := _result(made)):
            is_per_byte = any(model.other_tokenizer for model in result.models.values())
            labels = [label for label, model in result.models.items() if model.fingerprint == fingerprint]
            if labels and is_per_byte == per_byte and not result.models[labels[0]].other_tokenizer:
                return _measurements(made, result, labels[0])
    return None


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


def _result(made: Artifact) -> EvaluationResult | None:
    try:
        return made.result(EvaluationResult)
    except ArtifactError:
        return None  # of another version: the model is measured again


def _measurements(made: Artifact, result: EvaluationResult, label: str) -> Measurements:
    found = result.models[label]
    results = {
        task: {name: metric for name, metric in metrics.items() if task != PERPLEXITY or name not in OF_OTHERS}
        for task, metrics in found.results.items()
    }
    items = made.read_json(ITEMS)["models"][label]
    return Measurements.model_validate({"results": results, "items": items, "sources": found.sources})
