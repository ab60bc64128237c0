"""Available tasks and the origin of their data. Knows lm-eval's index and YAML; runs nothing.

A task is looked up in the user's directory, then among the tasks of the Minitron suite, and then among the thousands of
lm-eval, whose index takes ten seconds to read. Its data come from a local directory if there is one, else from the hub.
"""

import difflib
import functools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import lm_eval.tasks
from lm_eval.tasks._index import Entry, Kind
from lm_eval.tasks._yaml_loader import load_yaml

from minitron_cli import canonical_json, io, progress
from minitron_cli.environment_errors import is_of_environment
from minitron_cli.errors import DataError, EnvironmentFault, InputError
from minitron_cli.evaluate.config import SUITES, Task
from minitron_cli.evaluate.lm_eval_logging import SEED, quiet, seeded
from minitron_cli.evaluate.local_data import leaves_of, with_local_data

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
        found = {"tasks": fingerprint(self.tasks)} if self.tasks else {}
        local = [self.data / task.name for task in tasks if self.data and (self.data / task.name).is_dir()]
        return found | {f"task data {path.name}": fingerprint(path) for path in local}


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
    with quiet(), seeded():
        manager = _manager([task.name for task in tasks], locations.tasks)
        for task in tasks:
            if not allow_code:
                _refuse_unsafe_code(task.name, (manager.task_index[task.name].cfg or {}).get("unsafe_code"))
            _add_(chosen, task, _load(with_local_data(manager, task, locations.data), task.name), allow_code)
    return chosen


def forecast(tasks: Sequence[Task], locations: TaskLocations = DEFAULT_LOCATIONS) -> list[Forecast]:
    """Descriptions of the tasks from their YAMLs; downloads no data. InputError for an unknown task."""
    with quiet():
        manager = _manager([task.name for task in tasks], locations.tasks)
        return [_forecast(with_local_data(manager, task, locations.data).task_index, task) for task in tasks]


def fingerprint(directory: Path) -> str:
    """Hash of every file under a directory, by relative name."""
    files = sorted(path for path in directory.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return canonical_json.digest({str(path.relative_to(directory)): io.file_record(path).sha256 for path in files})


def _add_(chosen: TaskSet, task: Task, loaded: Any, allow_code: bool) -> None:
    for name, member in loaded["tasks"].items():
        if name in chosen.task_dict["tasks"]:
            raise InputError(f"task {name!r} is requested twice, by name or as part of a group; name it once")
        if not allow_code:
            _refuse_unsafe_code(name, getattr(member, "UNSAFE_CODE", False))
        _set_shots_(member, task.num_fewshot)
        if task.limit is not None:
            chosen.items[name] = list(range(_item_count(task.limit, len(member.eval_docs))))
        if task.document is not None:
            chosen.documents[name] = task.document
    for kind, entries in chosen.task_dict.items():
        entries.update(loaded[kind])


def _item_count(limit: int | float, total: int) -> int:
    return min(total, math.ceil(limit * total) if limit < 1 else int(limit))


def _refuse_unsafe_code(name: str, is_unsafe: Any) -> None:
    if is_unsafe:
        raise InputError(
            f"task {name!r} runs code that the model writes: leave it out, or add --allow-code-execution to "
            "`minitron eval` on a machine that holds nothing of value"
        )


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


def _manager(names: Sequence[str], own: Path | None) -> lm_eval.tasks.TaskManager:
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
    manager = lm_eval.tasks.TaskManager(include_path=[*others, *([path] if path else [])], include_defaults=False)
    return _with_absolute_paths(manager, Path(path)) if path else manager


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


def _with_absolute_paths(manager: lm_eval.tasks.TaskManager, own: Path) -> lm_eval.tasks.TaskManager:
    """Resolve data files relative to their YAML; lm-eval would resolve them in the working directory."""
    for entry in manager.task_index.values():
        if entry.yaml_path and entry.yaml_path.is_relative_to(own) and entry.kind is Kind.TASK:
            _make_paths_absolute_(entry)
    return manager


def _make_paths_absolute_(entry: Entry) -> None:
    assert entry.yaml_path
    assert entry.cfg
    files = (entry.cfg.get("dataset_kwargs") or {}).get("data_files")
    absolute = _absolute(files, entry.yaml_path.parent.resolve())
    if absolute != files:
        entry.cfg = load_yaml(entry.yaml_path)  # loaded again, to resolve the functions that it names
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
            f"task {name!r}: its data could not be downloaded ({_first_line(e)}); go online once or use --task-data"
        ) from e
    except (FileNotFoundError, datasets.exceptions.DatasetsError) as e:
        raise DataError(f"task {name!r}: its data could not be read ({_first_line(e)}); check its YAML") from e
    except Exception as e:  # a task can run any code, and raise anything
        if is_of_environment(e):
            raise
        raise InputError(f"task {name!r} could not be loaded ({_first_line(e)}); check its YAML and its data") from e


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


# Forecast


def _forecast(index: Mapping[str, Entry], task: Task) -> Forecast:
    leaves = [index[name].cfg or {} for name in leaves_of(index, task.name)]
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
    return f"first {limit:.0%}" if limit < 1 else f"first {limit:,}"


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
