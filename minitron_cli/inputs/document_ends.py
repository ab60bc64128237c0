"""What the texts that a model reads begin and end with, for readers. Loads a tokenizer, no weights."""

from pathlib import Path

from minitron_cli.checkpoint import hf
from minitron_cli.data.document_frame import Bos, DocumentFrame
from minitron_cli.errors import CheckpointError


def document_ends(model: Path, bos: Bos) -> dict[str, str] | str | None:
    """Special tokens before (`begin_with`) and after (`end_with`) a text under a setting of data.bos.

    The reason if the tokenizer does not load; None if the model has none.
    """
    if not hf.has_tokenizer(model):
        return None
    try:
        tokenizer = hf.load_tokenizer(model)
    except CheckpointError as e:
        return str(e)
    return DocumentFrame.of(tokenizer, bos).names(tokenizer)
