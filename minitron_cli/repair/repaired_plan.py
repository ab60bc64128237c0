"""Repair a pruning plan: which repairs apply, what they are fitted on, and how much they help."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from minitron_cli import progress
from minitron_cli.artifacts.build import StageBuild
from minitron_cli.checkpoint import hf
from minitron_cli.data.batches import sample_ids
from minitron_cli.data.pack import Blocks
from minitron_cli.errors import CheckpointError, DataError, EnvironmentFault
from minitron_cli.evaluate.perplexity import kl_to_parent, perplexity
from minitron_cli.layerwise.config import CalibrationConfig
from minitron_cli.memory import fits
from minitron_cli.model.residual_stream import rotation_obstacle
from minitron_cli.prune.child_builder import ChildBuilder
from minitron_cli.prune.config import PruneConfig
from minitron_cli.prune.plan import PrunePlan
from minitron_cli.repair.closed_form import ClosedFormRepair, SampledBlocks
from minitron_cli.repair.pca_rotation import check_rotatable
from minitron_cli.results.prune import HeldOut, RepairEffect, RepairResult
from minitron_cli.results.search import CalibrationUse

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SCORE_BLOCKS = 64  # held-out blocks on which the child is compared before and after a repair
PRUNED_AXES = {
    "rotate": {"hidden"},
    "rescale": {"hidden"},
    "least_squares": {"layer", "hidden", "head", "ffn"},
}
"""Repair -> the axes whose pruning it can compensate for."""


def repaired(
    work: StageBuild,
    builder: ChildBuilder,
    plan: PrunePlan,
    config: PruneConfig,
    calibration: CalibrationConfig,
    train: Blocks,
    validation: Blocks,
) -> tuple[PrunePlan, RepairResult | None]:
    """Plan with the repairs that the config asks for, and their effect on held-out text; None if none applies.

    The plan stays as it is if the repair takes the child further from its parent on that text.
    """
    repairs = applicable(plan, config)
    if not repairs:
        if config.repair != "auto":
            progress.warn(f"--repair {config.repair} has no effect: no axis that it repairs is pruned")
        return plan, None
    if "hidden" in plan.kept and config.repair == "auto" and (reason := rotation_obstacle(plan.parent)):
        progress.say(f"the residual stream keeps channels, not directions: {reason}")
    is_resident = _is_resident(builder, calibration)
    if "rescale" in repairs and not is_resident:
        raise EnvironmentFault(
            "rescale needs parent and child in memory together, and they do not fit: use --repair all, "
            "which also rescales norms, one layer at a time"
        )
    fit = closed_form_repair(builder, config, calibration, train, work.scratch / "repair", resume=work.resume)
    after = fit.repaired(plan, repairs)
    strengths = None
    if "rescale" in repairs:
        after, strengths = fit.rescaled(after)
    if not is_resident:
        progress.warn("parent and child do not fit into memory together: the effect of the repair is not measured")
    effect = _Effect(builder, fit.model, validation).of(plan, after) if is_resident else None
    is_kept = effect is None or effect.after.kl <= effect.before.kl
    if effect and not is_kept:
        progress.warn(
            f"the repair took the child further from its parent (held-out KL {effect.before.kl:.4g} before, "
            f"{effect.after.kl:.4g} after), so the plain child is written: fit it to more text (repair_samples)"
        )
    found = RepairResult(repairs=tuple(sorted(repairs)), is_kept=is_kept, strengths=strengths, effect=effect)
    return (after if is_kept else plan), found


def with_repair(
    builder: ChildBuilder, config: PruneConfig, calibration: CalibrationConfig, train: Blocks, scratch: Path
) -> ChildBuilder:
    """A builder whose candidates are repaired before they are scored, but for `rescale`, which needs trials."""
    fit = closed_form_repair(builder, config, calibration, train, scratch)

    def repair(plan: PrunePlan) -> PrunePlan:
        return fit.repaired(plan, applicable(plan, config) - {"rescale"}, str(plan.child))

    return replace(builder, repair=repair)


def closed_form_repair(
    builder: ChildBuilder,
    config: PruneConfig,
    calibration: CalibrationConfig,
    train: Blocks,
    scratch: Path,
    *,
    resume: bool = True,
) -> ClosedFormRepair:
    """Repair of any plan for the builder's parent, on the samples that the config asks for."""
    context, path = builder.context, builder.parent.path
    load = hf.load_model if _is_resident(builder, calibration) else hf.empty_model
    return ClosedFormRepair(
        builder,
        SampledBlocks(train, sample_ids(calibration.seed, 0, min(config.repair_samples, len(train)), len(train))),
        scratch,
        load(path, device=context.device, dtype=context.dtype),
        calibration.batch_size,
        calibration.activation_budget,
        resume=resume,
    )


def applicable(plan: PrunePlan, config: PruneConfig) -> frozenset[str]:
    """Repairs of the config that have something to do. CheckpointError if the model cannot take one of them."""
    pruned = {axis for axis, size in plan.child.sizes.items() if size < plan.parent.sizes[axis]}
    found = {name for name in config.repairs if PRUNED_AXES[name] & pruned}
    if config.repair == "auto" and rotation_obstacle(plan.parent):
        found.discard("rotate")
    if "rotate" in found:
        check_rotatable(plan.parent)
    if "rescale" in found and plan.parent.family.norm != "rms":
        raise CheckpointError(
            f"the norms of a {plan.parent.family.model_type} model subtract the mean and cannot be rescaled: "
            "use --repair auto"
        )
    return frozenset(found)


def calibration_use(config: PruneConfig, train: Blocks) -> CalibrationUse:
    """Text that a repair is fitted on."""
    return CalibrationUse(samples=min(config.repair_samples, len(train)), sequence_length=train.sequence_length)


def check_enough_text(config: PruneConfig, train: Blocks) -> None:
    """Raise DataError if there are fewer blocks than a repair that was asked for is to be fitted on."""
    if config.repair != "auto" and config.repair_samples > len(train):
        raise DataError(
            f"prune.repair_samples is {config.repair_samples} and the data has {len(train)} blocks to fit a repair on: "
            "lower prune.repair_samples or data.sequence_length, or add text"
        )


def _is_resident(builder: ChildBuilder, calibration: CalibrationConfig) -> bool:
    """Whether parent and child may be in memory together."""
    context, parent = builder.context, builder.parent
    if calibration.mode != "auto":
        return calibration.mode == "resident"
    return fits(2 * parent.size_bytes(context.dtype), calibration.activation_budget, context.device)


@dataclass(frozen=True)
class _Effect:
    """Loss and KL to the parent on held-out blocks, before and after a repair."""

    builder: ChildBuilder
    parent: "PreTrainedModel"
    blocks: Blocks

    def of(self, before: PrunePlan, after: PrunePlan) -> RepairEffect:
        """Figures of the children of both plans."""
        parent_loss, plain, repaired = self._loss(self.parent), self._child(before), self._child(after)
        tokens = min(SCORE_BLOCKS, len(self.blocks)) * self.blocks.sequence_length
        return RepairEffect(parent_loss=parent_loss, before=plain, after=repaired, tokens=tokens)

    def _loss(self, model: "PreTrainedModel") -> float:
        return perplexity(model, self.blocks, max_blocks=SCORE_BLOCKS).loss_nats

    def _child(self, plan: PrunePlan) -> HeldOut:
        child = self.builder.model(plan)
        kl = kl_to_parent(child, self.parent, self.blocks, max_blocks=SCORE_BLOCKS).kl_nats
        return HeldOut(loss=self._loss(child), kl=kl)
