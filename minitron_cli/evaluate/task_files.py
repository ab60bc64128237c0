"""Files that task YAMLs and their data consist of. Reads no item and runs no code."""

import os
from collections.abc import Iterator
from contextlib import suppress
from glob import glob
from pathlib import Path
from typing import Any

from lm_eval.tasks._yaml_loader import load_yaml

from minitron_cli import canonical_json, io


def fingerprint(directory: Path) -> str:
    """Hash of every file under a directory, and of what YAMLs in it name outside it, by relative name."""
    directory = directory.resolve()
    inside = set(_under(directory))
    named = {path for yaml in inside if yaml.suffix == ".yaml" for path in _named_by(yaml)}
    return canonical_json.digest({os.path.relpath(p, directory): io.file_record(p).sha256 for p in inside | named})


def _under(directory: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """Files in a directory at any depth, also where a link leads to; a link to a directory above is left out."""
    here = directory.resolve()
    for path in directory.iterdir():
        if path.name == "__pycache__" or here in above:
            continue
        if path.is_dir():
            yield from _under(path, (*above, here))
        elif path.is_file():
            yield path


def _named_by(yaml: Path) -> Iterator[Path]:
    """Files that a task's YAML includes, that its data are in, and that its functions are in.

    None of a YAML that cannot be read, which is refused where tasks are loaded.
    """
    with suppress(Exception):  # YAML, encoding or include errors, as lm-eval raises them
        config = load_yaml(yaml, resolve_func=False)
        yield from _included(yaml)
        yield from _code(config)
        yield from _data((config.get("dataset_kwargs") or {}).get("data_files"), yaml.parent)


def _included(yaml: Path) -> Iterator[Path]:
    names = load_yaml(yaml, resolve_func=False, recursive=False).get("include") or []
    for name in names if isinstance(names, list) else [names]:
        path = _normal(yaml.resolve().parent / name)
        yield path
        yield from _included(path)


def _code(value: Any) -> Iterator[Path]:
    """Files of the functions in a task's settings, which are paths of the form DIRECTORY/MODULE.FUNCTION."""
    for text in _texts(value):
        place, name = os.path.split(text)
        path = Path(place, name.rpartition(".")[0].replace(".", "/") + ".py")
        if path.is_absolute() and os.path.isfile(path):
            yield _normal(path)


def _data(value: Any, beside: Path) -> Iterator[Path]:
    """Local files of a task's data; their names may hold wildcards."""
    for text in _texts(value):
        name = str(beside / text)
        found = [] if "://" in text else [name] if os.path.isfile(name) else glob(name, recursive=True)
        yield from (_normal(Path(path)) for path in found if os.path.isfile(path))


def _texts(value: Any) -> Iterator[str]:
    values = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for inner in values:
        yield from _texts(inner)
    if isinstance(value, str):
        yield value


def _normal(path: Path) -> Path:
    """The path without `..`, so that files inside the directory are recognized."""
    return Path(os.path.normpath(path))
