"""Tokens and FLOPs of a training run."""

from typing import TYPE_CHECKING, Any

from minitron_cli.cost import compute
from minitron_cli.data.pack import Blocks
from minitron_cli.distill.config import DistillConfig
from minitron_cli.distill.trainer import TrainResult
from minitron_cli.model.families import family_of
from minitron_cli.model.shape import Shape

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def ledger_of(
    result: TrainResult,
    student: "PreTrainedModel",
    teacher: "PreTrainedModel | None",
    config: DistillConfig,
    train_blocks: Blocks,
    validation_blocks: Blocks,
) -> list[dict[str, Any]]:
    """Cost of the whole run, resumed parts included. A teacher that no loss needs runs at evaluations only."""
    shapes = [Shape.of(family_of(model.config), model.config) for model in (student, teacher) if model is not None]
    asked = shapes[1] if config.needs_teacher and len(shapes) > 1 else None
    entries = compute.training(shapes[0], asked, result.tokens, train_blocks.sequence_length)
    length, blocks = validation_blocks.sequence_length, len(validation_blocks)
    count = blocks if config.eval_blocks is None else min(config.eval_blocks, blocks)
    return compute.as_json([*entries, compute.held_out(shapes, len(result.validation) * count * length, length)])
