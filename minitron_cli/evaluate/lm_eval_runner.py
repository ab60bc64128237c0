"""lm-eval on a model in memory. Results are plain numbers, with the score of each item.

The model is passed as an object, because lm-eval's model strings cannot hold paths with commas or equal signs.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from statistics import fmean
from typing import Any

import lm_eval.evaluator
import numpy as np

from minitron_cli import progress, stopping
from minitron_cli.errors import DataError
from minitron_cli.evaluate.config import Task
from minitron_cli.evaluate.lm_eval_logging import quiet, seeded
from minitron_cli.evaluate.lm_eval_model import Model
from minitron_cli.evaluate.lm_eval_results import members, metric_name
from minitron_cli.evaluate.lm_eval_results import results as results_of
from minitron_cli.evaluate.measurements import Measurements
from minitron_cli.evaluate.statistics import Items, errors
from minitron_cli.evaluate.task_code import templates
from minitron_cli.evaluate.tasks import DEFAULT_LOCATIONS, TaskLocations, TaskSet, load_tasks, refusing_broken_items
from minitron_cli.results.evaluation import MetricResult, TaskSource

BOOTSTRAP_DRAWS = 1000  # for metrics without a closed form; in this process, seeded

TaskItems = dict[str, dict[str, Items]]


def run_tasks(
    model: Any,
    tokenizer: Any,
    tasks: Sequence[Task],
    *,
    locations: TaskLocations = DEFAULT_LOCATIONS,
    allow_code: bool = False,
    batch_size: int = 8,
    apply_chat_template: bool = False,
    fewshot_as_multiturn: bool = False,
) -> Measurements:
    """Results of the model on every task; deterministic in model and tasks."""
    with quiet() as truncated, seeded(), stopping.interruptible(), templates(allow_code=allow_code):
        chosen = load_tasks(tasks, locations, allow_code=allow_code)
        own = copy.deepcopy(tokenizer)  # it may add a pad token
        lm = Model(pretrained=model, tokenizer=own, batch_size=batch_size)
        with refusing_broken_items(tasks, locations.tasks):
            raw = lm_eval.evaluator.evaluate(
                lm,
                chosen.task_dict,
                samples=chosen.items or None,
                bootstrap_iters=BOOTSTRAP_DRAWS,
                log_samples=True,
                apply_chat_template=apply_chat_template,
                fewshot_as_multiturn=fewshot_as_multiturn,
                confirm_run_unsafe_code=allow_code,
            )
    if truncated.count:
        progress.warn(f"{truncated.count} requests exceeded the model's context and were truncated at the beginning")
    return _measurements(raw, chosen)


def _measurements(raw: Any, chosen: TaskSet) -> Measurements:
    """Results and item scores of lm-eval's raw output."""
    results, scores = results_of(raw), _scores(raw, chosen)
    items = {
        task: {
            metric: found
            for metric in metrics
            if (found := _averaged_items(metrics[metric], scores, raw, (task, metric), chosen))
        }
        for task, metrics in results.items()
    }
    for task, metrics in items.items():
        for metric, found in metrics.items():
            update = errors(found)
            if not any(
                member in chosen.documents for member in members(raw, task)
            ):  # lm-eval takes all for independent
                update = {"scale": update["scale"]}
            results[task][metric] = results[task][metric].model_copy(update=update)
    for task, shares in _guesses(raw, chosen).items():
        for metric, found in items.get(task, {}).items():
            if metric.startswith("acc") and found.are_right_or_wrong:
                chance = fmean(map(fmean, shares) if found.weights else chain(*shares))
                results[task][metric] = results[task][metric].model_copy(update={"chance": chance})
    averaged = {task: some for task, some in items.items() if some}
    return Measurements(results=results, items=averaged, sources=_sources(raw, chosen))


def _sources(raw: Any, chosen: TaskSet) -> dict[str, TaskSource]:
    """Task -> origin of its data; for a group, the fields that all members share."""
    tasks = chosen.task_dict["tasks"]
    sources = {}
    for name in raw["results"]:
        found = [_source(tasks[member]) for member in members(raw, name) if member in tasks]
        common = dict(set.intersection(*(set(source.items()) for source in found))) if found else {}
        if common.get("dataset"):
            sources[name] = TaskSource(**common)
    return sources


def _source(task: Any) -> dict[str, str | None]:
    if (task.get_config("dataset_kwargs") or {}).get("data_files"):
        return {}
    split = task.get_config("test_split") or task.get_config("validation_split")
    return {"dataset": task.get_config("dataset_path"), "config": task.get_config("dataset_name"), "split": split}


def _scores(raw: Any, chosen: TaskSet) -> TaskItems:
    """Task -> metric -> item scores, for every task that is no group and every metric with a number per item."""
    scores: TaskItems = {}
    for task, samples in raw["samples"].items():
        columns: dict[str, list[Any]] = {}
        for sample in samples:
            for metric in sample["metrics"]:
                columns.setdefault(metric_name(metric, sample["filter"]), []).append(sample[metric])
        documents = _documents(samples, task, chosen.documents.get(task))
        scores[task] = {
            metric: Items([float(value) for value in column], groups=documents and documents[: len(column)])
            for metric, column in columns.items()
            if all(isinstance(value, int | float | np.number | np.bool_) for value in column)
        }
    return scores


def _guesses(raw: Any, chosen: TaskSet) -> dict[str, list[list[float]]]:
    """Task or group that asks multiple-choice questions alone -> probability of guessing each item, by member."""
    of_tasks = {
        name: [1 / _choices(sample) for sample in samples]
        for name, samples in raw["samples"].items()
        if (task := chosen.task_dict["tasks"].get(name)) and task.OUTPUT_TYPE == "multiple_choice"
    }
    return {
        name: [of_tasks[member] for member in members(raw, name)]
        for name in raw["results"]
        if all(of_tasks.get(member) for member in members(raw, name))
    }


def _choices(sample: Mapping[str, Any]) -> int:
    """Number of answers to choose from; mutual information asks for each answer once more, without its question."""
    return len(sample["arguments"]) // (2 if "acc_mutual_info" in sample["metrics"] else 1)


def _documents(samples: Sequence[Mapping[str, Any]], task: str, column: str | None) -> list[int] | None:
    """Document number of each item, in order of appearance; None if no column identifies documents."""
    if column is None:
        return None
    if absent := [sample for sample in samples if column not in sample["doc"]]:
        known = ", ".join(sorted(absent[0]["doc"]))
        raise DataError(
            f"task {task!r}: its items have no column {column!r} that identifies documents; use one of {known}"
        )
    numbers: dict[Any, int] = {}
    return [numbers.setdefault(str(sample["doc"][column]), len(numbers)) for sample in samples]


def _averaged_items(
    result: MetricResult, scores: TaskItems, raw: Any, named: tuple[str, str], chosen: TaskSet
) -> Items | None:
    """Items whose mean is the result; None for perplexities, F1 and other metrics that are no mean over items.

    `named`: the task and the metric.
    """
    task, metric = named
    parts = [scores[name].get(metric) for name in members(raw, task) if name in scores]
    if not parts or any(items is None for items in parts) or result.value is None:
        return None
    found = [items for items in parts if items]
    items = (_equally_weighted if _weighs_tasks_equally(chosen, task, metric) else _joined)(found)
    return items if math.isclose(items.mean, result.value, rel_tol=1e-9, abs_tol=1e-12) else None


def _weighs_tasks_equally(chosen: TaskSet, task: str, metric: str) -> bool:
    """Whether a group's value is the mean over its tasks, not over their items. A model's values do not tell: where it
    has the same in all tasks, both are one number, and for another model they are not."""
    group = chosen.task_dict["groups"].get(task)
    name = metric.partition(",")[0]
    return any(one.metric == name and not one.weight_by_size for one in (group and group.aggregate_metric_list) or ())


def _joined(parts: Sequence[Items]) -> Items:
    """Items of several tasks, concatenated; documents are numbered apart."""
    values = [value for part in parts for value in part.values]
    if all(part.groups is None for part in parts):
        return Items(values)
    groups: list[int] = []
    for part in parts:
        first = max(groups, default=-1) + 1
        groups += [first + g for g in (part.groups if part.groups is not None else range(len(part.values)))]
    return Items(values, groups=groups)


def _equally_weighted(parts: Sequence[Items]) -> Items:
    """The same with equal weights of tasks instead of items."""
    weights = [1 / len(part.values) for part in parts for _ in part.values]
    return replace(_joined(parts), weights=weights)
