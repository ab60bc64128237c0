"""Scores of a partly pruned model, for pruning in rounds."""

from dataclasses import replace

from minitron_cli.checkpoint import hf
from minitron_cli.data.pack import Blocks
from minitron_cli.importance.collect import collect
from minitron_cli.importance.config import ImportanceConfig
from minitron_cli.importance.magnitude import magnitude
from minitron_cli.layerwise.calibration import Calibration
from minitron_cli.prune.child_builder import ChildBuilder
from minitron_cli.prune.plan import PrunePlan
from minitron_cli.scores.scores import Scores


def rescore(builder: ChildBuilder, plan: PrunePlan, blocks: Blocks, config: ImportanceConfig) -> Scores:
    """Scores of the model that a plan leaves, on the samples that the parent was scored on."""
    model = builder.model(plan)
    removes = builder.ranking.layers == "perplexity" and plan.child.sizes["layer"] > 1
    options = replace(config.observer_options, removal_lengths=(1,) if removes else (), distance_lengths=())
    activations = collect(model, plan.child.family, Calibration.of(config, blocks), options)
    return activations | magnitude(hf.stored_tensors(model, plan.child.tensors()).__getitem__, plan.child)
