"""Repair a pruning plan: which repairs apply, what they are fitted on, and how much they help."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

from minitron_cli import progress
from minitron_cli.artifacts.build import StageBuild
from minitron_cli.checkpoint import hf
from minitron_cli.data.batches import calibration_ids
from minitron_cli.data.pack import Blocks
from minitron_cli.errors import CheckpointError, DataError, EnvironmentFault
from minitron_cli.layerwise.config import CalibrationConfig
from minitron_cli.memory import fits
from minitron_cli.model.reader_bias import check_writable
from minitron_cli.model.residual_stream import rotation_obstacle
from minitron_cli.prune.child_builder import ChildBuilder
from minitron_cli.prune.config import SCORE_REPAIRS, PruneConfig, ScoreRepair
from minitron_cli.prune.plan import PrunePlan
from minitron_cli.repair.acceptance import HeldOutText, Part, keep_what_gains
from minitron_cli.repair.closed_form import ClosedFormRepair, SampledBlocks
from minitron_cli.repair.fitted_child import PARTS
from minitron_cli.repair.pca_rotation import check_rotatable
from minitron_cli.results.prune import RepairResult
from minitron_cli.results.search import CalibrationUse

PRUNED_AXES = {
    "rotate": {"hidden"},
    "rescale": {"hidden"},
    "least_squares": {"layer", "hidden", "head", "ffn"},
    "bias": {"head", "ffn"},
    "merge": {"layer"},
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

    Whatever part of a repair takes the child further from its parent on that text is left out.
    """
    repairs = applicable(plan, config)
    if not repairs:
        if config.repair != "auto":
            progress.warn(f"--repair {config.repair} has no effect: no axis that it repairs is pruned")
        return plan, None
    if "hidden" in plan.kept and config.repair == "auto" and (reason := rotation_obstacle(plan.parent)):
        progress.say(f"the residual stream keeps channels, not directions: {reason}")
    both_fit = is_resident(builder, calibration)
    if "rescale" in repairs and not both_fit:
        raise EnvironmentFault(
            "rescale needs parent and child in memory together, and they do not fit: use --repair all, "
            "which also rescales norms, one layer at a time"
        )
    fit = closed_form_repair(builder, config, calibration, train, work.scratch / "repair", resume=work.resume)
    if not both_fit:
        progress.warn("parent and child do not fit into memory together: the effect of the repair is not measured")
        return fit.repaired(plan, repairs), RepairResult(repairs=tuple(sorted(repairs)))
    return _kept(fit, plan, repairs, HeldOutText(builder, fit.model, validation))


def _kept(
    fit: ClosedFormRepair, plan: PrunePlan, repairs: frozenset[str], text: HeldOutText
) -> tuple[PrunePlan, RepairResult]:
    """Plan with those parts of the repairs that bring the child nearer to its parent, and what they gain."""
    strengths: dict[str, float] = {}

    def rescaled(plan: PrunePlan) -> PrunePlan:
        plan, found = fit.rescaled(plan)
        strengths.update(found)
        return plan

    kept = keep_what_gains(plan, _parts(fit, repairs, rescaled), text.figures)
    effect, is_rescaled = text.effect(kept), "rescale" in kept.parts
    return kept.plan, RepairResult(
        repairs=tuple(sorted(kept.parts)),
        left_out=kept.left_out,
        is_kept=bool(kept.parts),
        strengths=strengths if is_rescaled else None,
        effect=effect,
    )


def _parts(
    fit: ClosedFormRepair, repairs: frozenset[str], rescaled: Callable[[PrunePlan], PrunePlan]
) -> Sequence[Part]:
    """Parts of the repairs, in the order in which they are applied."""
    of_squares = ((f"least_squares of {part}", partial(fit.fitted, parts=(part,))) for part in reversed(PARTS))
    unscaled = Part("rotate", "rotate", partial(fit.rotated, rescale=False))
    parts = (
        Part("rotate", "rescaling of norms after rotate", fit.rotated, (unscaled,)),
        Part("least_squares", "least_squares", fit.fitted, tuple(Part(name, name, fit) for name, fit in of_squares)),
        Part("rescale", "rescale", rescaled),
        Part("bias", "bias", fit.compensated),
        Part("merge", "merge", fit.merged),
    )
    return [part for part in parts if part.name in repairs]


def with_repair(
    builder: ChildBuilder,
    config: PruneConfig,
    setting: ScoreRepair,
    calibration: CalibrationConfig,
    train: Blocks,
    scratch: Path,
) -> ChildBuilder:
    """A builder whose candidates are repaired as far as the setting says. The parent is loaded when it is needed."""
    fit = cache(lambda: closed_form_repair(builder, config, calibration, train, scratch))

    def repair(plan: PrunePlan) -> PrunePlan:
        repairs = of_candidate(plan, config, setting)
        return fit().repaired(plan, repairs, str(plan.child)) if repairs else plan

    return replace(builder, repair=repair)


def of_candidate(plan: PrunePlan, config: PruneConfig, setting: ScoreRepair) -> frozenset[str]:
    """Repairs of a candidate with this plan before it is scored."""
    return applicable(plan, config) & SCORE_REPAIRS[setting]


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
    load = hf.load_model if is_resident(builder, calibration) else hf.empty_model
    return ClosedFormRepair(
        builder,
        SampledBlocks(train, calibration_ids(calibration.seed, min(config.repair_samples, len(train)), len(train))),
        scratch,
        load(path, device=context.device, dtype=builder.dtype),
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
    if "bias" in found:
        check_writable(plan.parent.family, PRUNED_AXES["bias"] & pruned)
    return frozenset(found)


def calibration_use(config: PruneConfig, train: Blocks) -> CalibrationUse:
    """Text that a repair is fitted on."""
    return CalibrationUse(samples=min(config.repair_samples, len(train)), sequence_length=train.sequence_length)


def check_enough_text(config: PruneConfig, train: Blocks) -> None:
    """Raise DataError if a repair that was asked for has no block to be fitted on, or fewer than were asked for.

    `config` is as the user gave it: `fitted` sets numbers that count as asked for.
    """
    least = config.repair_samples if "repair_samples" in config.model_fields_set else 1
    if config.repair != "auto" and least > len(train):
        raise DataError(
            f"prune.repair_samples is {config.repair_samples} and the data has {len(train)} blocks to fit a repair on: "
            "lower prune.repair_samples or data.sequence_length, or add text"
        )


def is_resident(builder: ChildBuilder, calibration: CalibrationConfig) -> bool:
    """Whether parent and child may be in memory together."""
    context, parent = builder.context, builder.parent
    if calibration.mode != "auto":
        return calibration.mode == "resident"
    return fits(2 * parent.size_bytes(builder.dtype), calibration.activation_budget, context.device)
