"""Work of making a model sparse in rounds, with a training between two of them."""

from collections.abc import Iterator

from minitron_cli.distill import between_rounds, short_runs
from minitron_cli.distill.config import DistillConfig
from minitron_cli.price import sparsify, training
from minitron_cli.price.offer import compute_dtype
from minitron_cli.price.work import Subject, Work
from minitron_cli.sparse.config import SparsifyConfig

HELD_OUT_BLOCKS = 64
"""Blocks of an evaluation where all that there are would be read: their number is not known yet."""


def label(number: int, rounds: int, of: str = "") -> str:
    """Label of what one of the rounds makes: the last makes what was asked for, which is labelled `of`."""
    return of if number == rounds else "-".join(filter(None, (of, f"round-{number}")))


def works(
    model: Subject, teacher: Subject, config: SparsifyConfig, distill: DistillConfig, length: int, device: str
) -> Iterator[tuple[str, Work]]:
    """Stage and round -> its work, in order. With one round it is that of the stage alone."""
    for number in range(1, config.rounds + 1):
        one, at = config.of_round(number), label(number, config.rounds)
        one = one.fitted(length, one.samples)
        yield f"sparsify {at}".strip(), sparsify.work(sparsify.of_model(model, one, length if one.needs_text else 0))
        if number < config.rounds:
            between, _ = short_runs.fitted(between_rounds.training(config, distill), length)
            blocks, dtype = between.eval_blocks or HELD_OUT_BLOCKS, compute_dtype(between, device)
            yield (
                f"distill {at}",
                training.work(model, teacher, between, length, blocks, compute_dtype=dtype, device=device),
            )
