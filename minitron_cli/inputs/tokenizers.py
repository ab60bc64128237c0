"""Whether two models mean the same by a token id: the notion of one tokenizer that all stages share.

What counts is that each text becomes the same ids, not that files are equal: a tokenizer that was saved again, one with
a chat template and one with further special tokens are the same. So are embeddings with more rows than there are
tokens.
"""

from collections.abc import Mapping
from itertools import zip_longest
from typing import TYPE_CHECKING

from minitron_cli.artifacts import fingerprint
from minitron_cli.checkpoint import hf
from minitron_cli.errors import CheckpointError, shown
from minitron_cli.inputs.source_model import SourceModel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROBES = (
    "The quick brown Fox doesn't jump over 12345 lazy dogs, it's 3.14159 o'clock!",
    "  two spaces,\ttab,\n\nnew lines   and a trailing one ",
    "caf\u00e9 cafe\u0301 na\u00efve \ufb01ne \uff21\uff22\uff23 \u2460 Stra\u00dfe \u0130stanbul",
    "def f(x_1):\n    return {'a': [x_1 ** 2, -1e-5]}  # \u2192 \u00bd",
    "\u65e5\u672c\u8a9e\u306e\u6587\u7ae0 \u0645\u0631\u062d\u0628\u0627",
    "\u043f\u0440\u0438\u0432\u0435\u0442 \U0001f600\U0001f44d\U0001f3fd",
)
"""Text on which tokenizers with one vocabulary differ: in Unicode normalization, case, spaces and digits."""
OWN_TOKENS = 4096  # of the vocabulary, in a row, on which tokenizers with other merges differ


def require_same(student: SourceModel, teacher: SourceModel) -> None:
    """Raise CheckpointError unless the teacher can predict text in the student's tokens."""
    if why := difference(student, teacher, ("the student", "the teacher")):
        raise CheckpointError(
            f"{why}: distill from the model that the student was pruned from, or from one with the student's tokenizer"
        )


def differences(reader: SourceModel, others: Mapping[str, SourceModel], name: str) -> dict[str, str]:
    """Name of each model that cannot read text in the tokens of `reader` -> why, in words that call `reader` `name`."""
    return {label: why for label, other in others.items() if (why := difference(reader, other, (name, label)))}


def difference(reader: SourceModel, other: SourceModel, names: tuple[str, str]) -> str | None:
    """Why `other` cannot read text in the tokens of `reader`, in words; None if it can.

    Args:
        reader: model whose tokenizer makes the tokens.
        other: model that is to read the same tokens.
        names: what both are called in the sentence.
    """
    rows = other.shape.sizes["vocab"]
    if reader.path == other.path:
        return None
    if not hf.has_tokenizer(reader.path) and not hf.has_tokenizer(other.path):
        return None  # both read token ids
    own = hf.load_tokenizer(reader.path)
    are_equal = fingerprint.of_tokenizer(reader.path) == fingerprint.of_tokenizer(other.path)
    if not are_equal and (why := apart(own, hf.load_tokenizer(other.path), names)):
        return why
    token, highest = max(own.get_vocab().items(), key=lambda item: item[1])
    if rows < min(highest + 1, reader.shape.sizes["vocab"]):  # text has no token beyond the reader's own rows
        return f"{names[0]}'s token {shown(token)} has the id {highest:,} and {names[1]}'s embedding {rows:,} rows"
    return None


def apart(own: "PreTrainedTokenizerBase", other: "PreTrainedTokenizerBase", names: tuple[str, str]) -> str | None:
    """How two tokenizers differ, in words; None if both make the same ids of the same text.

    Either may have special tokens that the other lacks.
    """
    first, second = own.get_vocab(), other.get_vocab()
    alone = _plain(own, first).keys() - second.keys() | _plain(other, second).keys() - first.keys()
    if alone:
        example = shown(min(alone))
        return (
            f"{names[0]}'s tokenizer has {len(first):,} tokens and {names[1]}'s {len(second):,}, not {example} in both"
        )
    if moved := [token for token in first.keys() & second.keys() if first[token] != second[token]]:
        token = min(moved)
        return f"token {shown(token)} has the id {first[token]:,} in {names[0]} and {second[token]:,} in {names[1]}"
    for text in (*PROBES, _own_text(own, first)):
        pairs = enumerate(zip_longest(_ids(own, text), _ids(other, text)))
        if (at := next((i for i, (a, b) in pairs if a != b), None)) is not None:
            return f"the tokenizers of {names[0]} and {names[1]} split {_part(own, text, at)} differently"
    return None


def _own_text(tokenizer: "PreTrainedTokenizerBase", vocabulary: Mapping[str, int]) -> str:
    """Text that uses the whole vocabulary, or tokens evenly spaced over it."""
    ids = sorted(_plain(tokenizer, vocabulary).values())
    text: str = tokenizer.decode(ids[:: max(1, len(ids) // OWN_TOKENS)])
    return text


def _plain(tokenizer: "PreTrainedTokenizerBase", vocabulary: Mapping[str, int]) -> Mapping[str, int]:
    """Tokens that text can contain unmarked: all but the added ones."""
    added = tokenizer.get_added_vocab()
    return {token: i for token, i in vocabulary.items() if token not in added}


def _part(tokenizer: "PreTrainedTokenizerBase", text: str, at: int) -> str:
    return shown(tokenizer.decode(_ids(tokenizer, text)[at : at + 4]))


def _ids(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
