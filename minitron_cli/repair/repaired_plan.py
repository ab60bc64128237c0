"""Mending a cut: what a pass over the parent says, what is made of it, and what it is worth."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from minitron_cli import io, progress
from minitron_cli.artifacts.build import StageBuild
from minitron_cli.checkpoint import hf
from minitron_cli.data.batches import Batch, batch, sample_ids
from minitron_cli.data.pack import Blocks
from minitron_cli.errors import CheckpointError, DataError, EnvironmentFault
from minitron_cli.evaluate.perplexity import kl_to_parent, perplexity
from minitron_cli.layerwise.config import CalibrationConfig
from minitron_cli.layerwise.runner import ResidentWeights, StoredWeights, Weights
from minitron_cli.memory import fits
from minitron_cli.model.residual_stream import foldable, rotation_obstacle
from minitron_cli.prune.child_builder import ChildBuilder
from minitron_cli.prune.child_config import child_config
from minitron_cli.prune.config import PruneConfig
from minitron_cli.prune.plan import PrunePlan
from minitron_cli.prune.transform import Repair, gains
from minitron_cli.repair import norm_rescale
from minitron_cli.repair.fitted_child import FittedChild
from minitron_cli.repair.layerwise_fit import Models, fit_layerwise
from minitron_cli.repair.norm_statistics import second_moments
from minitron_cli.repair.pca_rotation import check_rotatable, leading_directions
from minitron_cli.repair.store import Store

if TYPE_CHECKING:
    from transformers import PreTrainedModel

KL_BLOCKS = 32  # of the blocks fitted on, to choose a norm's strength by
SCORE_BLOCKS = 64  # held-out blocks that tell what a repair is worth


@dataclass(frozen=True)
class Chosen:
    """Some blocks of many."""

    blocks: Blocks
    ids: Sequence[int]

    def __len__(self) -> int:
        return len(self.ids)

    def tokens(self, i: int) -> Tensor:
        return self.blocks.tokens(self.ids[i])

    def positions(self, i: int) -> Tensor:
        return self.blocks.positions(self.ids[i])

    def documents(self, i: int) -> Tensor:
        return self.blocks.documents(self.ids[i])

    def loss_mask(self, i: int) -> Tensor | None:
        return self.blocks.loss_mask(self.ids[i])

    def batches(self, size: int) -> list[Batch]:
        return [batch(self.blocks, self.ids[start : start + size]) for start in range(0, len(self.ids), size)]


def repaired(
    work: StageBuild,
    cutter: ChildBuilder,
    plan: PrunePlan,
    config: PruneConfig,
    calibration: CalibrationConfig,
    train: Blocks,
    validation: Blocks,
) -> PrunePlan:
    """The plan, mended; loss and KL before and after go into the summary. Remembered, so that a kill repeats little."""
    repairs = applicable(plan, config)
    if not repairs:
        if config.repair != "auto":
            progress.warn(f"--repair {config.repair} has nothing to mend: the cut leaves its axes alone")
        return plan
    if "hidden" in plan.kept and config.repair == "auto" and (reason := rotation_obstacle(plan.parent)):
        progress.say(f"the residual stream is cut to channels, not to directions: {reason}")
    is_resident = _is_resident(cutter, calibration)
    if "rescale" in repairs and not is_resident:
        raise EnvironmentFault(
            "rescale tries strengths on parent and child in memory together, and they do not fit: use --repair all, "
            "which sets norms right one layer at a time"
        )
    fit = fit_of(cutter, config, calibration, train, work.scratch / "repair", resume=work.resume)
    after = fit.mended(plan, repairs)
    summary: dict[str, Any] = {"repairs": sorted(repairs), "samples": len(fit.samples)}
    if "rescale" in repairs:
        after, summary["strengths"] = fit.rescaled(after)
    if is_resident:
        measured = _Measured(cutter, fit.model, validation)
        summary |= {"parent_loss": measured.loss(fit.model), "before": measured.of(plan), "after": measured.of(after)}
        if summary["after"]["kl"] > summary["before"]["kl"]:
            progress.warn("the repair took the child further from its parent: look at the KL, or leave it out")
    else:
        progress.warn("parent and child do not fit into memory together: what the repair is worth is not measured")
    work.summary["repair"] = summary
    return after


def fit_of(
    cutter: ChildBuilder,
    config: PruneConfig,
    calibration: CalibrationConfig,
    train: Blocks,
    scratch: Path,
    *,
    resume: bool = True,
) -> "Fit":
    """Ready to mend any cut of the parent, on the samples that the config asks for."""
    context, path = cutter.context, cutter.parent.path
    load = hf.load_model if _is_resident(cutter, calibration) else hf.empty_model
    return Fit(
        cutter,
        Chosen(train, sample_ids(calibration.seed, 0, min(config.repair_samples, len(train)), len(train))),
        scratch,
        load(path, device=context.device, dtype=context.dtype),
        calibration.batch_size,
        calibration.activation_budget,
        resume=resume,
    )


def mending(
    cutter: ChildBuilder, config: PruneConfig, calibration: CalibrationConfig, train: Blocks, scratch: Path
) -> ChildBuilder:
    """A cutter whose candidates are mended before they are scored. `rescale` is left to the cut: it needs trials."""
    fit = fit_of(cutter, config, calibration, train, scratch)

    def mend(plan: PrunePlan) -> PrunePlan:
        return fit.mended(plan, applicable(plan, config) - {"rescale"}, str(plan.child))

    return replace(cutter, mend=mend)


def text_of(config: PruneConfig, train: Blocks) -> tuple[int, int]:
    """How many tokens a repair is fitted on, and how many of them in each block."""
    return min(config.repair_samples, len(train)) * train.sequence_length, train.sequence_length


def check_enough(config: PruneConfig, train: Blocks) -> None:
    """Raise DataError if there is less text than a repair that was asked for is to be fitted on."""
    if config.repair != "auto" and config.repair_samples > len(train):
        raise DataError(
            f"{config.repair_samples} samples to fit a repair on are more than the data's {len(train)}: "
            "lower prune.repair_samples or data.sequence_length, or add text"
        )


def _is_resident(cutter: ChildBuilder, calibration: CalibrationConfig) -> bool:
    """Whether parent and child may be in memory together."""
    context, parent = cutter.context, cutter.parent
    if calibration.mode != "auto":
        return calibration.mode == "resident"
    return fits(2 * parent.size_bytes(context.dtype), calibration.activation_budget, context.device)


@dataclass(frozen=True)
class _Measured:
    """Loss and KL to the parent on some held-out blocks."""

    cutter: ChildBuilder
    teacher: "PreTrainedModel"
    blocks: Blocks

    def loss(self, model: "PreTrainedModel") -> float:
        return perplexity(model, self.blocks, max_blocks=SCORE_BLOCKS).loss_nats

    def of(self, plan: PrunePlan) -> dict[str, float]:
        child = self.cutter.model(plan)
        kl = kl_to_parent(child, self.teacher, self.blocks, max_blocks=SCORE_BLOCKS).kl_nats
        return {"loss": self.loss(child), "kl": kl}


def applicable(plan: PrunePlan, config: PruneConfig) -> frozenset[str]:
    """Those of the repairs that have something to mend. CheckpointError if one was asked for that the model refuses."""
    cut = {axis for axis, size in plan.child.sizes.items() if size < plan.parent.sizes[axis]}
    mends = {"rotate": {"hidden"}, "rescale": {"hidden"}, "least_squares": {"layer", "hidden", "head", "ffn"}}
    found = {name for name in config.repairs if mends[name] & cut}
    if config.repair == "auto" and rotation_obstacle(plan.parent):
        found.discard("rotate")
    if "rotate" in found:
        check_rotatable(plan.parent)
    if "rescale" in found and plan.parent.family.norm != "rms":
        raise CheckpointError(f"{plan.parent.family.model_type}'s norms cannot be rescaled: they subtract the mean")
    return frozenset(found)


@dataclass(frozen=True)
class Fit:
    """What closed forms make of a cut, from samples of text. What does not depend on the cut is found once."""

    cutter: ChildBuilder
    samples: Chosen
    scratch: Path
    model: "PreTrainedModel"
    """The parent, whose weights may still be on disk."""
    batch_size: int = 8
    activation_budget: int = 1_000_000_000
    resume: bool = True
    save_every_s: float = 30

    def mended(self, plan: PrunePlan, repairs: frozenset[str], label: str = "solved") -> PrunePlan:
        """The plan with everything that needs no trial. What is solved for is kept under the label."""
        parent = self.cutter.parent
        if "rotate" in repairs:
            basis_DK = leading_directions(self.moments(), plan.child.sizes["hidden"])
            norm_gains = gains(parent.shape, foldable(parent.shape), parent.checkpoint.read)
            plan = plan.repaired(Repair(basis_DK, gain_D=norm_gains))
        return self._solved(plan, self._store(label)) if "least_squares" in repairs else plan

    def moments(self) -> Tensor:
        """Of the inputs of all norms, whatever is cut. Those of each norm are kept in the store."""
        store = self._store("norms")
        return store.total(
            lambda: second_moments(
                self.model,
                self.cutter.parent.family,
                self.samples.batches(self.batch_size),
                self._weights(),
                store.put_norms,
                scratch=store.directory,
                activation_budget=self.activation_budget,
                resume=self.resume,
                save_every_s=self.save_every_s,
            )
        )

    def _solved(self, plan: PrunePlan, store: Store) -> PrunePlan:
        """Every matrix of the child that reads a norm or writes to the stream, fitted to what the parent computes."""
        context, checkpoint = self.cutter.context, self.cutter.parent.checkpoint
        fitted = FittedChild(plan, checkpoint, store)
        if store.is_complete:
            return fitted.plan
        config = hf.config_from_dict(child_config(checkpoint.config, plan), "the config of the cut model")
        child = hf.empty_model_of(config, device=context.device, dtype=self.model.dtype)
        fit_layerwise(
            Models(self.model, self._weights(), child, plan.parent.family, _layers(plan)),
            self.samples.batches(self.batch_size),
            fitted,
            scratch=store.directory,
            activation_budget=self.activation_budget,
            resume=self.resume,
            save_every_s=self.save_every_s,
        )
        store.complete()
        return fitted.plan

    def _store(self, name: str) -> Store:
        io.make_dirs(self.scratch / name)
        return Store(self.scratch / name)

    def _weights(self) -> Weights:
        parent, context = self.cutter.parent, self.cutter.context
        if any(parameter.is_meta for parameter in self.model.parameters()):
            return StoredWeights(self.model, parent.family, parent.checkpoint.read, context.device)
        return ResidentWeights(self.model)

    def rescaled(self, plan: PrunePlan) -> tuple[PrunePlan, dict[str, float]]:
        """The plan with those norms set right that bring it nearer to the parent, and how strongly each kind was."""
        few = Chosen(self.samples.blocks, self.samples.ids[:KL_BLOCKS])
        self.moments()
        child, kept = self.cutter.model(plan), _kept_hidden(plan)
        kinds: dict[str, dict[str, float]] = {template: {} for template in plan.parent.family.links}
        for name, moments in self._store("norms").norms():
            if plan.child_name(name) is not None:
                kinds[plan.parent.family.match(name).template][name] = norm_rescale.scale(moments, kept)
        plain = {
            name: child.get_parameter(str(plan.child_name(name))) for by_name in kinds.values() for name in by_name
        }
        offset = plan.parent.family.norm_offset
        multiplies_by = {name: parameter.detach().float() + offset for name, parameter in plain.items()}

        @torch.no_grad()
        def distance(scales: Mapping[str, float]) -> float:
            for name, parameter in plain.items():
                parameter.copy_(multiplies_by[name] * scales.get(name, 1.0) - offset)
            return kl_to_parent(child, self.model, few).kl_nats

        strengths = norm_rescale.strengths(kinds, distance)
        repair = replace(plan.repair, scales=norm_rescale.scales(kinds, strengths))
        return plan.repaired(repair), strengths


def _layers(plan: PrunePlan) -> list[int]:
    kept = plan.at("layer")
    return list(range(plan.parent.sizes["layer"])) if kept is None else kept.tolist()


def _kept_hidden(plan: PrunePlan) -> Tensor:
    if plan.repair.basis_DK is not None:
        return plan.repair.basis_DK
    kept = plan.at("hidden")
    assert kept is not None
    return kept
