"""Configurations of prunings that another one is compared with."""

from minitron_cli.artifacts.artifact import Artifact
from minitron_cli.inputs.source_model import SourceModel
from minitron_cli.model.axes import PRUNABLE, Axis
from minitron_cli.model.shape import Shape
from minitron_cli.prune.config import PruneConfig
from minitron_cli.results.prune import PruneResult
from minitron_cli.scores.metric import Random


def at_random(config: PruneConfig, like: Artifact) -> PruneConfig:
    """Configuration of pruning to the shape of `like`, with random channels, heads and neurons and no repair.

    The same layers are removed: the control compares choices of width only.
    """
    ranking = config.ranking.model_copy(update={"width": Random(), "head_residual": "none"})
    return PruneConfig(
        shape=_sizes_of(like, config),
        drop_layers=config.drop_layers,
        ranking=ranking,
        repair="none",
        untie=config.untie,
        write_as=config.write_as,
        serving_lint=config.serving_lint,
    )


def unrepaired(config: PruneConfig, like: Artifact) -> PruneConfig:
    """Configuration of pruning to the shape of `like` by the same scores, without repair."""
    return config.model_copy(update={"shape": _sizes_of(like, config), "budget": None, "size": None, "repair": "none"})


def at_once(config: PruneConfig, original: SourceModel, like: Shape) -> PruneConfig:
    """Configuration of pruning the original of a chain to the shape `like`, ranked and repaired as by `config`."""
    before = original.shape.sizes
    changed = {axis: like.sizes[axis] for axis in PRUNABLE if like.sizes.get(axis) != before.get(axis)}
    untie = original.shape.is_tied and not like.is_tied
    given = {"shape": changed, "drop_layers": (), "budget": None, "size": None, "untie": untie}
    return config.model_copy(update=given)


def _sizes_of(like: Artifact, config: PruneConfig) -> dict[Axis, int] | None:
    """Sizes of a pruned model that differ from its parent's, beside the layers that the configuration removes."""
    result = like.result(PruneResult)
    before, after = result.parent.sizes, result.child.sizes
    changed = {axis: after[axis] for axis in PRUNABLE if after.get(axis) != before.get(axis)}
    if config.drop_layers:
        changed.pop("layer", None)
    return changed or None
