"""Sources of text and token ids, as a recipe describes them. Knows no tokenizer and no blocks."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from minitron_cli import canonical_json
from minitron_cli.choices import AUTO, FormatName
from minitron_cli.data import files, hub, standard_library
from minitron_cli.data.document_frame import Bos
from minitron_cli.data.formats import HELP, documents, format_of, kind_of
from minitron_cli.data.formats.base import BaseFormat
from minitron_cli.data.formats.text import TextFormat
from minitron_cli.data.rows import Columns, Document, require_columns, token_documents
from minitron_cli.spec import Quantity, Spec


class Corpus(NamedTuple):
    """A source that was located and hashed."""

    label: str
    """Name of the source, for messages."""
    identity: list[Any]
    """JSON value that depends on every byte of the content and on how it is read, but not on where it is."""
    size_bytes: int | None
    """Approximate sum of the documents' `size_bytes`; None if it is unknown before they are read."""
    read: Callable[[], Iterator[Document]]
    """Starts reading from the first document."""
    has_loss_mask: bool = False
    """Whether some tokens of a document may not be scored."""

    @property
    def documents(self) -> Iterator[Document]:
        """Documents in a fixed order, read on demand. DataError at the first broken one."""
        return self.read()


class Readable(Spec):
    """A source of rows, and how they are read."""

    format: FormatName = Field("text", description=HELP)
    column: str | None = None
    """The column that holds the text, the messages, the completion or the output. Default: as the format says."""
    prompt_column: str | None = None
    """The column that holds the prompt of a completion, or the instruction. Default: as the format says."""

    @model_validator(mode="after")
    def _auto_finds_the_columns(self) -> Self:
        if self.format == AUTO and (self.column or self.prompt_column):
            raise ValueError("format: auto finds columns by their usual names; name the format of other columns")
        return self

    def row_format(self, first_columns: Callable[[], Sequence[str]], label: str) -> BaseFormat:
        """Format of the rows, with the columns that were named; `first_columns` reads those of the first row."""
        kind = kind_of(first_columns(), label) if self.format == AUTO else self.format
        return format_of(kind, {"column": self.column, "prompt_column": self.prompt_column})


def _reading(row_format: BaseFormat) -> list[Any]:
    """The part of a source's identity that says how its rows are read."""
    return [row_format.kind, *row_format.columns]


class TextFiles(Readable):
    """Text, chats or completions in local files.

    .jsonl and .ndjson hold one object per line, .json a list of objects or one object per line, .parquet, .arrow,
    .csv and .tsv a table. A file of any other suffix is one document in UTF-8; if it is the only file, it is split at
    blank lines into documents of 64 kB or more. .gz, .bz2, .xz and .zst behind a suffix are unpacked as they are read.
    Empty documents are skipped.
    """

    kind: Literal["files"] = "files"
    paths: tuple[str, ...] = Field(min_length=1)
    """Files, patterns such as corpus/**/*.jsonl, whose files are read in sorted order, or directories that
    `datasets.save_to_disk` wrote."""
    weight: float | None = Field(None, gt=0)
    """Share of the tokens, relative to the other sources' weights."""

    def open(self) -> Corpus:
        """The source as it is now. DataError if a file is missing or can't hold text."""
        paths, label = files.expand(self.paths), _label(self.paths)
        row_format = self.row_format(lambda: files.first_columns(paths), label)
        is_corpus = isinstance(row_format, TextFormat) and files.is_one_text(paths)
        read = files.passages if is_corpus else files.rows
        return Corpus(
            label,
            [self.kind, *_reading(row_format), files.identity(paths)],
            files.total_bytes(paths),
            lambda: documents(read(paths, row_format.to_read), row_format),
            row_format.has_loss_mask,
        )


class HubDataset(Readable):
    """Text, chats or completions in a dataset of the Hugging Face Hub, downloaded once and read from a cache.

    With `documents`, only that many rows are downloaded, for datasets that are larger than the disk.
    """

    kind: Literal["hub"] = "hub"
    name: str
    """The dataset's id, such as HuggingFaceFW/fineweb-edu."""
    config_name: str | None = None
    """Configuration of the dataset, if it has several."""
    split: str = "train"
    """The split, or a part of it such as train[:1%]."""
    revision: str | None = None
    """Branch, tag or commit. With a commit the data never change."""
    documents: Quantity | None = None
    """Number of rows to read from the start, such as 200k, without downloading the rest; null: all rows."""
    weight: float | None = Field(None, gt=0)
    """Share of the tokens, relative to the other sources' weights."""

    def open(self) -> Corpus:
        """The source as it is now. DataError if it does not exist, EnvironmentFault if it can't be downloaded."""
        return self._stored() if self.documents is None else self._streamed(self.documents)

    def _streamed(self, count: int) -> Corpus:
        dataset, commit = hub.stream(self.name, self.config_name, self.split, self.revision)
        label = f"hub dataset {self.name}"
        row_format = self.row_format(lambda: hub.first_columns(dataset, label), label)
        return Corpus(
            label,
            [self.kind, *_reading(row_format), self.name, self.config_name, self.split, commit, count],
            None,
            lambda: documents(hub.streamed_rows(dataset, row_format.to_read, label, count), row_format),
            row_format.has_loss_mask,
        )

    def _stored(self) -> Corpus:
        dataset = hub.load(self.name, self.config_name, self.split, self.revision)
        label = f"hub dataset {self.name}"
        row_format = self.row_format(lambda: dataset.column_names, label)
        require_columns(row_format.to_read, dataset.column_names, label)
        return Corpus(
            label,
            [self.kind, *_reading(row_format), self.config_name, self.split, hub.identity(dataset)],
            files.total_bytes(hub.cached_files(dataset)),
            lambda: documents(hub.rows(dataset, row_format.to_read, label), row_format),
            row_format.has_loss_mask,
        )


class TokenIds(Spec):
    """Token ids in local files, one list per row. They are used as they are; nothing is added between rows."""

    kind: Literal["input_ids"] = "input_ids"
    paths: tuple[str, ...] = Field(min_length=1)
    """Files (.parquet, .arrow, .jsonl, .json, .csv), patterns, whose files are read in sorted order, or directories
    that `datasets.save_to_disk` wrote."""
    column: str = "input_ids"
    """The column that holds the lists."""
    counts_column: str | None = None
    """Column of the loss mask, such as completion_mask: a 0 or 1 for each id. Default: all are scored."""
    weight: float | None = Field(None, gt=0)
    """Share of the tokens, relative to the other sources' weights."""

    def open(self) -> Corpus:
        """The source as it is now. DataError if a file is missing or holds no lists."""
        paths = files.expand(self.paths)
        columns = (self.column, self.counts_column) if self.counts_column else (self.column,)
        read = Columns(columns, advice="set column to the one to read")
        identity = [self.kind, *columns, files.identity(paths)]
        return Corpus(
            _label(self.paths),
            identity,
            files.total_bytes(paths),
            lambda: token_documents(files.rows(paths, read), columns),
            self.counts_column is not None,
        )


class PythonStdlib(Spec):
    """Source code of the Python standard library, without tests: text that needs no download."""

    kind: Literal["python_stdlib"] = "python_stdlib"
    split: standard_library.Part = "train"
    """The validation split is a fixed list of modules, 3 % of the files, whatever the version of Python."""
    weight: float | None = Field(None, gt=0)
    """Share of the tokens, relative to the other sources' weights."""

    def open(self) -> Corpus:
        """The standard library of the running interpreter."""
        paths = standard_library.source_files(self.split)
        identity = [self.kind, files.hashed(paths)]
        return Corpus(
            "the standard library",
            identity,
            files.total_bytes(paths),
            lambda: documents(files.rows(paths), TextFormat(column="")),
        )


class PythonHelp(Spec):
    """English prose that needs no download: Python's help on the language, without headings, grammar and code."""

    kind: Literal["python_help"] = "python_help"
    split: standard_library.Part = "train"
    """The validation split is a fixed list of topics, whose paragraphs are in no other one."""
    weight: float | None = Field(None, gt=0)
    """Share of the tokens, relative to the other sources' weights."""

    def open(self) -> Corpus:
        """The help of the running interpreter. DataError if it has none."""
        texts = standard_library.prose(self.split)
        found = [Document(text, f"Python's help on {name}", len(text.encode())) for name, text in texts.items()]
        identity = [self.kind, canonical_json.digest(texts)]
        return Corpus("Python's help", identity, sum(one.size_bytes for one in found), lambda: iter(found))


def _label(paths: tuple[str, ...]) -> str:
    return paths[0] if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"


Source = Annotated[TextFiles | HubDataset | TokenIds | PythonStdlib | PythonHelp, Field(discriminator="kind")]


class DataConfig(Spec):
    """Text to calibrate, train and validate on, and how it is divided into blocks."""

    sources: tuple[Source, ...] = Field(min_length=1)
    """Sources to train and calibrate on.

    With weights, documents of the sources alternate so that each source has its share of the tokens, until the source
    whose turn it is has no more. Without weights, all documents of all sources are used.
    """
    validation: tuple[Source, ...] = ()
    """Sources to validate on. Their documents are not trained on. Default: a part of `sources` is held out."""
    validation_fraction: float = Field(0.02, ge=0, lt=1)
    """Share of the documents to hold out, chosen by a hash of their content; at least one document. Unused with
    `validation`."""
    sequence_length: int = Field(2048, ge=2)
    """Tokens in a block."""
    bos: Bos = "auto"
    """What a document begins with. auto: what the model's tokenizer writes before a text (a bos, or nothing). always:
    also where the tokenizer does not write its bos, and before chats and token ids that lack it. never: nothing. A
    block that begins inside such a document begins in the same way."""

    @property
    def has_text(self) -> bool:
        """Whether some source holds text, which a tokenizer must read."""
        return not all(isinstance(source, TokenIds) for source in (*self.sources, *self.validation))

    @model_validator(mode="before")
    @classmethod
    def _has_no_seed(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and "seed" in values:
            raise ValueError(
                "data have no seed of their own, since each stage draws blocks by its seed: remove data.seed, and set "
                "--seed, or the seed of the stage's section such as distill.seed"
            )
        return values

    @model_validator(mode="after")
    def _weights_are_all_or_none(self) -> Self:
        for name in ("sources", "validation"):
            weights = [source.weight for source in getattr(self, name)]
            if None in weights and any(weights):
                raise ValueError(f"{name}: some have a weight and others do not; give a weight to all or to none")
        return self


def as_stored(text: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of text that any version has stored, as `DataConfig` takes them: earlier ones have a seed, unused."""
    return {name: value for name, value in text.items() if name != "seed"}
