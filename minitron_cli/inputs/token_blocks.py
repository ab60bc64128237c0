"""Token blocks that stages read; text is tokenized once per workspace."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from minitron_cli.artifacts import fingerprint
from minitron_cli.artifacts.build import Context
from minitron_cli.checkpoint import hf
from minitron_cli.data.pack import Blocks, identity, prepare
from minitron_cli.data.sources import DataConfig
from minitron_cli.errors import CheckpointError, DataError, shown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_ID = 100_000_000  # of any token; tables by id would otherwise fill the memory


def blocks_of(context: Context, data: DataConfig, split: Literal["train", "validation"], model: Path) -> Blocks:
    """Blocks of one split, tokenized by the tokenizer of the model at `model`. Token ids need none."""
    rows = hf.load_config(model).vocab_size
    if not data.has_text and not hf.has_tokenizer(model):
        blocks = prepare(data, split, None, "", context.workspace.tokens, vocab_size=rows)
        if (largest := blocks.largest_id()) >= rows:  # of a file that was made for another model
            raise DataError(
                f"the {split} data have the id {largest:,}, and the embedding of {model} has {rows:,} rows: give ids "
                "of this model's tokenizer"
            )
        return blocks
    tokenizer = hf.load_tokenizer(model)
    possible = _largest_id(tokenizer, model)
    blocks = prepare(data, split, tokenizer, fingerprint.of_tokenizer(model), context.workspace.tokens)
    if possible >= rows:
        _check_ids(blocks, rows, tokenizer, split, model)
    return blocks


def given_texts(data: DataConfig | None, blocks: Iterable[Blocks]) -> dict[str, Any]:
    """Settings that blocks are of, by the blocks' fingerprints, for `Context.record`."""
    return dict.fromkeys((one.fingerprint for one in blocks), data.model_dump(mode="json")) if data else {}


def text_identity(data: DataConfig, split: Literal["train", "validation"], model: Path) -> str:
    """Hash that changes whenever `blocks_of` may return others. Tokenizes nothing."""
    if not data.has_text and not hf.has_tokenizer(model):
        return identity(data, split, None, "")
    return identity(data, split, hf.load_tokenizer(model), fingerprint.of_tokenizer(model))


def blocks_for_new_model(
    context: Context, data: DataConfig, split: Literal["train", "validation"], tokenizer: Path
) -> Blocks:
    """Blocks of one split, by the tokenizer in a directory for which there is no model yet."""
    loaded = hf.load_tokenizer(tokenizer)
    return prepare(data, split, loaded, fingerprint.of_tokenizer(tokenizer), context.workspace.tokens)


def _largest_id(tokenizer: "PreTrainedTokenizerBase", model: Path) -> int:
    """Largest token id that a tokenizer can write. CheckpointError if no vocabulary is so large."""
    token, largest = max(tokenizer.get_vocab().items(), key=lambda item: item[1], default=("", 0))
    if largest > MAX_ID:
        raise CheckpointError(f"{model}: its tokenizer gives {shown(token)} the id {largest:,}: restore tokenizer.json")
    return largest


def _check_ids(blocks: Blocks, rows: int, tokenizer: "PreTrainedTokenizerBase", split: str, model: Path) -> None:
    """Raise DataError if a text has tokens beyond the embedding."""
    if (largest := blocks.largest_id()) < rows:
        return
    token = tokenizer.convert_ids_to_tokens(largest)
    raise DataError(
        f"the {split} text has token {largest:,} ({shown(token)}), and the embedding of {model} has {rows:,} rows: "
        "restore the model's own tokenizer, or take the token out of the text"
    )
