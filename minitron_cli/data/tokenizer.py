"""A byte-level BPE tokenizer trained from text."""

from collections.abc import Iterable
from pathlib import Path

from minitron_cli import io
from minitron_cli.errors import DataError

END_OF_TEXT = "<|endoftext|>"  # id 0; begins, ends and pads


def train_bpe(texts: Iterable[str], vocab_size: int, directory: Path) -> None:
    """Write a tokenizer of exactly `vocab_size` tokens, the same for the same texts. DataError if they give fewer.

    Any text can be encoded: each of the 256 bytes is a token.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[END_OF_TEXT],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    learned = tokenizer.get_vocab_size()
    if learned != vocab_size:
        raise DataError(f"the text gives a vocabulary of {learned:,} tokens, not {vocab_size:,}; ask for {learned:,}")
    special = dict.fromkeys(("bos_token", "eos_token", "pad_token"), END_OF_TEXT)
    io.make_dirs(directory)
    io.write_new(directory / "tokenizer.json", tokenizer.to_str(pretty=True).encode())
    io.write_new_json(directory / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"} | special)
    io.write_new_json(directory / "special_tokens_map.json", special)
