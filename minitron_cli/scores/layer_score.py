"""Scores of layers: names, presentation, and whether they rank single layers or contiguous blocks. Knows no tensor."""

from typing import NamedTuple

from minitron_cli.figures import MINUS, Figure


class LayerScore(NamedTuple):
    """One way to score layers. Its values are stored as `layer.<kind>`, [layer]; higher means more important."""

    kind: str
    figure: Figure
    """Title and unit of the values."""
    caption: str
    """Sentence that explains a plot of the values."""
    ranks: bool = True
    """Whether `ranking.layers` accepts it."""
    measured_by: str = ""
    """Options of `minitron importance` that measure it, with `{n}` for the length of blocks; empty if it always is."""
    is_of_blocks: bool = False
    """Whether it scores contiguous blocks: stored as `layer.<kind>=<n>`, [layer - n + 1], entry i being layers i to
    i + n - 1."""
    is_measured_once: bool = False
    """Whether only `minitron importance` measures it, and pruning in rounds cannot measure it again."""


LAYER_SCORES = (
    LayerScore(
        "block_importance",
        Figure("block importance"),
        f"Block importance: how much a layer changes the hidden state (1 {MINUS} cosine similarity).",
    ),
    LayerScore(
        "perplexity",
        Figure("increase of perplexity"),
        "Increase of perplexity when the layer alone is removed.",
        measured_by="--layer-removal",
    ),
    LayerScore(
        "perplexity_error",
        Figure("standard error of the increase"),
        "Standard error of the increase of perplexity, between samples.",
        ranks=False,
    ),
    LayerScore(
        "nll",
        Figure("loss without the layer", "nats/token"),
        "Mean loss in nats per token without the layer.",
        ranks=False,
    ),
    LayerScore(
        "collapse",
        Figure("order of merging"),
        "Order in which layers are merged into those before them; those that never are share the last place.",
        measured_by="collapse=2",
        is_measured_once=True,
    ),
    LayerScore(
        "learned",
        Figure("mean of the learned gate"),
        "Mean of a gate of the layer that was trained to a target shape: 1 is open, 0 closed.",
        measured_by="learned.shape.layer=N",
        is_measured_once=True,
    ),
    LayerScore(
        "block_perplexity",
        Figure("increase of perplexity without the block"),
        "Increase of perplexity when a contiguous block of layers is removed.",
        measured_by="blocks=[{n}]",
        is_of_blocks=True,
    ),
    LayerScore(
        "block_task",
        Figure("task score lost without the block"),
        "Score that a task loses when a contiguous block of layers is removed.",
        measured_by="blocks=[{n}] block_task=winogrande:5",
        is_of_blocks=True,
    ),
    LayerScore(
        "block_cosine",
        Figure("cosine distance of the block's ends"),
        f"How far a contiguous block of layers takes the hidden state (1 {MINUS} cosine similarity).",
        measured_by="block_distances=[{n}]",
        is_of_blocks=True,
    ),
    LayerScore(
        "block_angle",
        Figure("angle between the block's ends", "of a half turn"),
        "Angle by which a contiguous block of layers turns the hidden state, as a share of a half turn.",
        measured_by="block_distances=[{n}]",
        is_of_blocks=True,
    ),
)
"""The registry: a layer score is one entry here, and an observer or a stage that measures it."""


def layer_score(kind: str) -> LayerScore:
    """Registered score of that kind; for a stored kind that is not registered, one titled by its name."""
    title = kind.replace("_", " ")
    unknown = LayerScore(kind, Figure(title), f"{title[:1].upper()}{title[1:]}.", ranks=False)
    return next((score for score in LAYER_SCORES if score.kind == kind), unknown)


def rankings(*, of_blocks: bool | None = None) -> list[str]:
    """Kinds that can rank layers: all of them, or only those of single layers or of blocks."""
    return [s.kind for s in LAYER_SCORES if s.ranks and of_blocks in (None, s.is_of_blocks)]
