import bz2
import gzip
import json
import lzma
import os
import random
import resource
from collections import Counter
from functools import partial
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from minitron_cli.data import files, opened
from minitron_cli.data.rows import Columns
from minitron_cli.data.sources import TextFiles, TokenIds
from minitron_cli.errors import DataError

TEXTS = ["one\ntwo", "drei ½ — 𝄞", "", "four\u2028still four\r\n"]


def write_table(path: Path, table: pa.Table) -> None:
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=2)
    elif path.name.startswith("stream"):
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=3)
    else:
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)


def read(*paths: Path | str, column: str = "text") -> list[str]:
    documents = list(TextFiles(paths=tuple(map(str, paths)), column=column).open().documents)
    return [document.content for document in documents]


def write_texts(path: Path) -> None:
    records = [{"id": i, "text": text} for i, text in enumerate(TEXTS)]
    if path.suffix in {".jsonl", ".ndjson"} or path.name == "lines.json":
        path.write_text("\n".join(json.dumps(record, ensure_ascii=False) for record in records) + "\n\n", newline="")
    elif path.suffix == ".json":
        path.write_text(json.dumps(records, indent=3))
    else:
        kind = pa.large_string() if path.suffix == ".parquet" else pa.string()  # pandas 3 writes large strings
        write_table(path, pa.table({"id": range(4), "text": pa.array(TEXTS, kind)}))


@pytest.mark.parametrize(
    "name", ["a.jsonl", "a.NDJSON", "lines.json", "list.json", "a.parquet", "stream.arrow", "file.arrow"]
)
def test_every_format_gives_the_same_documents_without_the_empty_ones(name, tmp_path):
    write_texts(tmp_path / name.lower())
    (tmp_path / name.lower()).rename(tmp_path / name)
    assert read(tmp_path / name) == [text for text in TEXTS if text]


def test_any_other_file_is_one_document_with_its_line_ends_kept(write):
    path = write("notes.md", "\ufeffone\r\ntwo\n".encode())
    assert read(path) == ["one\r\ntwo\n"]


def test_patterns_are_sorted_files_are_read_once_and_empty_ones_are_skipped(write, tmp_path):
    for name in ("b/2.txt", "b/10.txt", "a.txt", "z [1].txt"):
        write(name, name)
    write("b/empty.txt", "")
    expected = ["z [1].txt", "a.txt", "b/10.txt", "b/2.txt"]
    assert read(tmp_path / "z [1].txt", tmp_path / "**" / "*.txt", tmp_path / "a.txt") == expected


def test_sizes_of_the_documents_add_up_to_the_files(write, tmp_path):
    write_texts(tmp_path / "a.parquet")
    write("b.jsonl", '{"text": "x"}\n{"text": "yy"}\n')
    write("c.txt", "zzz")
    corpus = TextFiles(paths=(str(tmp_path / "*"),)).open()
    sizes = [document.size_bytes for document in corpus.documents]
    empty_row = 2  # documents that are skipped count for nothing
    table_bytes = (tmp_path / "a.parquet").stat().st_size
    assert corpus.size_bytes == table_bytes + 14 + 15 + 3
    assert corpus.size_bytes - sum(sizes) == (empty_row + 1) * table_bytes // 4 - empty_row * table_bytes // 4


def test_identity_follows_the_content_and_not_the_place(write):
    def identity(name: str, content: str) -> object:
        return TextFiles(paths=(str(write(name, content)),)).open().identity

    here = identity("here.txt", "same")
    assert identity("there/else.txt", "same") == here
    assert identity("here.txt", "sane") != here
    assert identity("here.jsonl", "same") != here  # it would be read in another way


BROKEN = {
    "empty.txt": (b"", "empty.txt: is empty; drop it"),
    "empty.jsonl": (b"", "empty.jsonl: is empty; drop it"),
    "list.json": (b" [ ]\n", "list.json: is empty; drop it"),
    "latin.txt": (b"one\ntw\xe9\n", r"latin.txt:2: is not UTF-8 .*; convert the file"),
    "latin.jsonl": (b'{"text": "a"}\n{"text": "\xe9"}\n', r"latin.jsonl:2: is not UTF-8 .*; convert the file"),
    "broken.jsonl": (b'{"text": "a"}\n\n{"text": \n', r"broken.jsonl:3: is not JSON \(Expecting value\); write one"),
    "deep.jsonl": (b"[" * 100_000, r"deep.jsonl:1: is not JSON \(nested too deeply\); write one object per line"),
    "pretty.json": (b'{\n "text": "a"\n}', r"pretty.json:1: is not JSON .*; write one object per line"),
    "cut.json": (b'[{"text": "a"},\n{"text": "b"}\n', r"cut.json:3: is not JSON \(',' is missing\); write a list"),
    "value.json": (b'[{"text": "a"},\n{"text": b}]', r"value.json:2: is not JSON \(Expecting value\); write a list"),
    "comma.json": (b'[{"text": "a"}\n{"text": "b"}]', r"comma.json:2: is not JSON \(',' is missing\); write a list"),
    "two.json": (b'[{"text": "a"}]\n[{"text": "b"}]', r"two.json:1: is not JSON \(more text after the list\)"),
    "array.jsonl": (b'["a"]\n', r"array.jsonl:1: holds list, not an object; write rows such as \{'text'"),
    "column.jsonl": (b'{"body": "a", "id": 1}\n', r"column.jsonl:1: there is no column 'text' but 'body', 'id'; set"),
    "null.jsonl": (b'{"text": "a"}\n{"text": null}', r"null.jsonl:2: column 'text' holds null, not text; drop or rep"),
    "int.json": (b'[{"text": "a"}, {"text": 3}]', r"int.json: item 1: column 'text' holds int, not text; drop or"),
    "half.jsonl": (
        b'{"text": "a\\ud800"}',
        r"half.jsonl:1: character 1 .* is half of a surrogate pair; drop or repair",
    ),
    "junk.parquet": (b"PAR1 no table PAR1", r"junk.parquet: is damaged or no Parquet file \(.*\); write it again"),
    "junk.arrow": (b"no table at all", r"junk.arrow: is damaged or no Arrow file \(.*\); write it again"),
    "empty.parquet": (b"", "empty.parquet: is empty; drop it"),
    "empty.csv": (b"", "empty.csv: is empty; drop it"),
    "cells.csv": (b"text,id\na,1\nb\n", r"cells.csv: row 1: has 1 cells and the first line 2; repair the row"),
    "quote.csv": (b'text\n"a"b\n', r"quote.csv:2: is no table of text \(.*\); write it again"),
    "column.tsv": (b"body\tid\na\t1\n", r"column.tsv: there is no column 'text' but 'body', 'id'; set"),
    "latin.csv": (b"text\n\xe9\n", r"latin.csv:2: is not UTF-8"),
    "packed.jsonl.gz": (b"\x1f\x8b", r"packed.jsonl.gz: is damaged or no .gz file \(.*\); write it again"),
    "packed.jsonl.zst": (b"no frame", r"packed.jsonl.zst: is damaged or no .zst file \(.*\); write it again"),
    "packed.txt.bz2": (b"no stream", r"packed.txt.bz2: is damaged or no .bz2 file \(.*\); write it again"),
    "packed.csv.xz": (b"no stream", r"packed.csv.xz: is damaged or no .xz file \(.*\); write it again"),
    "packed.parquet.gz": (b"\x1f\x8b", r"packed.parquet.gz: .parquet.gz files are not read; unpack it first"),
    "packed.zip": (b"PK", r"packed.zip: .zip files are not read; unpack it first"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_named_with_what_to_do(name, write):
    content, message = BROKEN[name]
    with pytest.raises(DataError, match=message) as caught:
        read(write(name, content))
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pa.array(["a", None]), r"row 1: column 'text' holds null, not text"),
        (pa.array([1, 2]), r"row 0: column 'text' holds int, not text"),
        (pa.array(["a"]).slice(0, 0), r"is empty; drop it"),
        (None, r"there is no column 'text' but 'id'; set column"),
    ],
)
@pytest.mark.parametrize("name", ["a.parquet", "stream.arrow", "file.arrow"])
def test_a_broken_table_is_named_with_what_to_do(name, column, message, tmp_path):
    table = pa.table({"id": pa.array([1])} if column is None else {"text": column})
    write_table(tmp_path / name, table)
    with pytest.raises(DataError, match=f"{name}: {message}"):
        read(tmp_path / name)


@pytest.mark.parametrize("name", ["a.parquet", "stream.arrow", "file.arrow"])
def test_a_truncated_table_is_damaged(name, tmp_path):
    path = tmp_path / name
    write_table(path, pa.table({"text": ["some text that is long enough"] * 1000}))
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(DataError, match=r"is damaged or no \w+ file \(.*\); write it again"):
        read(path)


def test_a_table_of_bytes_that_are_no_text_is_damaged(tmp_path):
    column = pa.array([b"good", b"\xff\xfe"]).view(pa.string())
    write_table(tmp_path / "a.parquet", pa.table({"text": column}))
    with pytest.raises(DataError, match=r"a.parquet: is damaged or no Parquet file \(.*UTF8"):
        read(tmp_path / "a.parquet")


def test_a_failing_disk_is_not_taken_for_a_damaged_file(tmp_path, monkeypatch):
    write_table(tmp_path / "a.parquet", pa.table({"text": ["a"]}))

    def fail(path):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(pq, "ParquetFile", fail)
    with pytest.raises(OSError, match="Input/output error"):
        read(tmp_path / "a.parquet")


def test_paths_that_lead_nowhere_are_named(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name, message in {
        "absent.txt": "there is no such file; correct the path",
        "*.jsonl": "no file matches the pattern; correct it",
        ".": r"is a directory; name the files in it, for example .*jsonl",
        "pipe": "is not a regular file",
    }.items():
        with pytest.raises(DataError, match=message):
            read(tmp_path / name)


def token_ids(path: Path, column: str = "input_ids") -> list[list[int]]:
    return [document.content.ids.tolist() for document in TokenIds(paths=(str(path),), column=column).open().documents]


@pytest.mark.parametrize("name", ["a.jsonl", "list.json", "a.parquet", "stream.arrow", "fixed.arrow"])
def test_token_ids_are_read_from_every_format(name, tmp_path, write):
    rows = [[1, 2], [3, 4]] if name == "fixed.arrow" else [[1, 2, 3], [], [70_000]]
    kind = pa.list_(pa.uint16(), 2) if name == "fixed.arrow" else pa.list_(pa.int32())
    if name.endswith(("json", "jsonl")):
        records = [json.dumps({"input_ids": row}) for row in rows]
        write(name, "\n".join(records) if name == "a.jsonl" else f"[{','.join(records)}]")
    else:
        write_table(tmp_path / name, pa.table({"input_ids": pa.array(rows, kind)}))
    assert token_ids(tmp_path / name) == [row for row in rows if row]


@pytest.mark.parametrize(
    "row", ["null", "3", '"abc"', "[1.5]", "[1, null]", "[[1], [2, 3]]", "[[1]]", "[true]", '["1"]']
)
def test_what_is_no_flat_list_of_whole_numbers_is_named(row, write):
    path = write("a.jsonl", f'{{"input_ids": [1]}}\n{{"input_ids": {row}}}\n')
    with pytest.raises(
        DataError, match=r"a.jsonl:2: column 'input_ids' is not a flat list of whole numbers; write one"
    ):
        token_ids(path)


def test_a_list_of_texts_in_a_table_is_a_list(tmp_path):
    """Such as tools that are each JSON text."""
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    write_table(tmp_path / "a.parquet", pa.table({"messages": [talk, talk], "tools": [['{"name": "x"}'], None]}))
    source = TextFiles(paths=(str(tmp_path / "a.parquet"),), format="chat")
    assert [document.content.tools for document in source.open().documents] == [('{"name": "x"}',), ()]


def test_null_among_the_ids_of_a_table_is_named(tmp_path):
    for rows in ([[1], None], [[1], [2, None]]):
        write_table(tmp_path / "a.parquet", pa.table({"input_ids": rows}))
        with pytest.raises(DataError, match=r"row 1: column 'input_ids' is not a flat list of whole numbers"):
            token_ids(tmp_path / "a.parquet")


def test_which_ids_count_may_be_said_in_a_column(write):
    path = write("a.jsonl", '{"input_ids": [5, 6, 7], "mask": [0, 1, 1]}\n{"input_ids": [8], "mask": [false]}\n')
    source = TokenIds(paths=(str(path),), counts_column="mask")
    contents = [document.content for document in source.open().documents]
    assert [content.loss_mask.tolist() for content in contents] == [[False, True, True], [False]]
    assert source.open().has_loss_mask
    assert source.open().identity != TokenIds(paths=(str(path),)).open().identity


@pytest.mark.parametrize("mask", ["[0, 1]", "[0, 1, 2]", "null", "[0, 1, 0.5]"])
def test_a_column_that_does_not_say_what_counts_is_named(mask, write):
    path = write("a.jsonl", f'{{"input_ids": [5, 6, 7], "mask": {mask}}}\n')
    with pytest.raises(DataError, match=r"a.jsonl:1: column 'mask' (must hold one 0 or 1 for each|is not a flat)"):
        list(TokenIds(paths=(str(path),), counts_column="mask").open().documents)


def zstandard(data: bytes) -> bytes:
    return pa.compress(data, codec="zstd", asbytes=True)


PACK = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstandard}


@pytest.mark.parametrize("packing", PACK)
def test_packed_files_are_read_as_they_are_unpacked(packing, tmp_path, write):
    write_texts(tmp_path / "a.jsonl")
    write_texts(tmp_path / "a.json")
    write("a.csv", 'text,id\n"one\ntwo",1\ndrei ½,2\n,3\n"four ""quoted""",4\n')
    write("a.txt", "one\r\ntwo\n")
    for name in ("a.jsonl", "a.json", "a.csv", "a.txt"):
        path = write(name + packing, PACK[packing]((tmp_path / name).read_bytes()))
        assert read(path) == read(tmp_path / name)
        corpus = TextFiles(paths=(str(path),)).open()
        assert sum(document.size_bytes for document in corpus.documents) <= corpus.size_bytes
        os.truncate(path, path.stat().st_size - 9)
        with pytest.raises(DataError, match=rf"is damaged or no {packing} file \(.*\); write it again"):
            read(path)


def test_cells_of_text_tables_are_texts_and_lists(write):
    path = write("a.tsv", '\ufeffinput_ids\tmask\n"[5, 6]"\t"[0, 1]"\n\n[7]\t[1]\n')
    contents = [d.content for d in TokenIds(paths=(str(path),), counts_column="mask").open().documents]
    assert [(c.ids.tolist(), c.loss_mask.tolist()) for c in contents] == [([5, 6], [False, True]), ([7], [True])]


@pytest.mark.parametrize("packing", [".gz", ".zst"])
def test_a_packed_line_without_end_is_refused(packing, write, monkeypatch):
    monkeypatch.setattr(opened, "UNPACKED_BYTES", 1 << 16)
    path = write(f"a.jsonl{packing}", PACK[packing](b'{"text": "' + b"a" * (1 << 17) + b'"}'))
    with pytest.raises(DataError, match=r"a line of it is longer than .* MiB unpacked; unpack the file, or split it"):
        read(path)


def test_a_saved_dataset_is_its_arrow_files(tmp_path):
    texts = [f"text {i}" for i in range(10)]
    dataset = datasets.Dataset.from_dict({"text": texts})
    dataset.save_to_disk(tmp_path / "one", num_shards=3)
    datasets.DatasetDict(train=dataset).save_to_disk(tmp_path / "only")
    datasets.DatasetDict(train=dataset, test=dataset).save_to_disk(tmp_path / "two")
    for directory in ("one", "only", "two/test"):
        assert read(tmp_path / directory) == texts
    with pytest.raises(DataError, match=r"two: holds several splits; name one of them: .*two/train, .*two/test"):
        read(tmp_path / "two")
    state = tmp_path / "one" / "state.json"
    state.write_text(state.read_text().replace("data-00001", "../only/data-00001"))
    with pytest.raises(DataError, match=r"state.json: names no Arrow files of its directory; save the dataset again"):
        read(tmp_path / "one")


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt", "a.arrow"])
def test_a_file_that_was_never_written_is_refused_at_once(name, tmp_path):
    path = tmp_path / name
    path.write_bytes(b'{"text": "a"}\n')
    os.truncate(path, 1 << 40)
    if path.stat().st_blocks * 512 > 1 << 20:
        pytest.skip("the file system has no holes")
    with pytest.raises(DataError, match=r"seems to have 1,099,511,627,776 bytes, of which [\d,]+ were ever written"):
        read(path)


def hostile(rng: random.Random, data: bytes) -> bytes:
    """The file with a few bytes, numbers or its end changed."""
    changed = bytearray(data)
    for _ in range(rng.choice([1, 2, 20])):
        i = rng.randrange(rng.choice([0, max(0, len(data) - 2500)]), len(data))
        number = rng.choice([1 << 31, (1 << 31) - 1, (1 << 32) - 1, 1 << 24, rng.getrandbits(32)])
        changed[i : i + 4] = rng.choice([bytes([rng.randrange(256)]), number.to_bytes(4, "little")]).ljust(4, b"\0")
    return bytes(changed[: rng.choice([len(changed), len(changed), rng.randrange(1, len(changed))])])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a.parquet", "stream.arrow", "file.arrow"])
def test_a_hostile_table_never_ends_the_process(name, tmp_path):
    """100 damaged files, read ten at a time in a process of their own that no signal may end."""
    talk = [[{"role": "user", "content": f"é {i}"}, {"role": "assistant", "content": "é" * (i % 5)}] for i in range(99)]
    ids = [list(range(i % 9)) for i in range(99)]
    table = pa.table({"text": [f"é {i}" * (i % 7) for i in range(99)], "messages": talk, "input_ids": ids})
    write_table(tmp_path / name, table)
    data, rng = (tmp_path / name).read_bytes(), random.Random(0)
    sources = [TextFiles, partial(TextFiles, format="chat"), TokenIds]
    ends = Counter()
    for start in range(0, 100, 10):
        paths = [tmp_path / f"{i}-{name}" for i in range(start, start + 10)]
        for path in paths:
            path.write_bytes(hostile(rng, data))
        codes, status = codes_in_a_fork(sources, paths)
        assert status == 0, f"a process ended with {status} at {paths[len(codes)].name}"
        ends.update(codes)
    assert ends.total() == 100
    assert set(ends) == {0, 2}
    assert ends[2] > 30


def codes_in_a_fork(sources: list, paths: list[Path]) -> tuple[bytes, int]:
    """What `exit_code_of` returns of each file, as far as a fork of this process came, and how that ended."""
    reader, writer = os.pipe()
    if not (child := os.fork()):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        for path in paths:
            os.write(writer, bytes([exit_code_of(sources, path)]))
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as pipe:
        codes = pipe.read()
    return codes, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def exit_code_of(sources: list, path: Path) -> int:
    """0 if all sources can be read, 2 if one is refused, 1 for another exception."""
    code = 0
    for source in sources:
        try:
            for document in source(paths=(str(path),)).open().documents:
                repr(document.content)
        except DataError:
            code = 2
        except BaseException:
            return 1
    return code


def test_an_object_in_a_column_has_no_nulls_of_other_rows(tmp_path):
    values = [{"a": {"b": 1}}, {"c": [{"d": 2}, {"e": 3}]}, None, {}]
    pq.write_table(pa.table({"text": pa.array(values)}), tmp_path / "objects.parquet")
    found = [row.values[0] for row in files.rows([tmp_path / "objects.parquet"], Columns(("text",)))]
    assert found == values
