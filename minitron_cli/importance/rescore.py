"""Scores of a partly pruned model, for pruning in rounds."""

from minitron_cli.checkpoint import hf
from minitron_cli.data.batches import batch, sample_ids
from minitron_cli.data.pack import Blocks
from minitron_cli.importance.collect import collect
from minitron_cli.importance.config import ImportanceConfig
from minitron_cli.importance.magnitude import magnitude
from minitron_cli.prune.child_builder import ChildBuilder
from minitron_cli.prune.plan import PrunePlan
from minitron_cli.scores.scores import Scores


def rescore(builder: ChildBuilder, plan: PrunePlan, blocks: Blocks, calibration: ImportanceConfig) -> Scores:
    """Scores of the model that a plan leaves, on the samples that the parent was scored on."""
    model, ids = builder.model(plan), sample_ids(calibration.seed, 0, calibration.samples, len(blocks))
    size = calibration.batch_size
    activations = collect(
        model,
        plan.parent.family,
        (batch(blocks, ids[start : start + size]) for start in range(0, len(ids), size)),
        layer_removal=builder.ranking.layers == "perplexity",
        pre_activation=calibration.pre_activation,
        samples=len(ids),
    )
    return activations | magnitude(hf.stored_tensors(model).__getitem__, plan.child)
