"""Measure what a bos is worth to a block that begins inside a document.

    python scripts/real_models.py --names gemma-3-270m
    python scripts/bos_study.py                    # the model assembled above, on the Python standard library's source
    python scripts/bos_study.py MODEL --text articles.txt --blocks 48 --length 512

The same tokens are predicted twice: after the tokens before them in the block, and with the first of these replaced by
what the model's tokenizer writes before a text. Losses are compared block by block.
"""

# T token

import argparse
import math
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minitron_cli.checkpoint import hf
from minitron_cli.data.batches import evenly_spaced
from minitron_cli.data.pack import Blocks, prepare
from minitron_cli.data.sources import DataConfig, PythonStdlib, TextFiles
from minitron_cli.errors import InputError
from scripts.real_models import GEMMA, default_root

FIRST = 65
"""Losses are compared from this position on, where the beginning of the block is not near any more."""


@torch.inference_mode()
def loss(model: Any, tokens_T: Tensor) -> float:
    """Mean loss in nats of the tokens from position FIRST on."""
    logits_TV = model(tokens_T[None], use_cache=False).logits[0, FIRST - 1 : -1]
    return torch.nn.functional.cross_entropy(logits_TV.float(), tokens_T[FIRST:]).item()


def continued_blocks(model: Path, text: Path | None, length: int, directory: Path) -> tuple[Blocks, Blocks]:
    """Blocks of a text, by default the standard library's source, with and without the tokenizer's bos.

    InputError if the tokenizer writes none.
    """
    source = TextFiles(paths=(str(text),)) if text else PythonStdlib(split="validation")
    config = DataConfig(sources=(source,), validation_fraction=0, sequence_length=length)
    blocks = prepare(config, "train", hf.load_tokenizer(model), "study", directory)
    if not blocks.before:
        raise InputError(f"the tokenizer of {model} writes nothing before a text: name another model")
    return blocks, Blocks(blocks.file, length)


def whole(blocks: Blocks, plain: Blocks) -> list[int]:
    """Numbers of the blocks that lie inside one document and differ by what they begin with."""
    inside = (i for i in range(len(blocks)) if len(blocks.documents(i).unique()) == 1)
    return [i for i in inside if not torch.equal(blocks.tokens(i), plain.tokens(i))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path, default=default_root() / GEMMA.name)
    parser.add_argument("--text", type=Path, help="a file to measure on; default: the standard library's source")
    parser.add_argument("--blocks", type=int, default=48)
    parser.add_argument("--length", type=int, default=512)
    options = parser.parse_args()
    model = hf.load_model(options.model, device="cpu", dtype="float32")
    with tempfile.TemporaryDirectory() as directory:
        blocks, plain = continued_blocks(options.model, options.text, options.length, Path(directory))
        numbers = whole(blocks, plain)
        chosen = [numbers[i] for i in evenly_spaced(len(numbers), options.blocks)]
        pairs = torch.tensor([[loss(model, some.tokens(i)) for some in (plain, blocks)] for i in chosen])
    gain = pairs[:, 0] - pairs[:, 1]
    without, with_bos = pairs.mean(0).tolist()
    error = gain.std().item() / math.sqrt(len(gain))
    print(f"{len(gain)} blocks of {options.length} tokens that begin inside a document, positions {FIRST} and later")
    print(f"without {without:.3f} nats, with {with_bos:.3f}, gain {gain.mean().item():.3f} +- {error:.3f}")


if __name__ == "__main__":
    main()
