"""Models that were measured elsewhere, in the form of evaluated models. Runs no model."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from minitron_cli import strict_json
from minitron_cli.errors import RecipeError
from minitron_cli.evaluate import gate, lm_eval_results
from minitron_cli.evaluate.config import PERPLEXITY
from minitron_cli.evaluate.metrics import TEXT_FIGURES
from minitron_cli.evaluate.other_model import OtherModel
from minitron_cli.results.base import SCHEMA, ModelSize
from minitron_cli.results.evaluation import MetricResult, OtherEvaluation

Results = Mapping[str, Mapping[str, MetricResult]]


def read(wanted: Sequence[OtherModel], taken: Sequence[str] = ()) -> dict[str, OtherEvaluation]:
    """Name -> what is known of each model.

    RecipeError for a file without results, a name that is taken, or a value on text that no evaluation measures.
    `taken`: labels of the models that are measured.
    """
    names = [*taken, *(one.name for one in wanted)]
    if twice := [one.name for one in wanted if names.count(one.name) > 1]:
        raise RecipeError(f"two models are called {twice[0]!r}: give the one measured elsewhere another name")
    return {one.name: _read(one) for one in wanted}


def _read(wanted: OtherModel) -> OtherEvaluation:
    found, parameters = _of_file(Path(wanted.file), wanted) if wanted.file else ({}, 0)
    results = {task: dict(metrics) for task, metrics in found.items()}
    for name, value in wanted.values.items():
        task, _, metric = name.rpartition(".")
        results.setdefault(task, {})[metric] = MetricResult(value=value)
    if unknown := [metric for metric in results.get(PERPLEXITY, {}) if metric not in TEXT_FIGURES]:
        raise RecipeError(
            f"other model {wanted.name!r}: {PERPLEXITY}.{unknown[0]} is not measured on text; "
            f"give one of {', '.join(TEXT_FIGURES)}, or leave it out"
        )
    size = ModelSize(
        sizes={}, parameters=wanted.parameters or parameters, non_embedding=0, decoder_flops=0, head_flops=0
    )
    source = Path(wanted.file).name if wanted.file else "given by hand"
    return OtherEvaluation(fingerprint="", model=size, results=results, source=source)


def _of_file(file: Path, wanted: OtherModel) -> tuple[Results, int]:
    """Metrics and parameters in a file."""
    if not file.is_file():
        raise RecipeError(f"{file}, the results of {wanted.name}, does not exist: give the path of a JSON file")
    content = strict_json.load(file, finite=False)  # lm-eval writes NaN
    stored = content.get("result", content)
    if isinstance(stored, dict) and SCHEMA in stored:
        known = gate.chosen(gate.read_models(file), wanted.name, wanted.model)
        if known is None:
            raise RecipeError(f"{file} measures several models: choose one for {wanted.name} with model: LABEL")
        return known.results, known.model.parameters
    return _of_lm_eval(content, file)


def _of_lm_eval(content: Mapping[str, Any], file: Path) -> tuple[Results, int]:
    try:
        results = lm_eval_results.results(content)
        parameters = int(content.get("config", {}).get("model_num_parameters") or 0)
    except (KeyError, AttributeError, TypeError, ValueError):
        results, parameters = {}, 0
    if not results:
        raise RecipeError(
            f"{file} has no results: give a file that lm-eval wrote (--output_path), or that of `minitron eval --json`"
        )
    return results, max(parameters, 0)
