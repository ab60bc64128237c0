"""Tokens and floating-point operations of a result, by kind of work.

FLOPs are those that the models require, not those that a machine executed: what is recomputed to save memory or after a
kill counts once, and padding does not count. The forward pass of a token takes two FLOPs per weight of every matrix
that multiplies (Kaplan et al. 2020, sec. 2.1): the head counts, the embedding look-up does not, and of experts only
those that a token uses. To that, two per channel of a head's key and of its value and attended position (four where
both have as many channels: Chowdhery et al. 2022, app. B), with half a block attended to on average. A backward pass
takes two forward passes. Statistics, optimizer and projections are not counted, nor are benchmark tasks, whose prompts
are not blocks.
"""

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple, Self

from minitron_cli.model.shape import Shape
from minitron_cli.results.base import ModelSize

TRAINING = 3  # a forward pass, and twice that for the gradients of activations and of weights

HeadWork = Literal["loss", "kl", "training", "signals"]


class Pass(NamedTuple):
    """Work on some tokens, with the decoder's FLOPs apart from the head's, which take another time each."""

    work: str
    """Kind of work, as it is shown."""
    tokens: int
    decoder: int
    """FLOPs of the decoder."""
    head: int = 0
    """FLOPs of the language-model head."""
    head_work: HeadWork = "loss"
    """What the head is read for: the likelihood of the text, the divergence of two models, gradients, or draws."""

    @property
    def flops(self) -> int:
        return self.decoder + self.head


class Entry(NamedTuple):
    """Cost of one kind of work."""

    work: str
    tokens: int
    flops: int


def model_size(shape: Shape, sequence_length: int) -> ModelSize:
    """Size of a shape, with FLOPs per token in blocks of `sequence_length` tokens."""
    context = sequence_length // 2
    decoder = shape.flops_per_token(context, with_head=False)
    return ModelSize(
        sizes=dict(shape.sizes),
        parameters=shape.parameters(),
        non_embedding=shape.parameters("non_embedding"),
        decoder_flops=decoder,
        head_flops=shape.flops_per_token(context) - decoder,
    )


class Removal(NamedTuple):
    """Tokens on which the removal of layers is measured."""

    tokens: int
    """Tokens that run through the layers after a removed block."""
    scored: int
    """Those of them whose loss is taken."""

    @classmethod
    def of(cls, samples: int, length: int, removal_samples: int | None, positions: int | None) -> Self:
        """Tokens of the first `removal_samples` of `samples` samples (None: all), `positions` of each scored."""
        samples = min(samples, removal_samples or samples)
        return cls(samples * length, samples * min(length, positions or length))


def calibration(model: ModelSize, tokens: int, removed: Sequence[int], removal: Removal | None = None) -> list[Pass]:
    """One pass of the decoder and, for each block length in `removed`, the removal of every such block.

    `removal` is None if it was measured on all tokens.
    """
    observed = Pass("calibration", tokens, tokens * model.decoder_flops)
    return [observed, *([_removal(model, removed, removal or Removal(tokens, tokens))] if removed else [])]


def _removal(model: ModelSize, removed: Sequence[int], on: Removal) -> Pass:
    """The layers after every removed block, and the head for each block and for the whole model."""
    layers = model.sizes["layer"]
    after = [layers - stop for n in removed for stop in range(n, layers + 1)]
    decoder = sum(after) * model.decoder_flops // layers
    return Pass("layer removal", on.tokens, on.tokens * decoder, on.scored * (len(after) + 1) * model.head_flops)


def training(student: ModelSize, teacher: ModelSize | None, tokens: int) -> list[Pass]:
    """Training of the student; `teacher` is None where no loss uses its predictions."""

    def of(work: str, model: ModelSize, times: int) -> Pass:
        return Pass(work, tokens, times * tokens * model.decoder_flops, times * tokens * model.head_flops, "training")

    return [of("training", student, TRAINING), *([of("teacher", teacher, 1)] if teacher else [])]


def teacher(model: ModelSize, tokens: int) -> Pass:
    """The teacher's pass over a text whose signals are stored."""
    return Pass("teacher", tokens, tokens * model.decoder_flops, tokens * model.head_flops, "signals")


def held_out(models: Sequence[ModelSize], tokens: int, head_work: HeadWork = "loss") -> Pass:
    """Evaluation of models on the same held-out tokens, which count once for each model."""
    decoder, head = sum(model.decoder_flops for model in models), sum(model.head_flops for model in models)
    return Pass("held-out text", tokens * len(models), tokens * decoder, tokens * head, head_work)


def repair(parent: ModelSize, children: Iterable[tuple[ModelSize, Iterable[str]]], tokens: int) -> list[Pass]:
    """One pass over the parent for all children, and one of parent and child for each fit by least squares."""
    repaired = [(child, list(repairs)) for child, repairs in children]
    passes = [parent] if any({"rotate", "rescale", "bias"} & set(repairs) for _, repairs in repaired) else []
    for child, repairs in repaired:
        passes += [parent, child] * sum(name.startswith("least_squares") for name in repairs)
    return [Pass("repair", tokens, tokens * model.decoder_flops) for model in passes]


def layerwise(model: ModelSize, tokens: int) -> Pass:
    """Tokens through the decoder layers of a model, without its head."""
    return Pass("calibration", tokens, tokens * model.decoder_flops)


def total(entries: Iterable[Entry]) -> Entry:
    """Sum of all entries."""
    return next(iter(merged(entry._replace(work="total") for entry in entries)), Entry("total", 0, 0))


def merged(entries: Iterable[Entry | Pass]) -> list[Entry]:
    """One entry per kind of work, in order of first appearance; work without FLOPs is left out."""
    sums: dict[str, Entry] = {}
    for entry in entries:
        known = sums.get(entry.work, Entry(entry.work, 0, 0))
        sums[entry.work] = Entry(entry.work, known.tokens + entry.tokens, known.flops + entry.flops)
    return [entry for entry in sums.values() if entry.flops]
