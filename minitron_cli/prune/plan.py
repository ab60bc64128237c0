"""Which entries of every axis survive a cut."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from minitron_cli.errors import InputError
from minitron_cli.model.axes import PRUNABLE
from minitron_cli.model.shape import Shape
from minitron_cli.prune.config import BLOCK_RANKINGS, Ranking
from minitron_cli.prune.limits import refusal
from minitron_cli.prune.transform import PLAIN, Repair
from minitron_cli.scores.metric import Metric

RESIDUAL = {"paper": 1, "laco": -1}  # the factor of each kind


class AxisScores(Protocol):
    """Scores as a plan reads them: higher means keep."""

    def select(self, axis: str, metric: Metric) -> Tensor: ...

    def layers(self, metric: str) -> Tensor: ...


@dataclass(frozen=True)
class PrunePlan:
    """Surviving indices per axis, ascending: [kept] for the model, or [layer, kept] where layers differ.

    Where every expert has neurons of its own, [layer, expert, kept]. Layers and experts are the parent's, so one that
    is dropped has indices too; nothing reads them. A repaired plan may keep directions of the residual stream instead
    of channels; then `kept` does not speak of hidden.
    """

    parent: Shape
    kept: Mapping[str, Tensor]
    residual: "Residual | None" = None
    repair: Repair = PLAIN

    def at(self, axis: str, layer: int | None = None, expert: int | None = None) -> Tensor | None:
        """Survivors of an axis, or None where all survive."""
        kept = self.kept.get(axis)
        if kept is None or kept.ndim == 1:
            return kept
        return kept[layer] if kept.ndim == 2 else kept[layer, expert]

    @property
    def child(self) -> Shape:
        sizes = {axis: kept.shape[-1] for axis, kept in self.kept.items()}
        if self.repair.basis_DK is not None:
            sizes["hidden"] = self.repair.basis_DK.shape[1]
        return self.parent.resize(**sizes)

    def repaired(self, repair: Repair) -> "PrunePlan":
        """The same cut, mended."""
        kept = {axis: t for axis, t in self.kept.items() if axis != "hidden" or repair.basis_DK is None}
        return replace(self, kept=kept, repair=repair)

    def then(self, further: "PrunePlan") -> "PrunePlan":
        """The plan that does both: first this one, then `further`, a plan for its child."""
        kept = dict(self.kept)
        for axis, after in further.kept.items():
            before = self.kept.get(axis)
            if axis == "layer" or after.ndim == 1:
                kept[axis] = after if before is None else before[after]
            else:
                kept[axis] = self._owner_by_owner(axis, after)
        return PrunePlan(self.parent, kept)

    def _owner_by_owner(self, axis: str, after: Tensor) -> Tensor:
        """The survivors of an axis in each layer or expert; `after` counts owners and entries as the child does."""
        before = self._kept_or_all(axis, after.ndim - 1)
        both = before[..., : after.shape[-1]].clone()  # of owners that were dropped, nothing reads it
        owners: tuple[Tensor, ...] = (self._kept_or_all("layer", 0),)
        if after.ndim == 3:
            owners = (owners[0][:, None], self._kept_or_all("expert", 1)[owners[0]])
        both[owners] = before[owners].gather(-1, after)
        return both

    def _kept_or_all(self, axis: str, owners: int) -> Tensor:
        sizes = self.parent.sizes
        shape = [sizes[owner] for owner in ("layer", "expert")[:owners]]
        return self.kept.get(axis, torch.arange(sizes[axis]).expand(*shape, sizes[axis]))

    def child_name(self, name: str) -> str | None:
        """A tensor's name after the cut, renumbered along the axes it carries; None if it is dropped."""
        match = self.parent.family.match(name)
        places = {}
        for axis, place in match.at.items():
            kept = self.at(axis, match.at.get("layer"))
            if kept is None:
                places[axis] = place
            elif len(found := (kept == place).nonzero()):
                places[axis] = int(found)
            else:
                return None
        return match.template.format(**places)

    def indices(self, name: str) -> tuple[Tensor | None, ...]:
        """Per dim of a parent's tensor, the positions that survive, or None where the dim is whole."""
        match = self.parent.family.match(name)
        layer, expert = match.at.get("layer"), match.at.get("expert")
        return match.layout.indices(lambda axis: self.at(axis, layer, expert), self.parent.sizes)

    def correct(self, name: str, block: Tensor) -> Tensor:
        """Some numbers of a parent's tensor as the child stores them: rescaled where the model computes with a size."""
        family, template = self.parent.family, self.parent.family.match(name).template
        correction = family.corrections.get(template)
        if correction is None or (correction.if_tied and not self.parent.is_tied) or self.repair.has_solved(name):
            return block
        ratio = self.child.sizes[correction.axis] / self.parent.sizes[correction.axis]
        if ratio == 1:
            return block
        offset = family.offset(template)
        exact = block.to(torch.promote_types(block.dtype, torch.float32))
        return ((exact + offset) * ratio**correction.power - offset).to(block.dtype)

    def partner_rows(self, name: str) -> Tensor | None:
        """For each surviving row of a parent's tensor, the row whose difference is added; itself where none is."""
        match = self.parent.family.match(name)
        layer = match.at.get("layer")
        if self.residual is None or layer is None or "head" not in match.layout.axes(0):
            return None
        partners = self.residual.partners_LK[layer]
        return match.layout.indices(
            lambda axis: partners if axis == "head" else self.at(axis, layer), self.parent.sizes
        )[0]

    def add_residual(self, rows: Tensor, partners: Tensor) -> Tensor:
        """Rows that survive, each with what it takes over from its partner."""
        assert self.residual is not None
        own, other = (tensor.to(torch.promote_types(rows.dtype, torch.float32)) for tensor in (rows, partners))
        return (own + self.residual.factor * (own - other)).to(rows.dtype)

    def tensors(self) -> dict[str, Tensor]:
        """For a safetensors file: axis -> int32 indices."""
        return {axis: kept.int() for axis, kept in self.kept.items()}


@dataclass(frozen=True)
class Residual:
    """Query heads that stay and take something over from heads that go."""

    partners_LK: Tensor
    """For each head that survives, the parent's head it takes from; itself where it takes nothing."""
    factor: int
    """q becomes q + factor (q - q'): 1 as the paper prints it, -1 as LaCo has it."""


def make_plan(
    parent: Shape, child: Shape, scores: AxisScores, ranking: Ranking, drop_layers: tuple[int, ...] = ()
) -> PrunePlan:
    """Rank every axis on which the child is smaller and keep the best. InputError if the parent cannot become it."""
    for axis, size in child.sizes.items():
        if not 0 < size <= parent.sizes[axis]:
            raise InputError(f"{axis}={size} is not within 1 to the parent's {parent.sizes[axis]}: choose another size")
    if reason := refusal(parent, child, named_survivors(parent, drop_layers)):
        raise InputError(reason)
    kept = {}
    smaller = {axis for axis, size in child.sizes.items() if size < parent.sizes[axis]}
    if "layer" in smaller:
        kept["layer"] = _surviving_layers(parent, child, scores, ranking, drop_layers)
    if "hidden" in smaller:
        kept["hidden"] = _best(scores.select("hidden", ranking.width), child.sizes["hidden"], ranking)
    for axis in sorted(smaller & {"expert", "ffn"}):
        kept[axis] = _best(scores.select(axis, ranking.width), child.sizes[axis], ranking)
    residual = None
    if smaller & {"head", "kv_head"}:
        score_LH = scores.select("head", ranking.width)
        kept |= _surviving_heads(parent, child, score_LH, ranking)
        if ranking.head_residual != "none":
            residual = Residual(
                _partners(parent, child, kept["head"], score_LH, ranking), RESIDUAL[ranking.head_residual]
            )
    if odd := smaller - kept.keys():
        *first, last = (axis for axis in PRUNABLE if axis in parent.sizes)
        raise InputError(f"{min(odd)} cannot be cut: choose among {', '.join(first)} and {last}")
    return PrunePlan(parent, kept, residual)


def named_survivors(parent: Shape, drop_layers: Collection[int]) -> list[int] | None:
    """The layers that are left without the named ones; None if none are named."""
    layers = parent.sizes["layer"]
    if not drop_layers:
        return None
    if max(drop_layers) >= layers:
        raise InputError(f"drop_layers names layer {max(drop_layers)}: the model's layers are 0 to {layers - 1}")
    return [i for i in range(layers) if i not in drop_layers]


def _surviving_layers(
    parent: Shape, child: Shape, scores: AxisScores, ranking: Ranking, drop_layers: tuple[int, ...]
) -> Tensor:
    """Whole periods go, by the sum of their layers; where no pattern must stay, a period is a layer."""
    if named := named_survivors(parent, drop_layers):
        return torch.tensor(named)
    if ranking.layers in BLOCK_RANKINGS:
        return _all_but_one_block(parent.sizes["layer"], child.sizes["layer"], scores, ranking)
    layers, period = parent.sizes["layer"], parent.period
    periods = layers // period
    score_P = scores.layers(ranking.layers)[: periods * period].double().reshape(periods, period).sum(1)
    kept_P = _best(score_P, periods - (layers - child.sizes["layer"]) // period, ranking)
    kept_L = (kept_P[:, None] * period + torch.arange(period)).flatten()
    return torch.cat([kept_L, torch.arange(periods * period, layers)])


def _all_but_one_block(layers: int, kept: int, scores: AxisScores, ranking: Ranking) -> Tensor:
    """Without the contiguous block whose removal costs least (Sreenivas et al. 2024: it keeps accuracy)."""
    length = layers - kept
    cost = scores.layers(f"{ranking.layers}={length}")
    start = int(_best(-cost, 1, ranking))
    return torch.tensor([i for i in range(layers) if not start <= i < start + length])


def _surviving_heads(parent: Shape, child: Shape, score_LH: Tensor, ranking: Ranking) -> dict[str, Tensor]:
    """Whole groups first, by the sum of their heads; then equal numbers of query heads inside each group (GQA)."""
    groups, kept_groups = parent.groups, child.groups
    per_group, kept_per_group = parent.sizes["head"] // groups, child.sizes["head"] // kept_groups
    score_LGQ = score_LH.reshape(len(score_LH), groups, per_group)
    group_LK = _best(score_LGQ.sum(-1), kept_groups, ranking)
    query_LGQ = _best(score_LGQ, kept_per_group, ranking)
    head_LGQ = torch.arange(groups)[:, None] * per_group + query_LGQ
    head_LK = torch.stack([heads[group].flatten() for heads, group in zip(head_LGQ, group_LK, strict=True)])
    return {"head": head_LK} | ({"kv_head": group_LK} if child.sizes.get("kv_head", groups) < groups else {})


def _partners(parent: Shape, child: Shape, head_LK: Tensor, score_LH: Tensor, ranking: Ranking) -> Tensor:
    """The residual's other head for each head that stays, [layer, kept]; the same head for most.

    Of L heads in a group, best first and counted from 1, K stay, and head i of max(1, 2K - L + 1) <= i <= K takes from
    head 2K - i + 1: the last that stays from the first that goes, and so on. (The paper prints the range from 2K - L,
    whose partner L + 1 does not exist.)
    """
    groups = parent.groups
    order_LGQ = _order(score_LH.reshape(len(score_LH), groups, -1), ranking)
    rank_LGQ = order_LGQ.argsort(-1)  # from 0
    kept, per_group = child.sizes["head"] // child.groups, rank_LGQ.shape[-1]
    other_LGQ = 2 * kept - 1 - rank_LGQ
    takes_LGQ = (rank_LGQ < kept) & (other_LGQ < per_group)
    partner_LGQ = order_LGQ.gather(-1, torch.where(takes_LGQ, other_LGQ, rank_LGQ))
    partner_LH = (partner_LGQ + torch.arange(groups)[:, None] * per_group).flatten(1)
    return partner_LH.gather(1, head_LK)


def _best(scores: Tensor, count: int, ranking: Ranking) -> Tensor:
    """Positions of the `count` highest scores of the last dim, ascending. Ties go to the lower position."""
    if scores.isnan().any():  # it would rank above every number
        raise InputError("the scores hold NaN, so nothing can be ranked: run importance again, in another dtype")
    return _order(scores, ranking)[..., :count].sort(dim=-1).values


def _order(scores: Tensor, ranking: Ranking) -> Tensor:
    """Positions, the best first. Ties go to the lower position."""
    return scores.double().argsort(dim=-1, descending=not ranking.invert, stable=True)
