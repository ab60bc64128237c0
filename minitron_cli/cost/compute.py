"""What a result cost: tokens and floating-point operations by kind of work. Knows shapes and counts, no artifact.

FLOPs are those that the models ask for, not those that a machine did: what is computed twice to save memory, or again
after a kill, counts once, and what pads a batch does not count. The forward pass of a token is two for each weight of
every matrix that multiplies (Kaplan et al. 2020, sec. 2.1): the head counts, the look-up of an embedding does not, and
of experts those that a token uses. To that, four for each head channel and each position attended to (Chowdhery et al.
2022, app. B), which are half of a block on average. A backward pass costs two forward passes. Statistics, optimizer
and projections are not counted, nor are benchmark tasks, whose texts are not blocks.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from minitron_cli.model.shape import Shape

TRAINING = 3  # forward, and twice that for the gradients of activations and of weights


class Entry(NamedTuple):
    """One kind of work."""

    work: str
    tokens: int
    flops: int


def as_json(entries: Iterable[Entry]) -> list[dict[str, Any]]:
    """For a manifest; what cost nothing is left out."""
    return [entry._asdict() for entry in entries if entry.flops]


def of_json(rows: Iterable[Mapping[str, Any]]) -> list[Entry]:
    return [Entry(row["work"], row["tokens"], row["flops"]) for row in rows]


def forward(work: str, shape: Shape, tokens: int, length: int, *, with_head: bool = True) -> Entry:
    """Tokens in blocks of `length` through a model, or through its decoder alone."""
    return Entry(work, tokens, tokens * shape.flops_per_token(length // 2, with_head=with_head))


def calibration(shape: Shape, tokens: int, length: int, removed: Sequence[int]) -> list[Entry]:
    """One pass of the decoder and, for every block of `removed` layers, what removing each of them costs."""
    per_token = _removal(shape, length, removed) if removed else 0
    return [
        forward("calibration", shape, tokens, length, with_head=False),
        Entry("layer removal", tokens if removed else 0, tokens * per_token),
    ]


def _removal(shape: Shape, length: int, removed: Sequence[int]) -> int:
    """Of one token: the layers behind every cut once more, and the head for each cut and for the whole model."""
    layers = shape.sizes["layer"]
    decoder = shape.flops_per_token(length // 2, with_head=False)
    head = shape.flops_per_token(length // 2) - decoder
    behind = [layers - stop for n in removed for stop in range(n, layers + 1)]
    return sum(behind) * decoder // layers + (len(behind) + 1) * head


def training(student: Shape, teacher: Shape | None, tokens: int, length: int) -> list[Entry]:
    """`teacher` is None where no loss asks it."""
    trained = Entry("training", tokens, TRAINING * forward("", student, tokens, length).flops)
    return [trained, *([forward("teacher", teacher, tokens, length)] if teacher else [])]


def held_out(shapes: Sequence[Shape], tokens: int, length: int) -> Entry:
    """Models measured on the same tokens, each one once; the tokens count once for each."""
    return Entry("held-out text", tokens * len(shapes), sum(forward("", s, tokens, length).flops for s in shapes))


def repair(parent: Shape, mended: Iterable[tuple[Shape, frozenset[str]]], tokens: int, length: int) -> list[Entry]:
    """A pass over the parent for all cuts, and for each that is solved for one of parent and child side by side."""
    cuts = list(mended)
    passes = [parent] if any(repairs & {"rotate", "rescale"} for _, repairs in cuts) else []
    for child, repairs in cuts:
        passes += [parent, child] if "least_squares" in repairs else []
    return [forward("repair", shape, tokens, length, with_head=False) for shape in passes]


def total(entries: Iterable[Entry]) -> Entry:
    return next(iter(merged(entry._replace(work="total") for entry in entries)), Entry("total", 0, 0))


def merged(entries: Iterable[Entry]) -> list[Entry]:
    """One entry for each kind of work, in the order in which they first come."""
    sums: dict[str, Entry] = {}
    for entry in entries:
        known = sums.get(entry.work, Entry(entry.work, 0, 0))
        sums[entry.work] = Entry(entry.work, known.tokens + entry.tokens, known.flops + entry.flops)
    return list(sums.values())
