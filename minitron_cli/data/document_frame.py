"""Token ids that stand before and after the text of a document. Knows a tokenizer, no text and no file."""

from typing import TYPE_CHECKING, Literal, NamedTuple, Self

from minitron_cli.data.rows import Ids
from minitron_cli.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedTokenizerBase

Bos = Literal["auto", "always", "never"]
"""What stands before a document. auto: what the tokenizer writes before a text. always: that or, if it is nothing, the
bos token, also before chats and token ids. never: nothing."""

PROBE = "text"
PROBE_ID = (1 << 32) - 1  # no vocabulary has it


class DocumentFrame(NamedTuple):
    """Special tokens of a tokenizer around a text."""

    before: tuple[int, ...]
    """Ids before a text, such as a bos; empty for most tokenizers without one."""
    after: tuple[int, ...]
    """Ids after a text. The end-of-text token is one of them; empty without one."""
    is_forced: bool = False
    """Whether `before` also stands before chats and token ids, which bring their own special tokens."""

    @classmethod
    def of(cls, tokenizer: "PreTrainedTokenizerBase", bos: Bos) -> Self:
        """Frame that the tokenizer's own post-processing writes. DataError if a bos is asked for and there is none."""
        before, after = _written(tokenizer)
        end = tokenizer.eos_token_id
        if end is not None and end not in after:
            after += (end,)
        match bos:
            case "never":
                return cls((), after)
            case "auto":
                return cls(before, after)
        if not before and tokenizer.bos_token_id is None:
            raise DataError(
                "data.bos=always: the tokenizer has no bos token; use auto, or name one as bos_token in its "
                "tokenizer_config.json"
            )
        return cls(before or (tokenizer.bos_token_id,), after, is_forced=True)

    @classmethod
    def without_tokenizer(cls, bos: Bos) -> Self:
        """Frame of token ids, for which there is no tokenizer. DataError if a bos is asked for."""
        if bos == "always":
            raise DataError("data.bos=always: the model has no tokenizer that names a bos token; add one, or use auto")
        return cls((), ())

    def names(self, tokenizer: "PreTrainedTokenizerBase") -> dict[str, str]:
        """What documents begin and end with, for readers."""
        ends = {"begin_with": self.before, "end_with": self.after}
        return {end: " ".join(tokenizer.convert_ids_to_tokens(list(ids))) or "nothing" for end, ids in ends.items()}

    def begin(self, document: Ids) -> Ids:
        """The document with `before` in front of it, unless it begins so. What is added is not scored."""
        import numpy as np

        if begins_with(document.ids, self.before):
            return document
        ids, mask = np.array([*self.before, *document.ids], np.int64), document.loss_mask
        return Ids(ids, None if mask is None else np.append([False] * len(self.before), mask).astype(bool))

    def unscored(self, document: Ids) -> Ids:
        """The document with `before` taken out of its loss mask.

        The first token of a document never counts, so that a `before` of one token needs no mask.
        """
        import numpy as np

        count = len(self.before)
        if count < 2 or not begins_with(document.ids, self.before):
            return document
        mask = np.ones(len(document.ids), bool) if document.loss_mask is None else document.loss_mask.copy()
        mask[:count] = False
        return Ids(document.ids, mask)


def begins_with(ids: "np.ndarray", before: tuple[int, ...]) -> bool:
    """Whether `before` is the beginning of the ids."""
    return tuple(ids[: len(before)].tolist()) == before


def _written(tokenizer: "PreTrainedTokenizerBase") -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Ids that the tokenizer's post-processing puts before and after a text, whatever their names are."""
    from tokenizers import Tokenizer, models

    probe = Tokenizer(models.WordLevel({PROBE: PROBE_ID}, unk_token=PROBE))
    if (processor := tokenizer.backend_tokenizer.post_processor) is not None:
        probe.post_processor = processor
    ids = probe.encode(PROBE).ids
    at = ids.index(PROBE_ID)
    return tuple(ids[:at]), tuple(ids[at + 1 :])
