"""Datasets of the Hugging Face Hub: found, downloaded and cached by the `datasets` library."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from minitron_cli import stopping
from minitron_cli.canonical_json import digest
from minitron_cli.data.files import hashed, total_bytes
from minitron_cli.data.rows import Columns, Row, first_line, row_of
from minitron_cli.data.tables import BATCH_ROWS, table_rows, without_nulls
from minitron_cli.errors import DataError, EnvironmentFault

if TYPE_CHECKING:
    import datasets

ANSWER_SECONDS = 5.0


@lru_cache(maxsize=8)
def load(name: str, config_name: str | None, split: str, revision: str | None) -> "datasets.Dataset":
    """The dataset, memory-mapped from the library's cache and downloaded first if necessary.

    DataError if it does not exist or is not readable. EnvironmentFault without a network, at once: the library alone
    would retry for half a minute. With HF_HUB_OFFLINE set only the cache is used.
    """
    import datasets
    from huggingface_hub import is_offline_mode

    with _failure_named(name):
        dataset = datasets.load_dataset(name, config_name, split=split, revision=_commit(name, revision))
    if revision and is_offline_mode():
        _require_revision(dataset, name, revision)
    return dataset


@lru_cache(maxsize=8)
def stream(
    name: str, config_name: str | None, split: str, revision: str | None
) -> tuple["datasets.IterableDataset", str]:
    """The dataset, to be downloaded as it is read, and its commit (of a local directory: a hash of its files)."""
    import datasets

    with _failure_named(name):
        commit = _commit(name, revision)
        dataset = datasets.load_dataset(name, config_name, split=split, revision=commit, streaming=True)
    local = sorted(path for path in Path(name).rglob("*") if path.is_file()) if Path(name).is_dir() else []
    return dataset, commit or digest(hashed(local))


def first_columns(dataset: "datasets.IterableDataset", where: str) -> Sequence[str]:
    """Names of the columns of the first row, which is downloaded."""
    return next((row.others for row in streamed_rows(dataset, Columns(), where, 1)), ())


def streamed_rows(dataset: "datasets.IterableDataset", columns: Columns, where: str, count: int) -> Iterator[Row]:
    """First `count` rows, downloaded as they are requested."""
    records = islice(iter(dataset), count)
    number = 0
    while True:
        with _failure_named(where.removeprefix("hub dataset ")):
            record = next(records, None)
        if record is None:
            return
        row = row_of(record, columns, f"{where}: row {number}", 0)
        values = tuple(map(without_nulls, row.values))  # the library reads rows as tables
        yield row._replace(values=values, size_bytes=sum(len(str(value)) for value in values))
        number += 1


def cached_files(dataset: "datasets.Dataset") -> list[Path]:
    """Arrow files that hold the dataset."""
    return [Path(file["filename"]) for file in dataset.cache_files]


def identity(dataset: "datasets.Dataset") -> list[str]:
    """Commit that the dataset was made from, or hashes of its files if it is not from the hub."""
    commits = _commits(dataset)
    return commits if all(re.fullmatch("[0-9a-f]{40}", commit) for commit in commits) else hashed(cached_files(dataset))


def rows(dataset: "datasets.Dataset", columns: Columns, where: str) -> Iterator[Row]:
    """Rows of some columns of the dataset; `where` begins their names in messages."""
    present = [name for name in (*columns.required, *columns.optional) if name in dataset.column_names]
    batches = dataset.select_columns(present).with_format("arrow").iter(BATCH_ROWS)
    size_bytes = total_bytes(cached_files(dataset))
    return table_rows(batches, columns, where, len(dataset), size_bytes, dataset.column_names)


def _commit(name: str, revision: str | None) -> str | None:
    """Commit that `revision` names now; `revision` itself offline and for local directories."""
    from huggingface_hub import HfApi, is_offline_mode

    if is_offline_mode() or Path(name).is_dir():
        return revision
    return HfApi().dataset_info(name, revision=revision, timeout=ANSWER_SECONDS).sha


def _commits(dataset: "datasets.Dataset") -> list[str]:
    """Names of the directories that hold the dataset; the library names them after the commit."""
    return sorted({path.parent.name for path in cached_files(dataset)})


def _require_revision(dataset: "datasets.Dataset", name: str, revision: str) -> None:
    """EnvironmentFault if the dataset has another revision: offline, the library takes any cached commit."""
    commits = _commits(dataset)
    if commits != [revision]:
        raise EnvironmentFault(
            f"hub dataset {name}: revision {revision} is not available offline; the cache holds {', '.join(commits)}; "
            "name that as the revision, or unset HF_HUB_OFFLINE"
        )


@contextmanager
def _failure_named(name: str) -> Iterator[None]:
    """Turn the libraries' errors into DataError and EnvironmentFault; a full disk and the like are passed on.

    A stop request interrupts the context at any point.
    """
    from datasets.exceptions import DatasetsError
    from huggingface_hub import errors

    try:
        with stopping.interruptible():
            yield
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, DatasetsError, ValueError, RuntimeError) as e:
        if isinstance(e.__cause__, OSError) and e.__cause__.errno:
            raise e.__cause__ from e
        raise DataError(
            f"hub dataset {name}: {_reason(e)}; check name, config_name, split and revision, "
            "and log in with `hf auth login` if it is gated or private"
        ) from e
    except (errors.HTTPError, ConnectionError, TimeoutError) as e:  # type: ignore[attr-defined]  # httpx's or httpx2's
        raise EnvironmentFault(
            f"hub dataset {name}: {_reason(e)}; download it once with a network and HF_HUB_OFFLINE unset, "
            "or name local files instead"
        ) from e


def _reason(error: Exception) -> str:
    from huggingface_hub import errors

    for kind, reason in (
        (errors.GatedRepoError, "access to it is gated"),
        (errors.RepositoryNotFoundError, "there is no such dataset"),
        (errors.RevisionNotFoundError, "there is no such revision"),
    ):
        if isinstance(error, kind):
            return reason
    return first_line(error).rstrip(".")
