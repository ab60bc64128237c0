"""Available tasks and the origin of their data. Knows lm-eval's index and YAML; runs nothing.

A task is looked up in the user's directory, then among the tasks of the Minitron suite, and then among the thousands of
lm-eval, whose index takes ten seconds to read. Its data come from a local directory if there is one, else from the hub.
"""

import contextlib
import difflib
import functools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import lm_eval.tasks
from lm_eval.tasks._index import Entry
from lm_eval.tasks._yaml_loader import load_yaml

from minitron_cli import progress
from minitron_cli.environment_errors import is_of_environment
from minitron_cli.errors import DataError, EnvironmentFault, InputError, MinitronError
from minitron_cli.evaluate import task_code
from minitron_cli.evaluate.config import SUITES, Task
from minitron_cli.evaluate.lm_eval_logging import SEED, quiet, seeded
from minitron_cli.evaluate.local_data import described, with_absolute_paths, with_local_data
from minitron_cli.evaluate.task_files import fingerprint
from minitron_cli.results.evaluation import OWN_TASKS, TASK_DATA

SUITE_TASKS = Path(__file__).parent / "suite"
LM_EVAL_TASKS = Path(lm_eval.tasks.__file__).parent
SUITE_DIRECTORIES = {
    "winogrande": LM_EVAL_TASKS / "winogrande",
    "arc_challenge": LM_EVAL_TASKS / "arc",
    "mmlu": LM_EVAL_TASKS / "mmlu" / "default",
    "hellaswag": LM_EVAL_TASKS / "hellaswag",
    "gsm8k": LM_EVAL_TASKS / "gsm8k",
    "truthfulqa_mc2": LM_EVAL_TASKS / "truthfulqa",
    "xlsum_en": SUITE_TASKS,
    "mbpp": SUITE_TASKS,
    "humaneval": SUITE_TASKS,
}
"""Directory in which each task of the suite is defined. Tasks in SUITE_TASKS replace lm-eval's of the same name."""
TRUSTED = (LM_EVAL_TASKS, SUITE_TASKS)
"""Directories whose tasks may name code of theirs."""
assert {task.name for tasks in SUITES.values() for task in tasks} <= SUITE_DIRECTORIES.keys()


@dataclass(frozen=True)
class TaskLocations:
    """Directories that are searched before lm-eval's own tasks and the hub."""

    tasks: Path | None = None
    """Directory of task YAMLs."""
    data: Path | None = None
    """Directory with one directory of data per task; other tasks' data are downloaded."""

    def fingerprints(self, tasks: Sequence[Task]) -> dict[str, str]:
        """Fingerprints of the YAMLs and of the tasks' local data."""
        found = {OWN_TASKS: fingerprint(self.tasks)} if self.tasks else {}
        return found | {f"{TASK_DATA} {path.name}": fingerprint(path) for path in self._local(tasks)}

    def given(self, tasks: Sequence[Task]) -> dict[str, dict[str, str]]:
        """Settings that name these directories, by the fingerprint of each, for `Context.record`."""
        found = {fingerprint(path): {"task_data": str(self.data)} for path in self._local(tasks)}
        return found | ({fingerprint(self.tasks): {"include_path": str(self.tasks)}} if self.tasks else {})

    def _local(self, tasks: Sequence[Task]) -> list[Path]:
        """Directories with the tasks' local data."""
        return [self.data / task.name for task in tasks if self.data and (self.data / task.name).is_dir()]


DEFAULT_LOCATIONS = TaskLocations()


@dataclass(frozen=True)
class TaskSet:
    """Loaded tasks in the form that lm-eval takes."""

    task_dict: dict[str, dict[str, Any]] = field(default_factory=lambda: {"tasks": {}, "groups": {}, "group_map": {}})
    items: dict[str, list[int]] = field(default_factory=dict)
    """Task -> items to ask, for tasks with a limit; lm-eval has one limit for all tasks."""
    documents: dict[str, str] = field(default_factory=dict)
    """Task -> column that identifies the document of an item."""


class Forecast(NamedTuple):
    """Description of a task before it is run."""

    task: str
    shots: int
    items: str
    metrics: str
    data: str
    note: str


def load_tasks(
    tasks: Sequence[Task], locations: TaskLocations = DEFAULT_LOCATIONS, *, allow_code: bool = False
) -> TaskSet:
    """Tasks with their shots and limits. InputError for an unknown task, or one that runs code without `allow_code`."""
    chosen = TaskSet()
    with quiet(), seeded(), task_code.templates(allow_code=allow_code):
        manager = _manager(tasks, locations, allow_code=allow_code)
        for task in tasks:
            if not allow_code:
                task_code.refuse_model_code(manager.task_index, task.name)
            local = with_local_data(with_absolute_paths(manager, task, locations.tasks), task, locations.data)
            _add_(chosen, task, _load(local, task.name))
    return chosen


def forecast(
    tasks: Sequence[Task], locations: TaskLocations = DEFAULT_LOCATIONS, *, allow_code: bool = False
) -> list[Forecast]:
    """Descriptions of the tasks from their YAMLs; downloads no data and runs no code.

    InputError for an unknown task, or one that names code without `allow_code`.
    """
    with quiet():
        manager = _manager(tasks, locations, allow_code=allow_code)
        return [_forecast(_unloaded(manager, task, locations).task_index, task) for task in tasks]


def _unloaded(manager: lm_eval.tasks.TaskManager, task: Task, locations: TaskLocations) -> lm_eval.tasks.TaskManager:
    """Task manager for a description of a task: the functions that it names are not imported."""
    near = with_absolute_paths(manager, task, locations.tasks, imports=False)
    return with_local_data(near, task, locations.data, imports=False)


def _add_(chosen: TaskSet, task: Task, loaded: Any) -> None:
    for name, member in loaded["tasks"].items():
        if name in chosen.task_dict["tasks"]:
            raise InputError(f"task {name!r} is requested twice, by name or as part of a group; name it once")
        _set_shots_(member, task.num_fewshot)
        if task.limit is not None:
            chosen.items[name] = list(range(_item_count(task.limit, len(member.eval_docs))))
        if task.document is not None:
            chosen.documents[name] = task.document
    for kind, entries in chosen.task_dict.items():
        entries.update(loaded[kind])


def _item_count(limit: int | float, total: int) -> int:
    return min(total, math.ceil(limit * total) if limit < 1 else int(limit))


def _set_shots_(task: Any, num_fewshot: int | None) -> None:
    """Set the requested number of shots, else keep the task's own. A task fixed at 0 stays at 0, as in lm-eval."""
    own = task.get_config("num_fewshot")
    if own == 0 and num_fewshot:
        progress.warn_once(
            f"task {task.task_name} is defined without examples; num_fewshot={num_fewshot} has no effect"
        )
    elif num_fewshot is not None:
        task.set_config(key="num_fewshot", value=num_fewshot)
    shots, examples = task.get_config("num_fewshot") or 0, len(getattr(getattr(task, "sampler", None), "df", ()))
    if shots > examples:
        raise DataError(
            f"task {task.task_name!r} needs {shots} solved examples and its data have {examples}; "
            "add examples, or request fewer with NAME:SHOTS"
        )
    task.set_fewshot_seed(seed=SEED)


# The index


def _manager(tasks: Sequence[Task], locations: TaskLocations, *, allow_code: bool) -> lm_eval.tasks.TaskManager:
    """Index of all tasks that are asked for. InputError if one is unknown, or names code without `allow_code`."""
    names = [task.name for task in tasks]
    manager = _index_of(names, locations.tasks)
    if not allow_code:
        for name in names:
            task_code.refuse_code(manager.task_index, name, TRUSTED)
    return manager


def _index_of(names: Sequence[str], own: Path | None) -> lm_eval.tasks.TaskManager:
    path, content = None, ""
    if own is not None:
        _check_yamls(own)
        path, content = str(own.resolve()), fingerprint(own)
    near = tuple(sorted({str(SUITE_DIRECTORIES[name]) for name in names if name in SUITE_DIRECTORIES}))
    manager = _index(path, content, near)
    if all(name in manager.task_index and (name in SUITE_DIRECTORIES or _is_in(manager, name, path)) for name in names):
        return manager
    manager = _index(path, content, (str(LM_EVAL_TASKS), str(SUITE_TASKS)))
    if unknown := [name for name in names if name not in manager.task_index]:
        raise InputError(_unknown_task(unknown[0], manager.all_tasks, own))
    return manager


def _is_in(manager: lm_eval.tasks.TaskManager, name: str, path: str | None) -> bool:
    """Whether a task is defined in the user's directory. Tags that a suite directory also defines may be partial."""
    return path is not None and name in _index(path, fingerprint(Path(path)), ()).task_index


@functools.lru_cache(maxsize=8)
def _index(path: str | None, content: str, others: tuple[str, ...]) -> lm_eval.tasks.TaskManager:
    """Index of the tasks in a directory and in others; cached by the `content` fingerprint of the files."""
    return lm_eval.tasks.TaskManager(include_path=[*others, *([path] if path else [])], include_defaults=False)


def _unknown_task(name: str, known: list[str], own: Path | None) -> str:
    where = f"lm-eval or {own}" if own else "lm-eval"
    close = difflib.get_close_matches(name, known, n=3)
    hint = f"did you mean {', '.join(close)}?" if close else "list the names with `lm-eval ls tasks`"
    return f"task {name!r}: no such task in {where}; {hint}"


def _check_yamls(own: Path) -> None:
    """Raise InputError for an unreadable YAML, which lm-eval would skip and then report its task as unknown."""
    if not own.is_dir():
        raise InputError(f"{own}: no such directory of task YAMLs; check include_path")
    for path in sorted(own.rglob("*.yaml")):
        try:
            load_yaml(path, resolve_func=False)
        except Exception as e:  # YAML, encoding or include errors, as lm-eval raises them
            raise InputError(f"{path}: not a readable task YAML ({_first_line(e)}); fix or remove it") from e


def _load(manager: lm_eval.tasks.TaskManager, name: str) -> Any:
    try:
        return manager.load([name])
    except ConnectionError as e:
        raise EnvironmentFault(
            f"task {name!r}: its data could not be downloaded ({_first_line(e)}); go online once; minitron eval "
            "also reads it from --task-data"
        ) from e
    except (FileNotFoundError, datasets.exceptions.DatasetsError) as e:
        raise DataError(f"task {name!r}: its data could not be read ({_first_line(e)}); check its YAML") from e
    except Exception as e:  # a task can run any code, and raise anything
        if is_of_environment(e):
            raise
        raise InputError(f"task {name!r} could not be loaded ({_first_line(e)}); check its YAML and its data") from e


@contextlib.contextmanager
def refusing_broken_items(tasks: Sequence[Task], own: Path | None) -> Iterator[None]:
    """Turn what lm-eval raises over the items of tasks in the directory `own` into InputError."""
    try:
        yield
    except Exception as e:  # an item can have any content, and a task's code raise anything
        if own is None or isinstance(e, MinitronError) or is_of_environment(e):
            raise
        names = ", ".join(task.name for task in tasks)
        raise InputError(
            f"{names}: an item could not be asked or scored ({_first_line(e)}); check the tasks' YAML and data"
        ) from e


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


# Forecast


def _forecast(index: Mapping[str, Entry], task: Task) -> Forecast:
    leaves = [leaf.cfg for leaf in described(index, task.name)]
    if not leaves:
        raise InputError(f"task {task.name!r} is a group without a task that is known; check its YAML")
    cfg = leaves[0]
    own = cfg.get("num_fewshot")
    shots = own if own == 0 or task.num_fewshot is None else task.num_fewshot
    return Forecast(
        task.name,
        shots or 0,
        _items(task.limit) + (f", {cfg['repeats']} answers each" if cfg.get("repeats", 1) > 1 else ""),
        ", ".join(_metrics(cfg)),
        _source(leaves),
        "runs code that the model writes" if cfg.get("unsafe_code") else "",
    )


def _items(limit: int | float | None) -> str:
    if limit is None:
        return "all"
    return f"first {100 * limit:.3g}%" if limit < 1 else f"first {limit:,}"


def _metrics(cfg: Mapping[str, Any]) -> Iterator[str]:
    """Names of the metrics in the results. A function is given in the YAML by its path."""
    filters = [f["name"] for f in cfg.get("filter_list") or [{"name": "none"}]]
    for metric in cfg.get("metric_list") or []:
        name = str(getattr(metric["metric"], "__name__", metric["metric"])).rpartition(".")[2]
        yield from (name if f == "none" else f"{name},{f}" for f in filters)


def _source(leaves: Sequence[Mapping[str, Any]]) -> str:
    locations = sorted({_place(cfg) for cfg in leaves})
    parts = f" ({len(leaves)} parts)" if len(leaves) > 1 else ""
    return ", ".join(locations) + parts


def _place(cfg: Mapping[str, Any]) -> str:
    files = (cfg.get("dataset_kwargs") or {}).get("data_files")
    if not files:
        return f"the hub: {cfg.get('dataset_path')}"
    first = next(_each(files))
    return f"the hub: {first.removeprefix('hf://').partition('@')[0]}" if "://" in first else str(Path(first).parent)


def _each(files: Any) -> Iterator[str]:
    values: Iterable[Any] = files.values() if isinstance(files, dict) else files if isinstance(files, list) else ()
    yield from (inner for value in values for inner in _each(value))
    if isinstance(files, str):
        yield files
