"""Work of measuring the landscape around models and between them."""

from collections.abc import Sequence

from minitron_cli.cost import compute
from minitron_cli.cost.compute import model_size
from minitron_cli.landscape.config import LandscapeConfig
from minitron_cli.landscape.loss import BATCH
from minitron_cli.landscape.plane import shares
from minitron_cli.price.evaluation import logits_bytes
from minitron_cli.price.work import ITEM_BYTES, Moved, Subject, Work

FOR_A_RADIUS = 6
"""Evaluations until the end of a basin is found along a direction."""
AROUND = 3
"""Further evaluations of a model: before its radii, of itself, and at the end of the step along the gradient."""
COPIES = 4
"""Of the weights: those that move, where they began, a direction and what is added."""


def evaluations(config: LandscapeConfig, models: int) -> int:
    """Number of evaluations of the loss, about."""
    grid = len(shares(config.plane)) ** 2 if config.plane else 0
    return models * (AROUND + FOR_A_RADIUS * config.directions) + (models - 1) * config.line_points + grid


def work(models: Sequence[Subject], config: LandscapeConfig, length: int, held_out_blocks: int) -> Work:
    """Work of measuring models of one shape on blocks of `length` tokens."""
    first, blocks = models[0], min(config.blocks, held_out_blocks)
    count, size = evaluations(config, len(models)), model_size(first.shape, length)
    run = first.runs(min(BATCH, blocks), length, "float32")
    weights = first.shape.parameters() * ITEM_BYTES["float32"]
    return Work(
        what=f"about {count:,} evaluations of {blocks:,} x {length:,} tokens",
        passes=(compute.held_out([size], count * blocks * length),),
        model=run,
        moved={"load the models": Moved(starts=1, read=sum(model.weights_bytes for model in models))},
        certain={"weights": weights, "copies": (COPIES - 1) * weights},
        transient={"activations": run.layer_bytes(), "logits": logits_bytes(run)},
    )
