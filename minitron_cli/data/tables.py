"""Rows of Parquet and Arrow tables. A damaged or hostile file is found out before its values are read."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minitron_cli.data.rows import Columns, Row, empty, first_line, require_columns
from minitron_cli.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

BATCH_ROWS = 256


def parquet_rows(path: Path, columns: Columns) -> Iterator[Row]:
    """Rows of a Parquet file, a few at a time."""
    import pyarrow.parquet as pq

    with damage_named(path, "Parquet"), pq.ParquetFile(path) as file:
        batches = file.iter_batches(BATCH_ROWS, columns=_present(columns, file.schema_arrow.names, str(path)))
        yield from table_rows(
            batches, columns, str(path), file.metadata.num_rows, path.stat().st_size, file.schema_arrow.names
        )


def arrow_rows(path: Path, columns: Columns) -> Iterator[Row]:
    """Rows of an Arrow file or stream, mapped from disk."""
    import pyarrow as pa

    with damage_named(path, "Arrow"), pa.memory_map(str(path)) as file:
        table = _arrow_reader(file).read_all()  # still on disk
        batches = table.select(_present(columns, table.column_names, str(path))).to_batches(BATCH_ROWS)
        yield from table_rows(batches, columns, str(path), table.num_rows, path.stat().st_size, table.column_names)


def column_names(path: Path) -> list[str]:
    """Names of the table's columns."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if path.suffix.lower() == ".parquet":
        with damage_named(path, "Parquet"):
            return list(pq.read_schema(path).names)
    with damage_named(path, "Arrow"), pa.memory_map(str(path)) as file:
        return list(_arrow_reader(file).schema.names)


def table_rows(
    batches: "Iterable[pa.RecordBatch | pa.Table]",
    columns: Columns,
    where: str,
    count: int,
    size_bytes: int,
    names: Iterable[str],
) -> Iterator[Row]:
    """Rows of a table's columns, which are all of `names`; a list of numbers is a numpy array."""
    if not count:
        raise empty(where)
    number, others = 0, columns.others(names)
    for batch in batches:
        batch.validate(full=True)  # offsets and sizes in a damaged file point anywhere
        for values in zip(*(_values(batch, name) for name in (*columns.required, *columns.optional)), strict=True):
            share = (number + 1) * size_bytes // count - number * size_bytes // count
            yield Row(values, f"{where}: row {number}", share, others)
            number += 1


def _present(columns: Columns, names: list[str], where: str) -> list[str]:
    """Columns to read that the table has. DataError if it lacks a required one."""
    require_columns(columns, names, where)
    return [*columns.required, *(name for name in columns.optional if name in names)]


def _arrow_reader(file: Any) -> Any:
    import pyarrow as pa

    is_file_format = file.read(6) == b"ARROW1"
    file.seek(0)
    return (pa.ipc.open_file if is_file_format else pa.ipc.open_stream)(file)


def _values(batch: "pa.RecordBatch | pa.Table", name: str) -> list[Any]:
    import pyarrow.types as types

    if name not in batch.schema.names:
        return [None] * batch.num_rows
    array = batch.column(name)
    kind = array.type
    is_list = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    of = kind.value_type if is_list else kind
    if not (types.is_integer(of) or types.is_floating(of) or types.is_boolean(of) or types.is_null(of)):
        return [without_nulls(value) for value in array.to_pylist()]
    if not is_list:
        return array.to_pylist()
    return [scalar.values.to_numpy(zero_copy_only=False) if scalar.is_valid else None for scalar in array]


def without_nulls(value: Any) -> Any:
    """The value without the fields that are null: a table gives every object the fields of all others."""
    if isinstance(value, dict):
        return {name: without_nulls(field) for name, field in value.items() if field is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


@contextmanager
def damage_named(path: Path, format: str) -> Iterator[None]:
    """Turn Arrow's errors about a file's content into DataError; those of a failing disk are passed on."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, UnicodeDecodeError, OSError, OverflowError) as e:
        if isinstance(e, OSError) and e.errno:
            raise
        raise DataError(f"{path}: is damaged or no {format} file ({first_line(e)}); write it again") from e
