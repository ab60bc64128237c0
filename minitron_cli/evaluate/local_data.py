"""Local data of lm-eval tasks: beside their YAML, in the hub's directory layout, or one file per split."""

import copy
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import lm_eval.tasks
from lm_eval.tasks._index import Entry, Kind
from lm_eval.tasks._yaml_loader import load_yaml

from minitron_cli import progress
from minitron_cli.errors import DataError
from minitron_cli.evaluate.config import Task

SPLITS = ("test_split", "validation_split", "training_split", "fewshot_split")
SUFFIXES = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}

Index = dict[str, Entry]


def with_absolute_paths(
    manager: lm_eval.tasks.TaskManager, task: Task, own: Path | None, *, imports: bool = True
) -> lm_eval.tasks.TaskManager:
    """Task manager whose `task` finds data files beside its YAML in `own`; lm-eval looks in the working directory.

    Functions that the YAML names are imported, unless `imports` is false.
    """
    if own is None:
        return manager
    index = _copied(manager)
    for name in leaves_of(index, task.name):
        path = index[name].yaml_path
        if path and path.is_relative_to(own.resolve()):
            _make_paths_absolute_(index[name], path, imports)
    return _with_index(manager, index)


def with_local_data(
    manager: lm_eval.tasks.TaskManager, task: Task, data: Path | None, *, imports: bool = True
) -> lm_eval.tasks.TaskManager:
    """Task manager whose `task` reads local files, if `data` has a directory for it; else the same manager.

    Functions that the YAML names are imported, unless `imports` is false.
    """
    if data is None or not (data / task.name).is_dir():
        return manager
    index = _copied(manager)
    leaves = leaves_of(index, task.name)
    found = {name: files for name in leaves if (files := _local_files(data / task.name, index[name]))}
    if not leaves:
        raise DataError(
            f"{data / task.name}: task {task.name!r} defines its tasks itself, which read no local data; give "
            "each a YAML"
        )
    if not found:
        raise DataError(f"{data / task.name} has no data of task {task.name!r}: {_expected(index[leaves[0]])}")
    if len(found) < len(leaves):
        progress.warn_once(
            f"{data / task.name} has data of {len(found)} of the {len(leaves)} parts of {task.name}; only those"
        )
        _drop_(index, set(leaves) - found.keys())
    for name, files in found.items():
        _read_locally_(index[name], files, task.num_fewshot, data / task.name, imports)
    return _with_index(manager, index)


def _copied(manager: lm_eval.tasks.TaskManager) -> Index:
    return {name: dataclasses.replace(e, tags=set(e.tags)) for name, e in manager.task_index.items()}


def _with_index(manager: lm_eval.tasks.TaskManager, index: Index) -> lm_eval.tasks.TaskManager:
    local = copy.copy(manager)
    local._index = index
    return local


class Leaf(NamedTuple):
    """A task that is no group."""

    name: str | None
    """Name in the index; None if it is defined in a group."""
    cfg: Mapping[str, Any]
    """Its settings, with the changes that its groups make."""


def leaves_of(index: Mapping[str, Entry], name: str) -> list[str]:
    """Names of the tasks in a task, group or tag; those that a group defines itself have none."""
    return list(dict.fromkeys(leaf.name for leaf in described(index, name) if leaf.name is not None))


def described(index: Mapping[str, Entry], name: str) -> list[Leaf]:
    """The tasks in a task, group or tag, as far as they are known."""
    entry = index.get(name)
    if entry is None:
        return []
    if entry.kind is Kind.TAG:
        return [leaf for member in sorted(entry.tags) for leaf in described(index, member)]
    if entry.kind is Kind.GROUP:
        return _of_children(index, (entry.cfg or {}).get("task"))
    return [Leaf(name, entry.cfg or {})]


def _of_children(index: Mapping[str, Entry], children: Any) -> list[Leaf]:
    return [leaf for child in children or () for leaf in _of_child(index, child)] if isinstance(children, list) else []


def _of_child(index: Mapping[str, Entry], child: Any) -> list[Leaf]:
    """The tasks in a group's member: a name, a name with changes, or a task or group that is defined there."""
    if isinstance(child, str):
        return described(index, child)
    if not isinstance(child, dict):
        return []
    name = child.get("group", child.get("task"))
    changes = {key: value for key, value in child.items() if key not in ("group", "task")}
    if isinstance(name, str) and name in index:
        known = described(index, name)
    else:
        known = _of_children(index, child.get("task")) if "group" in child else [Leaf(None, {})]
    return [Leaf(leaf.name, {**leaf.cfg, **changes}) for leaf in known]


def _local_files(directory: Path, entry: Entry) -> dict[str, list[str]]:
    """Split -> files, for the splits that a task reads."""
    cfg = entry.cfg or {}
    inner = str(cfg.get("dataset_name") or "data")
    locations = [directory / entry.name, directory / inner, directory / "data", directory]
    is_member = entry.name != directory.name  # files beside the members' directories belong to no member
    for place in locations[: -2 if is_member else None]:
        if files := {split: paths for split in _splits(cfg) if (paths := list(_files_of(place, split)))}:
            return files
    return {}


def _splits(cfg: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys(str(cfg[key]) for key in SPLITS if cfg.get(key)))


def _files_of(place: Path, split: str) -> Iterator[str]:
    """Paths of the file or the shards of a split."""
    for suffix in SUFFIXES:
        for pattern in (f"{split}{suffix}", f"{split}-*{suffix}", f"{split}/*{suffix}"):
            if paths := sorted(place.glob(pattern)):
                yield from map(str, paths)
                return


def _expected(entry: Entry) -> str:
    splits = ", ".join(f"{split}.jsonl" for split in _splits(entry.cfg or {}))
    inner = (entry.cfg or {}).get("dataset_name")
    return f"put {splits} (or .parquet) there" + (f", or into {inner}/ in it" if inner else "")


def _drop_(index: Index, absent: set[str]) -> None:
    """Remove tasks from their tags and groups, and groups that become empty from theirs."""
    for entry in index.values():
        entry.tags -= absent
    for entry in index.values():
        if entry.kind is Kind.GROUP and entry.cfg:
            children = [c for c in entry.cfg.get("task") or [] if {leaf.name for leaf in _of_child(index, c)} - absent]
            entry.cfg, entry.yaml_path = {**entry.cfg, "task": children}, None


def _make_paths_absolute_(entry: Entry, path: Path, imports: bool) -> None:
    files = ((entry.cfg or {}).get("dataset_kwargs") or {}).get("data_files")
    absolute = _absolute(files, path.parent.resolve())
    if absolute != files:
        entry.cfg = load_yaml(path, resolve_func=imports)
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


def _read_locally_(
    entry: Entry, files: dict[str, list[str]], shots: int | None, directory: Path, imports: bool
) -> None:
    assert entry.yaml_path or entry.cfg
    cfg = dict(load_yaml(entry.yaml_path, resolve_func=imports) if entry.yaml_path else entry.cfg)
    examples = cfg.get("fewshot_split") or cfg.get("training_split")
    asked = cfg.get("test_split") or cfg.get("validation_split")
    needed = [asked, *([examples] if shots or (shots is None and cfg.get("num_fewshot")) else [])]
    if absent := [split for split in needed if split and split not in files]:
        raise DataError(
            f"task {entry.name!r}: {directory} has no {absent[0]} split, which it reads: {_expected(entry)}"
        )
    kinds = {SUFFIXES[Path(path).suffix] for paths in files.values() for path in paths}
    if len(kinds) > 1:
        raise DataError(f"task {entry.name!r}: {directory} mixes JSON and Parquet; keep one of them")
    cfg |= {key: None for key in SPLITS if cfg.get(key) not in files}
    cfg |= {"dataset_path": kinds.pop(), "dataset_name": None, "dataset_kwargs": {"data_files": files}}
    entry.cfg, entry.yaml_path = cfg, None
