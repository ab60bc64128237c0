"""Gates of the axes of a model, one for each entry, and how many of them are to be open.

Heads of a group are rows of their own, since each group keeps as many; hidden channels have one gate each for the
whole model, as in Sheared LLaMA (Xia et al. 2023).
"""

# L layer, G group (key-value head), Q query head of one group; rows: all axes but the last

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from minitron_cli.errors import InputError
from minitron_cli.learned import hard_concrete
from minitron_cli.model.shape import Shape

OPEN = 0.95
"""Probability that a gate is not closed, before the first step."""
LIMIT = 8.0
"""Largest size of log alpha: beyond it, gates no longer differ in their mean."""
AXES = ("hidden", "ffn", "head", "kv_head", "layer")


class Target(NamedTuple):
    """Gates of one axis."""

    shape: tuple[int, ...]
    kept: int
    """Gates of each row that are to stay open."""

    @property
    def share(self) -> float:
        """Share of the gates that are to stay open."""
        return self.kept / self.shape[-1]


def targets(parent: Shape, child: Shape) -> dict[str, Target]:
    """Gates of every axis along which the child is smaller. InputError if one of them has none."""
    if len(set(parent.family.layers)) > 1 or "mamba_head" in parent.sizes:
        raise InputError(
            f"importance.learned has no masks for a {parent.family.model_type} model, whose layers are of several "
            "kinds: leave learned.shape out, and rank it by activation"
        )
    smaller = [axis for axis, size in child.sizes.items() if size < parent.sizes[axis]]
    in_experts = {"expert", *(["ffn"] if "expert" in parent.sizes else [])}
    if odd := sorted({*smaller} & in_experts or {*smaller} - {*AXES}):
        raise InputError(
            f"importance.learned has no masks for {odd[0]} of a model with these axes: leave it out of learned.shape, "
            "and rank it by activation"
        )
    layers, sizes = parent.sizes["layer"], child.sizes
    per_group, kept_per_group = parent.sizes["head"] // parent.groups, sizes["head"] // child.groups
    found = {}
    if "hidden" in smaller:
        found["hidden"] = Target((parent.sizes["hidden"],), sizes["hidden"])
    if "ffn" in smaller:
        found["ffn"] = Target((layers, parent.sizes["ffn"]), sizes["ffn"])
    if child.groups < parent.groups:
        found["group"] = Target((layers, parent.groups), child.groups)
    if kept_per_group < per_group:
        found["head"] = Target((layers, parent.groups, per_group), kept_per_group)
    if "layer" in smaller:
        found["layer"] = Target((layers,), sizes["layer"])
    return found


class Gates(nn.Module):
    """A hard concrete gate for every entry, and the values that the model computes with."""

    def __init__(self, targets: Mapping[str, Target], device: torch.device | str = "cpu") -> None:
        super().__init__()
        self.targets = dict(targets)
        start = hard_concrete.log_alpha_of(OPEN)
        parameters = {axis: nn.Parameter(torch.full(t.shape, start, device=device)) for axis, t in targets.items()}
        self.log_alpha = nn.ParameterDict(parameters)
        self.values: dict[str, Tensor] = {}
        """Gates of each axis that the model computes with; an axis without an entry is open."""

    def sample_(self, draw: torch.Generator) -> None:
        """Draw the values."""
        self.values = {axis: hard_concrete.sampled(self.log_alpha[axis], draw) for axis in self.targets}

    def open_shares(self) -> dict[str, Tensor]:
        """Expected share of gates that are not closed, of every row of every axis."""
        return {axis: hard_concrete.above(self.log_alpha[axis], 0.0).mean(-1) for axis in self.targets}

    @torch.no_grad()
    def clamp_(self) -> None:
        """Keep log alpha within its limits."""
        for parameter in self.log_alpha.values():
            parameter.clamp_(-LIMIT, LIMIT)

    @torch.no_grad()
    def means(self) -> dict[str, Tensor]:
        """E[z] of every gate, by axis."""
        return {axis: hard_concrete.expected(self.log_alpha[axis]) for axis in self.targets}


def of_heads(values: Mapping[str, Tensor]) -> Tensor | None:
    """Gates of query heads [L, G, Q], or [L, G, 1] where all of a group have one; None if heads have none."""
    of_group, of_head = values.get("group"), values.get("head")
    if of_group is None:
        return of_head
    return of_group[..., None] if of_head is None else of_group[..., None] * of_head


def scores(means: Mapping[str, Tensor], parent: Shape) -> dict[str, Tensor]:
    """Scores of the gated axes from the means of their gates, under the names that `Scores` uses."""
    plain = {f"{axis}.learned": mean for axis, mean in means.items() if axis in ("hidden", "ffn", "layer")}
    heads_LGQ = of_heads(means)
    if heads_LGQ is None:
        return plain
    per_group = parent.sizes["head"] // parent.groups
    return plain | {"head.learned": heads_LGQ.expand(-1, -1, per_group).flatten(1).clone()}
