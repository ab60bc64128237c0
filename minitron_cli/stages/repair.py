"""Mending a cut: what a pass over the parent says, what is made of it, and what it is worth."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from minitron_cli import io, progress
from minitron_cli.checkpoint import hf
from minitron_cli.data.batches import Batch, batch, sample_ids
from minitron_cli.data.pack import Blocks
from minitron_cli.errors import CheckpointError
from minitron_cli.evaluate.perplexity import kl_to_parent, perplexity
from minitron_cli.importance.config import ImportanceConfig
from minitron_cli.importance.passage import ResidentWeights, StoredWeights, Weights
from minitron_cli.importance.second_moments import second_moments
from minitron_cli.memory import fits
from minitron_cli.model.family import NAME_AXIS
from minitron_cli.model.residual import foldable
from minitron_cli.model.taps import taps
from minitron_cli.stages.cut import Cutter
from minitron_cli.stages.parent import Parent
from minitron_cli.stages.produce import Build
from minitron_cli.trim.plan import PrunePlan
from minitron_cli.trim.repair import rescale
from minitron_cli.trim.repair.gram import Gram, NormMoments
from minitron_cli.trim.repair.least_squares import reading, solve
from minitron_cli.trim.repair.repair import Repair, gains
from minitron_cli.trim.repair.rotate import check_rotatable, leading_directions
from minitron_cli.trim.repair.store import Store
from minitron_cli.trim.spec import PruneConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel

KL_BLOCKS = 32  # of the blocks fitted on, to choose a norm's strength by
SCORE_BLOCKS = 64  # held-out blocks that tell what a repair is worth


@dataclass(frozen=True)
class Findings:
    """What a pass over the parent says about one cut."""

    moments_DD: Tensor
    """Of the inputs of all norms."""
    store: Store


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

    def counts(self, i: int) -> Tensor | None:
        return self.blocks.counts(self.ids[i])

    def batches(self, size: int) -> list[Batch]:
        return [batch(self.blocks, self.ids[start : start + size]) for start in range(0, len(self.ids), size)]


def repaired(
    work: Build,
    cutter: Cutter,
    plan: PrunePlan,
    config: PruneConfig,
    calibration: ImportanceConfig,
    train: Blocks,
    validation: Blocks,
) -> PrunePlan:
    """The plan, mended; loss and KL before and after go into the summary. Remembered, so that a kill repeats little."""
    repairs = applicable(plan, config.repairs)
    if not repairs:
        progress.warn(f"--repair {config.repair} has nothing to mend: the cut leaves its axes alone")
        return plan
    context, parent = cutter.context, cutter.parent
    fitting = Chosen(train, sample_ids(calibration.seed, 0, config.repair_samples, len(train)))
    is_resident = fits(2 * parent.size_bytes(context.dtype), calibration.activation_budget, context.device)
    load = hf.load_model if is_resident else hf.empty_model
    model = load(parent.path, device=context.device, dtype=context.dtype)
    findings = find(
        cutter,
        plan,
        repairs,
        fitting,
        work.scratch / "repair",
        model=model,
        batch_size=calibration.batch_size,
        activation_budget=calibration.activation_budget,
        resume=work.resume,
    )
    after = mended(plan, findings, repairs, parent)
    summary: dict[str, Any] = {"repairs": sorted(repairs), "samples": config.repair_samples}
    if is_resident:
        measured = _Measured(cutter, model, validation)
        if "rescale" in repairs:
            few = Chosen(train, fitting.ids[:KL_BLOCKS])
            after, summary["strengths"] = rescaled(cutter, after, findings, model, few)
        summary |= {"parent_loss": measured.loss(model), "before": measured.of(plan), "after": measured.of(after)}
        if summary["after"]["kl"] > summary["before"]["kl"]:
            progress.warn("the repair took the child further from its parent: look at the KL, or leave it out")
    else:
        progress.warn("parent and child do not fit into memory together: nothing is rescaled, and no loss is measured")
    work.summary["repair"] = summary
    return after


@dataclass(frozen=True)
class _Measured:
    """Loss and KL to the parent on some held-out blocks."""

    cutter: Cutter
    teacher: "PreTrainedModel"
    blocks: Blocks

    def loss(self, model: "PreTrainedModel") -> float:
        return perplexity(model, self.blocks, max_blocks=SCORE_BLOCKS).loss_nats

    def of(self, plan: PrunePlan) -> dict[str, float]:
        child = self.cutter.model(plan)
        kl = kl_to_parent(child, self.teacher, self.blocks, max_blocks=SCORE_BLOCKS).kl_nats
        return {"loss": self.loss(child), "kl": kl}


def applicable(plan: PrunePlan, repairs: Iterable[str]) -> frozenset[str]:
    """Those of the repairs that have something to mend. CheckpointError if the model cannot be rotated."""
    cut = {axis for axis, size in plan.child.sizes.items() if size < plan.parent.sizes[axis]}
    mends = {"rotate": {"hidden"}, "rescale": {"hidden"}, "least_squares": {"hidden", "head", "ffn"}}
    found = frozenset(name for name in repairs if mends[name] & cut)
    if "rotate" in found:
        check_rotatable(plan.parent)
    if "rescale" in found and plan.parent.family.norm != "rms":
        raise CheckpointError(f"{plan.parent.family.model_type}'s norms cannot be rescaled: they subtract the mean")
    return found


def find(
    cutter: Cutter,
    plan: PrunePlan,
    repairs: frozenset[str],
    samples: Chosen,
    scratch: Path,
    *,
    model: "PreTrainedModel",
    batch_size: int = 8,
    activation_budget: int = 1_000_000_000,
    resume: bool = True,
    save_every_s: float = 30,
) -> Findings:
    """One pass over the samples. `model` is the parent, whose weights may still be on disk."""
    io.make_dirs(scratch)
    store, read = Store(scratch), cutter.parent.checkpoint.read
    keeps_norms = "rescale" in repairs or ("least_squares" in repairs and _is_stream_solved(plan))

    def finish(layer: int, grams: Mapping[str, Gram], moments: Mapping[str, NormMoments]) -> None:
        store.put_solved(
            layer, {name: solve(read(name), gram, _kept_inputs(plan, name)) for name, gram in grams.items()}
        )
        if keeps_norms:
            store.put_norms(layer, moments)

    moments_DD = second_moments(
        model,
        cutter.parent.family,
        samples.batches(batch_size),
        _weights(cutter, model),
        finish,
        layers=_layers(plan),
        readers=_readers(plan) if "least_squares" in repairs else (),
        norms=tuple(cutter.parent.family.links) if keeps_norms or "rotate" in repairs else (),
        scratch=scratch,
        activation_budget=activation_budget,
        resume=resume,
        save_every_s=save_every_s,
    )
    return Findings(moments_DD, store)


def _layers(plan: PrunePlan) -> list[int]:
    kept = plan.at("layer")
    return list(range(plan.parent.sizes["layer"])) if kept is None else kept.tolist()


def _readers(plan: PrunePlan) -> list[str]:
    """The matrices that read heads or neurons of which some are dropped, one in each layer."""
    found = (f"{tap.module}.weight" for tap in taps(plan.parent.family) if tap.axis in ("head", "ffn"))
    in_layers = (template for template in found if NAME_AXIS.findall(template) == ["layer"])
    return [template for template in in_layers if plan.indices(template.format(layer=0))[-1] is not None]


def _kept_inputs(plan: PrunePlan, name: str) -> Tensor:
    kept = plan.indices(name)[-1]
    assert kept is not None
    return kept


def _weights(cutter: Cutter, model: "PreTrainedModel") -> Weights:
    if any(parameter.is_meta for parameter in model.parameters()):
        return StoredWeights(model, cutter.parent.family, cutter.parent.checkpoint.read, cutter.context.device)
    return ResidentWeights(model)


def mended(plan: PrunePlan, findings: Findings, repairs: frozenset[str], parent: Parent) -> PrunePlan:
    """The plan with what needs no trial: the basis and what was solved for."""
    read, store, sizes = parent.checkpoint.read, findings.store, plan.parent.sizes
    basis_DK = readings = solved = None
    folded: Iterable[str] = ()
    if "rotate" in repairs:
        basis_DK = leading_directions(findings.moments_DD, plan.child.sizes["hidden"])
        folded = parent.family.links
    if "least_squares" in repairs:
        solved = store.solved()
        if _is_stream_solved(plan):
            kept_DK = torch.eye(sizes["hidden"])[:, plan.at("hidden")] if basis_DK is None else basis_DK
            readings = store.readings("turned" if "rotate" in repairs else "plain", partial(reading, kept_DK=kept_DK))
            folded = foldable(plan.parent)
    return plan.repaired(Repair(basis_DK, gains(plan.parent, folded, read), readings, solved=solved))


def _is_stream_solved(plan: PrunePlan) -> bool:
    is_cut = plan.child.sizes["hidden"] < plan.parent.sizes["hidden"]
    return is_cut and plan.parent.family.norm == "rms"


def rescaled(
    cutter: Cutter, plan: PrunePlan, findings: Findings, teacher: "PreTrainedModel", samples: Chosen
) -> tuple[PrunePlan, dict[str, float]]:
    """The plan with those norms set right that bring it nearer to the parent, and how strongly each kind was."""
    child, kept = cutter.model(plan), _kept_hidden(plan)
    kinds: dict[str, dict[str, float]] = {template: {} for template in plan.parent.family.links}
    for name, moments in findings.store.norms():
        kinds[plan.parent.family.match(name).template][name] = rescale.scale(moments, kept)
    plain = {name: child.get_parameter(str(plan.child_name(name))) for by_name in kinds.values() for name in by_name}
    weights = {name: parameter.detach().clone() for name, parameter in plain.items()}

    @torch.no_grad()
    def distance(scales: Mapping[str, float]) -> float:
        for name, parameter in plain.items():
            parameter.copy_(weights[name] * scales.get(name, 1.0))
        return kl_to_parent(child, teacher, samples).kl_nats

    strengths = rescale.strengths(kinds, distance)
    repair = replace(plan.repair, scales=rescale.scales(kinds, strengths))
    return plan.repaired(repair), strengths


def _kept_hidden(plan: PrunePlan) -> Tensor:
    if plan.repair.basis_DK is not None:
        return plan.repair.basis_DK
    kept = plan.at("hidden")
    assert kept is not None
    return kept
