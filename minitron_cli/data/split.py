"""Documents to train on and documents to hold out, disjoint. Knows no token."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from io import BytesIO
from math import nextafter
from typing import Any, Literal

from minitron_cli import canonical_json, progress
from minitron_cli.data import files
from minitron_cli.data.conversation import Conversation
from minitron_cli.data.rows import Content, Document, Ids
from minitron_cli.data.sources import Corpus, DataConfig, Source
from minitron_cli.errors import DataError

CONVERSATIONS = "without nulls of tables; compared without unread columns, letter case and white space"
"""Rule for conversations and completions, which were read and compared with them before; plain text is as it was."""

SplitName = Literal["train", "validation"]


@dataclass(frozen=True)
class Split:
    """Documents of some sources without those of the validation sources.

    Without validation sources: documents whose hash, as a number from 0 to 1, is on one side of a border.
    """

    name: SplitName
    sources: tuple[Source, ...]
    corpora: tuple[Corpus, ...]
    held_out: float | None
    """Share of the documents that are held out; None with validation sources."""
    excluded: tuple[Source, ...] = ()
    """Validation sources, whose documents are left out of training."""

    @classmethod
    def open(cls, config: DataConfig, name: SplitName) -> "Split":
        """Locate and hash the sources of a split. DataError if one is missing."""
        sources, excluded = config.sources, config.validation
        if config.validation and name == "validation":
            sources, excluded = config.validation, ()
        held_out = None if config.validation else config.validation_fraction
        return cls(name, sources, tuple(source.open() for source in sources), held_out, excluded)

    def identity(self) -> list[object]:
        """JSON value that changes whenever the split's documents may change."""
        excluded = [source.open().identity for source in self.excluded]
        held_out = None if self.held_out is None else [self.name, self.held_out]
        rules = [CONVERSATIONS] if self.has_loss_mask else []
        return [[corpus.identity for corpus in self.corpora], self.weights, held_out, excluded, *rules]

    @property
    def weights(self) -> list[float | None]:
        return [source.weight for source in self.sources]

    @property
    def has_loss_mask(self) -> bool:
        return any(corpus.has_loss_mask for corpus in self.corpora)

    @property
    def size_bytes(self) -> int | None:
        """Size of all sources; None if that of one is unknown."""
        sizes = [corpus.size_bytes for corpus in self.corpora]
        return None if None in sizes else sum(size for size in sizes if size)

    def documents(self, i: int, step: progress.Step) -> Iterator[Document]:
        """Documents of source i that are in the split. DataError if the source has no document at all."""
        corpus, left_out, is_empty = self.corpora[i], 0, True
        for document in corpus.documents:
            is_empty = False
            step(document.size_bytes)
            if self._excludes(document):
                left_out += 1
            elif self._holds(document):
                yield document
        if is_empty:
            raise DataError(f"{corpus.label}: holds only empty documents; drop it from the sources or write it again")
        if left_out:
            progress.say(f"{corpus.label}: {left_out:,} documents are also validation data and not trained on")

    def check_unchanged(self) -> None:
        """DataError if a source has changed since the split was opened."""
        if [source.open().identity for source in self.sources] != [corpus.identity for corpus in self.corpora]:
            raise DataError(f"{self.name} data: changed while they were read; run the command again")

    def nothing(self) -> DataError:
        """Error to raise if the split has no document."""
        if self.excluded:
            return DataError(f"{self.name} data: every document is in data.validation too; name other text there")
        return DataError(
            f"{self.name} data: data.validation_fraction={self.held_out:g} holds out whole documents and leaves none "
            "here; name data.validation sources, or split the text into more documents"
        )

    def too_few(self, tokens: int, block: int) -> DataError:
        """Error to raise if the split has fewer tokens than one block."""
        advice = "add text or lower data.sequence_length"
        if self.name == "validation" and self.held_out is not None:
            advice = (
                f"name held-out text with --validation, raise data.validation_fraction above {self.held_out:g}, or "
                "lower data.sequence_length"
            )
        return DataError(f"{self.name} data: {tokens:,} tokens are fewer than one block of {block:,}; {advice}")

    def _holds(self, document: Document) -> bool:
        return self.held_out is None or (_position(document) < self._border) == (self.name == "validation")

    @cached_property
    def _border(self) -> float:
        """Documents below it are held out. It is the share or, if no document is below that, just above the lowest."""
        if not self.held_out:
            return 0.0
        lowest, highest = 1.0, 0.0
        for document in (document for corpus in self.corpora for document in corpus.documents):
            progress.raise_if_stopped()
            position = _position(document)
            if position < self.held_out:
                return self.held_out
            lowest, highest = min(lowest, position), max(highest, position)
        return nextafter(lowest, 1.0) if lowest < highest else 0.0

    def _excludes(self, document: Document) -> bool:
        """Whether the document is in the validation data, as a whole or in passages."""
        if not self.excluded:
            return False
        whole, *pieces = _hashes(document)
        return whole in self._excluded_hashes or (bool(pieces) and self._excluded_hashes.issuperset(pieces))

    @cached_property
    def _excluded_hashes(self) -> frozenset[int]:
        corpora = [source.open() for source in self.excluded]
        sizes = sum(corpus.size_bytes or 0 for corpus in corpora)
        with progress.track("read the validation data", total=sizes or None, unit="bytes") as step:
            documents = (document for corpus in corpora for document in corpus.documents)
            return frozenset(number for document in documents for number in _stepped(document, step))


def _stepped(document: Document, step: progress.Step) -> list[int]:
    step(document.size_bytes)
    return _hashes(document)


def _position(document: Document) -> float:
    return _hash(document.content, document.where) / 2**64


def _hashes(document: Document) -> list[int]:
    """Hash of the document and, if it is long enough to be split as an only file, of its passages."""
    content, where = document.content, document.where
    if not isinstance(content, str) or 4 * len(content) < files.PASSAGE_BYTES:  # a character has four bytes at most
        return [_hash(content, where)]
    pieces = [b"".join(piece).decode() for piece in files.pieces(BytesIO(content.encode()))]
    return [_hash(content, where), *(_hash(piece, where) for piece in pieces if len(pieces) > 1)]


def _hash(content: Content, where: str) -> int:
    """64-bit hash of a document's content. Letter case and white space of its texts make no difference.

    Nor do the columns of a conversation that are not read. DataError if the content is not JSON.
    """
    if isinstance(content, str):
        data = _words(content).encode()
    else:
        data = content.ids.astype("<i8").tobytes() if isinstance(content, Ids) else _json(content, where)
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "little")


def _words(text: str) -> str:
    return " ".join(text.casefold().split())


def _json(content: Content, where: str) -> bytes:
    try:
        return canonical_json.compact(
            _alike(content._replace(others=()) if isinstance(content, Conversation) else content)
        )
    except (ValueError, TypeError, RecursionError) as e:
        raise DataError(f"{where}: holds a value that is not JSON ({e}); repair or drop the row") from None


def _alike(value: Any) -> Any:
    """A JSON value with its texts, but not the names of its fields, as they are compared."""
    if isinstance(value, str):
        return _words(value)
    if isinstance(value, Mapping):
        return {name: _alike(field) for name, field in value.items()}
    return [_alike(item) for item in value] if isinstance(value, list | tuple) else value
