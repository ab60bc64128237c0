"""Directories that `datasets.save_to_disk` wrote: which Arrow files they consist of. Knows no rows."""

import json
from pathlib import Path
from typing import Any

from minitron_cli.errors import DataError


def saved_files(directory: Path) -> list[Path]:
    """Arrow files of a saved dataset, or of the only split of a saved dictionary of datasets, in their order.

    DataError if the directory holds neither, several splits, or names a file outside.
    """
    if (directory / "dataset_dict.json").is_file():
        return saved_files(directory / _only_split(directory))
    if not (directory / "state.json").is_file():
        raise DataError(f"{directory}: is a directory; name the files in it, for example {directory / '**/*.jsonl'}")
    listed = _read(directory / "state.json", "_data_files")
    names = [entry.get("filename") if isinstance(entry, dict) else None for entry in listed]
    if not names or not all(isinstance(name, str) and name == Path(name).name for name in names):
        raise DataError(f"{directory / 'state.json'}: names no Arrow files of its directory; save the dataset again")
    return [directory / str(name) for name in names]


def _only_split(directory: Path) -> str:
    splits = _read(directory / "dataset_dict.json", "splits")
    if len(splits) != 1 or not isinstance(splits[0], str) or splits[0] != Path(splits[0]).name:
        listed = ", ".join(str(directory / str(split)) for split in splits) or "none"
        raise DataError(f"{directory}: holds several splits; name one of them: {listed}")
    return splits[0]


def _read(path: Path, key: str) -> list[Any]:
    """The list under a key of a JSON file."""
    try:
        value = json.loads(path.read_bytes())[key]
    except (ValueError, KeyError, TypeError, RecursionError):
        value = None
    if not isinstance(value, list):
        raise DataError(f"{path}: is damaged; save the dataset again")
    return value
