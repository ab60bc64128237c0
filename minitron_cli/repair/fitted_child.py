"""A child that is solved for part by part: what it is so far, and what each solution makes of it."""

# B batch, T token, D hidden of the parent, K of the child, I input, O output

from collections.abc import Collection
from dataclasses import replace

import torch
from torch import Tensor

from minitron_cli.checkpoint.reader import Checkpoint
from minitron_cli.model.residual_stream import foldable
from minitron_cli.prune.plan import PrunePlan
from minitron_cli.prune.stream import prune_in_memory, surviving
from minitron_cli.prune.transform import Repair, gains
from minitron_cli.repair.gram import Evidence
from minitron_cli.repair.least_squares import gains as fitted_gains
from minitron_cli.repair.least_squares import solve
from minitron_cli.repair.store import Store

READINGS, SOLVED = "reading", "solved"


class FittedChild:
    """Solutions go to the store; `plan` is the cut with all that are there."""

    def __init__(self, plan: PrunePlan, checkpoint: Checkpoint, store: Store) -> None:
        folded = foldable(plan.parent) if plan.parent.family.norm == "rms" else ()
        channels_DK = None if plan.repair.basis_DK is not None else _unit_vectors(plan)
        self._start = plan.repaired(
            Repair(plan.repair.basis_DK, channels_DK, gains(plan.parent, folded, checkpoint.read))
        )
        self._checkpoint, self._store = checkpoint, store
        self._parents = surviving(plan, checkpoint.tensors)
        self._children = {parent: child for child, parent in self._parents.items()}

    @property
    def plan(self) -> PrunePlan:
        readings, solved = (self._store.tensors(kind) for kind in (READINGS, SOLVED))
        return replace(self._start, repair=replace(self._start.repair, readings=readings, solved=solved))

    def read(self, name: str) -> Tensor:
        return self._cut(self.plan, self._parents[name])

    def kept(self, x_BTD: Tensor) -> Tensor:
        repair = self._start.repair
        if repair.basis_DK is not None:
            return x_BTD.float() @ repair.basis_DK.to(x_BTD.device)
        channels = self._start.at("hidden")
        return x_BTD if channels is None else x_BTD[..., channels.to(x_BTD.device)]

    def kept_inputs(self, name: str, inputs_RI: Tensor) -> Tensor:
        """What is left of what a matrix of the parent reads."""
        kept = self._start.indices(name)[-1]
        return inputs_RI if kept is None else inputs_RI[:, kept.to(inputs_RI.device)]

    def is_cut(self, name: str) -> bool:
        """Whether the child has a tensor, and less of what it reads."""
        return name in self._children and self._start.indices(name)[-1] is not None

    def is_folded(self, norm: str) -> bool:
        return norm in self._start.repair.gain_D

    def solve_norm(self, norm: str, evidence: Evidence) -> Collection[str]:
        repair = self._start.repair
        start_DK = repair.gain_D[norm][:, None] * repair.kept_DK
        self._store.put(READINGS, norm, solve(start_DK, evidence).cpu())
        return self._readers(norm)

    def solve_writer(self, name: str, evidence: Evidence) -> Collection[str]:
        start_OI = self._cut(self._start, name)
        self._store.put(SOLVED, name, solve(start_OI, evidence).to("cpu", start_OI.dtype))
        return {self._children[name]}

    def solve_gain(self, norm: str, evidence: Evidence) -> None:
        offset, weight_K = self._start.parent.family.norm_offset, self._cut(self._start, norm)
        gain_K = (weight_K.float() + offset) * fitted_gains(evidence).cpu()
        self._store.put(SOLVED, norm, (gain_K - offset).to(weight_K.dtype))

    def _cut(self, plan: PrunePlan, name: str) -> Tensor:
        (tensor,) = prune_in_memory(plan, [name], self._checkpoint.read).values()
        return tensor

    def _readers(self, norm: str) -> Collection[str]:
        family = self._start.parent.family
        of_norm = family.match(norm)
        readers = family.links[of_norm.template]
        matches = ((child, family.match(name)) for child, name in self._parents.items())
        return {c for c, found in matches if found.template in readers and of_norm.at.items() <= found.at.items()}


def _unit_vectors(plan: PrunePlan) -> Tensor:
    channels, unit_DD = plan.at("hidden"), torch.eye(plan.parent.sizes["hidden"])
    return unit_DD if channels is None else unit_DD[:, channels]
