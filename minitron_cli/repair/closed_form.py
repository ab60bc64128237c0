"""Closed-form repairs of pruning plans, fitted on samples of text. What no plan changes is computed once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from minitron_cli import io
from minitron_cli.checkpoint import hf
from minitron_cli.data.batches import Batch, batch
from minitron_cli.data.pack import Blocks
from minitron_cli.evaluate.perplexity import kl_to_parent
from minitron_cli.layerwise.observer import final_norm
from minitron_cli.layerwise.runner import ResidentWeights, StoredWeights, Weights
from minitron_cli.model.residual_stream import foldable
from minitron_cli.prune.child_builder import ChildBuilder
from minitron_cli.prune.child_config import child_config
from minitron_cli.prune.plan import PrunePlan
from minitron_cli.prune.transform import Repair, norm_gains
from minitron_cli.repair import norm_rescale
from minitron_cli.repair.bias import BIAS, put_biases, reader_means
from minitron_cli.repair.fitted_child import PARTS, FittedChild
from minitron_cli.repair.layerwise_fit import ParentAndChild, fit_layerwise
from minitron_cli.repair.merge import MERGED, put_merged
from minitron_cli.repair.norm_statistics import second_moments
from minitron_cli.repair.pca_rotation import diagonalizing, head_moments, leading_directions
from minitron_cli.repair.store import RepairStore

if TYPE_CHECKING:
    from transformers import PreTrainedModel

KL_BLOCKS = 32  # of the samples, on which the strength of a rescaling is chosen


@dataclass(frozen=True)
class SampledBlocks:
    """Some of the blocks of a text, readable like `Blocks`."""

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
        """The blocks in batches of at most `size`."""
        return [batch(self.blocks, self.ids[start : start + size]) for start in range(0, len(self.ids), size)]


@dataclass(frozen=True)
class ClosedFormRepair:
    """Repairs any plan for one parent, on the same samples."""

    builder: ChildBuilder
    samples: SampledBlocks
    scratch: Path
    model: "PreTrainedModel"
    """The parent, whose weights may still be on disk."""
    batch_size: int = 8
    activation_budget: int = 1_000_000_000
    """Bytes of hidden states that are held in memory; more wait on disk."""
    resume: bool = True
    save_every_s: float = 30

    def repaired(self, plan: PrunePlan, repairs: frozenset[str], label: str = "plan") -> PrunePlan:
        """The plan with those of the repairs that need no trials. Fitted tensors are kept on disk under the label."""
        plan = self.rotated(plan) if "rotate" in repairs else plan
        plan = self.compensated(plan, label) if "bias" in repairs else plan
        plan = self.merged(plan, label) if "merge" in repairs else plan
        return self.fitted(plan, label) if "least_squares" in repairs else plan

    def rotated(self, plan: PrunePlan, *, rescale: bool = True) -> PrunePlan:
        """The plan with directions of the stream instead of channels; with `rescale` norms' outputs keep their size."""
        parent = self.builder.parent
        gain_D = norm_gains(parent.shape, foldable(parent.shape), parent.checkpoint.read)
        plan = plan.repaired(Repair(self._basis(plan.child.sizes["hidden"]), gain_D=gain_D))
        factors = self._norm_factors(plan) if rescale else {}
        return plan.repaired(replace(plan.repair, scales=norm_rescale.scales(factors, dict.fromkeys(factors, 1.0))))

    def _basis(self, count: int) -> Tensor:
        """Directions of the residual stream to keep [D, K]: those that norms, and the LM head, see most of."""
        parent, name = self.builder.parent, f"{final_norm(self.builder.parent.family)}.weight"
        gain_D = parent.checkpoint.read(name).float().cpu() + parent.family.norm_offset
        moments_DD = self.moments() + head_moments(self._store("norms").norm(name), gain_D)
        basis_DK = leading_directions(moments_DD, count)
        return basis_DK if name in foldable(parent.shape) else diagonalizing(basis_DK, gain_D)

    def moments(self) -> Tensor:
        """Second moments of the inputs of all norms together, fp64 [D, D], whatever is pruned. Computed once."""
        store = self._store("norms")
        return store.total(
            lambda: second_moments(
                self.model,
                self.builder.parent.family,
                self.samples.batches(self.batch_size),
                self._weights(),
                store.put_norms,
                scratch=store.directory,
                activation_budget=self.activation_budget,
                resume=self.resume,
                save_every_s=self.save_every_s,
            )
        )

    def rescaled(self, plan: PrunePlan) -> tuple[PrunePlan, dict[str, float]]:
        """The plan with its norms rescaled where that brings the child nearer to the parent, and each kind's strength.

        Parent and child are in memory together.
        """
        self.moments()
        factors = self._norm_factors(plan)
        strengths = norm_rescale.strengths(factors, self._distance(plan, factors))
        repair = replace(plan.repair, scales=norm_rescale.scales(factors, strengths))
        return plan.repaired(repair), strengths

    def _norm_factors(self, plan: PrunePlan) -> dict[str, dict[str, float]]:
        """Template of a norm -> name of each such norm that the child has -> its factor s."""
        kept, factors = _kept_hidden(plan), {template: dict[str, float]() for template in plan.parent.family.links}
        for name, moments in self._store("norms").norms():
            if plan.child_name(name) is not None:
                factors[plan.parent.family.match(name).template][name] = norm_rescale.scale(moments, kept)
        return factors

    def _distance(self, plan: PrunePlan, factors: Mapping[str, Mapping[str, float]]) -> norm_rescale.Distance:
        """KL from the parent to the child in nats per token, as a function of the factors of the child's norms."""
        few = SampledBlocks(self.samples.blocks, self.samples.ids[:KL_BLOCKS])
        unscaled = plan.repaired(replace(plan.repair, scales={}))
        child, offset = self.builder.model(unscaled), plan.parent.family.norm_offset
        weights = {
            name: child.get_parameter(str(plan.child_name(name))) for by_name in factors.values() for name in by_name
        }
        gains = {name: weight.detach().float() + offset for name, weight in weights.items()}

        @torch.no_grad()
        def distance(scales: Mapping[str, float]) -> float:
            for name, weight in weights.items():
                weight.copy_(gains[name] * scales.get(name, 1.0) - offset)
            return kl_to_parent(child, self.model, few).kl_nats

        return distance

    def compensated(self, plan: PrunePlan, label: str = "plan") -> PrunePlan:
        """The plan with what matrices wrote for the means of their pruned inputs in their biases.

        They are kept on disk under the label.
        """
        parent, store = self.builder.parent, self._store(f"{BIAS}-{label}")
        if not store.is_complete:
            reader_means(
                self.model,
                parent.family,
                self.samples.batches(self.batch_size),
                self._weights(),
                lambda means: put_biases(plan, parent.checkpoint, means, store),
                scratch=store.directory,
                activation_budget=self.activation_budget,
                resume=self.resume,
                save_every_s=self.save_every_s,
            )
            store.complete()
        return plan.repaired(replace(plan.repair, fitted=store.tensors(BIAS)))

    def merged(self, plan: PrunePlan, label: str = "plan") -> PrunePlan:
        """The plan with dropped layers merged into those before them, kept on disk under the label."""
        store = self._store(f"{MERGED}-{label}")
        if not store.is_complete:
            put_merged(plan, self.builder.parent.checkpoint, store)
            store.complete()
        return plan.repaired(replace(plan.repair, fitted=store.tensors(MERGED)))

    def fitted(self, plan: PrunePlan, label: str = "plan", parts: Sequence[str] = PARTS) -> PrunePlan:
        """The plan with what is read through norms, and what is written to the stream, fitted to the parent.

        Fitted tensors are kept on disk under the label and the names of the parts.
        """
        context, checkpoint = self.builder.context, self.builder.parent.checkpoint
        store = self._store("-".join(("fit", label, *parts)))
        fitted = FittedChild(plan, checkpoint, store, parts)
        if store.is_complete:
            return fitted.plan
        config = hf.config_from_dict(child_config(checkpoint.config, plan), "the config of the pruned model")
        child = hf.empty_model_of(config, device=context.device, dtype=self.model.dtype)
        fit_layerwise(
            ParentAndChild(self.model, self._weights(), child, plan.parent.family, _layers(plan)),
            self.samples.batches(self.batch_size),
            fitted,
            scratch=store.directory,
            activation_budget=self.activation_budget,
            resume=self.resume,
            save_every_s=self.save_every_s,
        )
        store.complete()
        return fitted.plan

    def _store(self, name: str) -> RepairStore:
        io.make_dirs(self.scratch / name)
        return RepairStore(self.scratch / name)

    def _weights(self) -> Weights:
        parent, context = self.builder.parent, self.builder.context
        if any(parameter.is_meta for parameter in self.model.parameters()):
            return StoredWeights(self.model, parent.family, parent.checkpoint.read, context.device)
        return ResidentWeights(self.model)


def _layers(plan: PrunePlan) -> list[int]:
    kept = plan.at("layer")
    return list(range(plan.parent.sizes["layer"])) if kept is None else kept.tolist()


def _kept_hidden(plan: PrunePlan) -> Tensor:
    """Kept directions [D, K], or indices of kept channels [K]."""
    if plan.repair.basis_DK is not None:
        return plan.repair.basis_DK
    kept = plan.at("hidden")
    assert kept is not None
    return kept
