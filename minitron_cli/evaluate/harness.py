"""lm-eval on a model in memory. Knows lm-eval's tasks and its noise; results leave as plain numbers.

Tasks come from lm-eval's own collection or from a directory of YAMLs, which needs no network. The model is passed
as an object: lm-eval's model strings break on commas and equal signs in paths.
"""

import contextlib
import copy
import difflib
import functools
import io as text_io
import logging
import math
import os
import random
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import lm_eval.evaluator
import lm_eval.tasks
import numpy as np
import torch
import tqdm
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks._index import Entry, Kind
from lm_eval.tasks._yaml_loader import load_yaml

from minitron_cli import io, progress
from minitron_cli.errors import DataError, EnvironmentFault, InputError
from minitron_cli.evaluate.config import Task

BOOTSTRAP_DRAWS = 1000  # for metrics without a closed form; in this process, seeded
SEED = 1234  # lm-eval's own, for the choice of few-shot examples

TaskResults = dict[str, dict[str, dict[str, float | int | None]]]


def run_tasks(
    model: Any, tokenizer: Any, tasks: Sequence[Task], *, include_path: Path | None = None, batch_size: int = 8
) -> TaskResults:
    """Each task's metrics, `{task: {metric: {value, stderr, n, shots}}}`; a group is followed by its members.

    A metric has lm-eval's name, with the filter after a comma where there is a choice of filters
    (`exact_match,strict-match`). Values that are not finite are None.
    """
    with _quiet() as truncated, _seeded():
        chosen = load_tasks(tasks, include_path)
        lm = _Model(
            pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size=batch_size
        )  # it may add a pad token
        raw = lm_eval.evaluator.evaluate(
            lm, chosen.task_dict, samples=chosen.items or None, bootstrap_iters=BOOTSTRAP_DRAWS, log_samples=False
        )
    if truncated.count:
        progress.warn(f"{truncated.count} requests were longer than the model's context and lost their beginning")
    return _plain(raw)


@dataclass(frozen=True)
class TaskSet:
    """Tasks as lm-eval takes them."""

    task_dict: dict[str, dict[str, Any]] = field(default_factory=lambda: {"tasks": {}, "groups": {}, "group_map": {}})
    items: dict[str, list[int]] = field(default_factory=dict)
    """Of every task with a limit, the items to ask; lm-eval itself has one limit for all."""


def load_tasks(tasks: Sequence[Task], include_path: Path | None = None) -> TaskSet:
    """The tasks with their own shots and limits. InputError for one that does not exist, or that runs code."""
    chosen = TaskSet()
    with _quiet(), _seeded():
        manager = _manager([task.name for task in tasks], include_path)
        for task in tasks:
            _refuse_unsafe_code(task.name, (manager.task_index[task.name].cfg or {}).get("unsafe_code"))
            _add_(chosen, task, _load(manager, task.name))
    return chosen


def _add_(chosen: TaskSet, task: Task, loaded: Any) -> None:
    for name, member in loaded["tasks"].items():
        if name in chosen.task_dict["tasks"]:
            raise InputError(f"task {name!r} is asked for twice, by name or as part of a group; name it once")
        _refuse_unsafe_code(name, getattr(member, "UNSAFE_CODE", False))
        _set_shots_(member, task.num_fewshot)
        if task.limit is not None:
            chosen.items[name] = list(range(_item_count(task.limit, len(member.eval_docs))))
    for kind, entries in chosen.task_dict.items():
        entries.update(loaded[kind])


def _item_count(limit: int | float, total: int) -> int:
    return min(total, math.ceil(limit * total) if limit < 1 else int(limit))


def _refuse_unsafe_code(name: str, is_unsafe: Any) -> None:
    if is_unsafe:
        raise InputError(f"task {name!r} runs code that the model writes, which minitron does not do; leave it out")


def _set_shots_(task: Any, num_fewshot: int | None) -> None:
    """The shots asked for, else the task's own, else none. A task fixed at 0 stays there, as in lm-eval."""
    own = task.get_config("num_fewshot")
    if own == 0 and num_fewshot:
        _warn_once(f"task {task.task_name} is defined without examples; num_fewshot={num_fewshot} has no effect")
    elif num_fewshot is not None:
        task.set_config(key="num_fewshot", value=num_fewshot)
    task.set_fewshot_seed(seed=SEED)


@functools.cache
def _warn_once(text: str) -> None:
    progress.warn(text)  # tasks are loaded for every model of a table


def fingerprint(include_path: Path) -> str:
    """A hash of every file under a task directory, by relative name."""
    files = sorted(path for path in include_path.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return io.digest({str(path.relative_to(include_path)): io.file_record(path).sha256 for path in files})


# finding and loading tasks


def _manager(names: Sequence[str], include_path: Path | None) -> lm_eval.tasks.TaskManager:
    path, content = None, ""
    if include_path is not None:
        _check_yamls(include_path)
        path, content = str(include_path.resolve()), fingerprint(include_path)
        local = _index(path, content, with_own=False)
        if all(name in local.task_index for name in names):
            return local
    manager = _index(path, content, with_own=True)
    if unknown := [name for name in names if name not in manager.task_index]:
        raise InputError(_unknown_task(unknown[0], manager.all_tasks, include_path))
    return manager


@functools.lru_cache(maxsize=4)
def _index(path: str | None, content: str, with_own: bool) -> lm_eval.tasks.TaskManager:
    """What tasks there are. Kept, by the `content` of the files: lm-eval's own are thousands, and take 10 s to read."""
    manager = lm_eval.tasks.TaskManager(include_path=path, include_defaults=with_own)
    return _with_absolute_paths(manager, Path(path)) if path else manager


def _unknown_task(name: str, known: list[str], include_path: Path | None) -> str:
    where = f"lm-eval or {include_path}" if include_path else "lm-eval"
    close = difflib.get_close_matches(name, known, n=3)
    hint = f"did you mean {', '.join(close)}?" if close else "list the names with `lm-eval ls tasks`"
    return f"task {name!r}: no such task in {where}; {hint}"


def _check_yamls(include_path: Path) -> None:
    """lm-eval skips a YAML that it cannot read, and would then say that its task does not exist."""
    if not include_path.is_dir():
        raise InputError(f"{include_path}: no such directory of task YAMLs; check include_path")
    for path in sorted(include_path.rglob("*.yaml")):
        try:
            load_yaml(path, resolve_func=False)
        except Exception as e:  # YAML, encoding or include errors, as lm-eval raises them
            raise InputError(f"{path}: not a readable task YAML ({_first_line(e)}); fix or remove it") from e


def _with_absolute_paths(manager: lm_eval.tasks.TaskManager, include_path: Path) -> lm_eval.tasks.TaskManager:
    """Data files named relative to their YAML, where lm-eval would look in the working directory."""
    for entry in manager.task_index.values():
        if entry.yaml_path and entry.yaml_path.is_relative_to(include_path) and entry.kind is Kind.TASK:
            _make_paths_absolute_(entry)
    return manager


def _make_paths_absolute_(entry: Entry) -> None:
    assert entry.yaml_path
    assert entry.cfg
    files = (entry.cfg.get("dataset_kwargs") or {}).get("data_files")
    absolute = _absolute(files, entry.yaml_path.parent.resolve())
    if absolute != files:
        entry.cfg = load_yaml(entry.yaml_path)  # again, with the functions it names
        entry.cfg["dataset_kwargs"]["data_files"] = absolute
        entry.yaml_path = None  # lm-eval reads `cfg` where there is no file


def _absolute(files: Any, directory: Path) -> Any:
    if isinstance(files, dict):
        return {split: _absolute(value, directory) for split, value in files.items()}
    if isinstance(files, list):
        return [_absolute(value, directory) for value in files]
    if isinstance(files, str) and "://" not in files:
        return str(directory / files)
    return files


def _load(manager: lm_eval.tasks.TaskManager, name: str) -> Any:
    try:
        return manager.load([name])
    except ConnectionError as e:
        raise EnvironmentFault(
            f"task {name!r}: its data could not be fetched ({_first_line(e)}); go online once, or use include_path"
        ) from e
    except (FileNotFoundError, datasets.exceptions.DatasetsError) as e:
        raise DataError(f"task {name!r}: its data could not be read ({_first_line(e)}); check its YAML") from e
    except Exception as e:  # a task is a program of its author's; what it raises is not ours to know
        raise InputError(f"task {name!r} could not be loaded ({_first_line(e)}); check its YAML") from e


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


# running them


class _Model(HFLM):
    """HFLM whose requests move our bar, which is also where a run can be stopped."""

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        with self._tracked(requests):
            return super().loglikelihood(requests, disable_tqdm)

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        with self._tracked(requests):
            return super().loglikelihood_rolling(requests, disable_tqdm)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        with self._tracked(requests):
            return super().generate_until(requests, disable_tqdm)

    @contextlib.contextmanager
    def _tracked(self, requests: list[Any]) -> Iterator[None]:
        with progress.track("tasks", total=len(requests), unit="requests") as step:
            self.set_cache_hook(_StepPerRequest(step))
            yield


class _StepPerRequest:
    """Stands where lm-eval would cache answers: it is told of each finished request."""

    def __init__(self, step: progress.Step) -> None:
        self.step = step

    def add_partial(self, kind: str, request: Any, answer: Any) -> None:
        self.step()


def _plain(raw: Any) -> TaskResults:
    """lm-eval's results without configs, versions, paths and clocks."""
    results: TaskResults = {}
    for task, entries in raw["results"].items():
        for key, value in entries.items():
            metric, comma, filter_name = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, int | float | np.number):
                continue
            results.setdefault(task, {})[metric if filter_name == "none" else key] = {
                "value": _finite(value),
                "stderr": _finite(entries.get(f"{metric}_stderr,{filter_name}")),
                "n": int(entries["sample_len"]),
                "shots": raw["n-shot"].get(task),
            }
    return results


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float | np.number) and math.isfinite(value) else None


class _Truncations(logging.Handler):
    """Counts the one thing lm-eval logs that changes results."""

    count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.count += "Truncating" in record.getMessage()


@contextlib.contextmanager
def _quiet() -> Iterator[_Truncations]:
    """No bars, prints, log lines or worker processes of libraries in this block."""
    truncations = _Truncations()
    with contextlib.ExitStack() as stack:
        for name in ("lm_eval", "datasets", "huggingface_hub", "transformers"):
            stack.enter_context(_logs_only_to(truncations, logging.getLogger(name)))
        stack.enter_context(_no_bars())
        stack.enter_context(_environment("DISABLE_MULTIPROC", "1"))  # else metrics are bootstrapped by forked workers
        stack.enter_context(contextlib.redirect_stdout(text_io.StringIO()))
        stack.enter_context(warnings.catch_warnings(action="ignore"))
        yield truncations


@contextlib.contextmanager
def _logs_only_to(handler: logging.Handler, logger: logging.Logger) -> Iterator[None]:
    before = logger.handlers, logger.propagate, logger.level
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.handlers, logger.propagate = before[:2]
        logger.setLevel(before[2])


@contextlib.contextmanager
def _no_bars() -> Iterator[None]:
    """lm-eval switches its bars on by argument, so the default cannot switch them off."""
    original = tqdm.tqdm.__init__
    tqdm.tqdm.__init__ = lambda self, *args, **options: original(self, *args, **options | {"disable": True})
    try:
        yield
    finally:
        tqdm.tqdm.__init__ = original


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


@contextlib.contextmanager
def _seeded() -> Iterator[None]:
    """Some tasks shuffle their choices with the global generators; the caller's are left as they were."""
    before = random.getstate(), np.random.get_state()
    random.seed(0)
    np.random.seed(SEED)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
