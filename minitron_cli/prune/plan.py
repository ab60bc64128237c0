"""Plan of a pruning: the entries of every axis that survive, ranked by their scores."""

# L layer, H query head, K kept, G group (key-value head), Q query head of one group, P period of layers

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from minitron_cli.errors import InputError
from minitron_cli.model.axes import PRUNABLE, RANKED
from minitron_cli.model.shape import Shape
from minitron_cli.prune.config import BLOCK_RANKINGS, Ranking
from minitron_cli.prune.limits import first_layers, refusal
from minitron_cli.prune.transform import NO_REPAIR, Repair
from minitron_cli.scores.metric import Metric

RESIDUAL_FACTOR = {"paper": 1, "laco": -1}
"""Factor of each kind of `Ranking.head_residual`: q + (q - q'), or q + (q' - q)."""


class AxisScores(Protocol):
    """Scores as a plan reads them: higher means keep."""

    def select(self, axis: str, metric: Metric) -> Tensor:
        """Scores of an axis other than layers: [entry], [layer, entry] or [layer, expert, entry]."""
        ...

    def layers(self, metric: str) -> Tensor:
        """Scores of layers [L]; for a ranking of blocks, the cost of the block that starts at each layer."""
        ...


@dataclass(frozen=True)
class PrunePlan:
    """Surviving indices per axis, ascending.

    Their shape is [kept] where one choice serves the whole model, [layer, kept] where layers differ, and
    [layer, expert, kept] where experts do. Layers and experts are counted as in the parent, so a dropped one has
    indices too, which nothing reads. A repair may keep directions of the residual stream instead of channels; then
    `kept` has no entry for hidden.
    """

    parent: Shape
    kept: Mapping[str, Tensor]
    head_residual: "HeadResidual | None" = None
    repair: Repair = NO_REPAIR

    def at(self, axis: str, layer: int | None = None, expert: int | None = None) -> Tensor | None:
        """Survivors of an axis in a layer and expert, [kept]; None where all survive."""
        kept = self.kept.get(axis)
        if kept is None or kept.ndim == 1:
            return kept
        return kept[layer] if kept.ndim == 2 else kept[layer, expert]

    @cached_property
    def child(self) -> Shape:
        """Shape of the pruned model."""
        sizes = {axis: kept.shape[-1] for axis, kept in self.kept.items()}
        if self.repair.basis_DK is not None:
            sizes["hidden"] = self.repair.basis_DK.shape[1]
        layers = self.kept.get("layer")
        parent = self.parent if layers is None else self.parent.of_layers(layers.tolist())
        return parent.resize(**sizes)

    @property
    def merges_heads(self) -> bool:
        """Whether a kept query head absorbs a pruned one."""
        return self.head_residual is not None and not torch.equal(self.head_residual.partners_LK, self.kept["head"])

    def repaired(self, repair: Repair) -> "PrunePlan":
        """The same plan with a repair, which replaces channels where it has a basis."""
        kept = {axis: t for axis, t in self.kept.items() if axis != "hidden" or repair.basis_DK is None}
        return replace(self, kept=kept, repair=repair)

    def then(self, further: "PrunePlan") -> "PrunePlan":
        """One plan from the parent for two steps: this one, then `further`, which is a plan for this one's child."""
        kept = dict(self.kept)
        for axis, after in further.kept.items():
            before = self.kept.get(axis)
            if axis == "layer" or after.ndim == 1:
                kept[axis] = after if before is None else before[after]
            else:
                kept[axis] = self._owner_by_owner(axis, after)
        return PrunePlan(self.parent, kept)

    def _owner_by_owner(self, axis: str, after: Tensor) -> Tensor:
        """Survivors of an axis that layers or experts own; `after` counts owners and entries as in the child."""
        before = self._kept_or_all(axis, after.ndim - 1)
        both = before[..., : after.shape[-1]].clone()  # rows of dropped owners are never read
        owners: tuple[Tensor, ...] = (self._kept_or_all("layer", 0),)
        if after.ndim == 3:
            owners = (owners[0][:, None], self._kept_or_all("expert", 1)[owners[0]])
        both[owners] = before[owners].gather(-1, after)
        return both

    def _kept_or_all(self, axis: str, owners: int) -> Tensor:
        sizes = self.parent.sizes
        shape = [sizes[owner] for owner in ("layer", "expert")[:owners]]
        return self.kept.get(axis, torch.arange(sizes[axis]).expand(*shape, sizes[axis]))

    def sources(self, names: Iterable[str]) -> dict[str, str]:
        """Child's tensor name -> parent's, of these names of the parent and in their order.

        Buffers, and the head that some tied checkpoints store as well, have no place in the child.
        """
        stored = self.parent.tensors()
        pairs = ((self.child_name(name), name) for name in names if name in stored)
        return {child: name for child, name in pairs if child is not None}

    def child_name(self, name: str) -> str | None:
        """Name of a parent's tensor in the child, renumbered along the axes that the name carries; None if dropped."""
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
        """Per dim of a parent's tensor, the positions that survive; None where the dim is whole."""
        match = self.parent.family.match(name)
        layer, expert = match.at.get("layer"), match.at.get("expert")
        return match.layout.indices(lambda axis: self.at(axis, layer, expert), self.parent.sizes)

    def tensors(self) -> dict[str, Tensor]:
        """Axis -> int32 indices, for a safetensors file."""
        return {axis: kept.int() for axis, kept in self.kept.items()}


@dataclass(frozen=True)
class HeadResidual:
    """Pruned query heads that are merged into kept ones (Muralidharan et al. 2024, sec. 2.3)."""

    partners_LK: Tensor
    """Pruned head that is merged into each kept head; the kept head itself if none."""
    factor: int
    """Kept head q becomes q + factor (q - q'), with q' the pruned one."""


def make_plan(
    parent: Shape, child: Shape, scores: AxisScores, ranking: Ranking, drop_layers: tuple[int, ...] = ()
) -> PrunePlan:
    """Plan that keeps the best entries of every axis on which the child is smaller.

    `drop_layers` are removed instead of the least important layers. InputError if the parent cannot become the child.
    """
    for axis, size in child.sizes.items():
        parent.check_size(axis, size)
    if reason := refusal(parent, child, named_survivors(parent, drop_layers)):
        raise InputError(reason)
    kept = {}
    smaller = {axis for axis, size in child.sizes.items() if size < parent.sizes[axis]}
    if "layer" in smaller:
        kept["layer"] = _surviving_layers(parent, child, scores, ranking, drop_layers)
    if "hidden" in smaller:
        kept["hidden"] = _best(scores.select("hidden", ranking.width), child.sizes["hidden"], ranking)
    for axis in sorted(smaller.intersection(RANKED)):
        kept[axis] = _best_of_groups(parent, child, axis, scores.select(axis, ranking.width), ranking)
    head_residual = None
    if smaller & {"head", "kv_head"}:
        score_LH = scores.select("head", ranking.width)
        kept |= _surviving_heads(parent, child, score_LH, ranking)
        if ranking.head_residual != "none":
            head_residual = HeadResidual(
                _partners(parent, child, kept["head"], score_LH, ranking), RESIDUAL_FACTOR[ranking.head_residual]
            )
    if odd := smaller - kept.keys():
        *first, last = (axis for axis in PRUNABLE if axis in parent.sizes)
        raise InputError(f"{min(odd)} cannot be pruned: choose among {', '.join(first)} and {last}")
    return PrunePlan(parent, kept, head_residual)


def named_survivors(parent: Shape, drop_layers: Collection[int]) -> list[int] | None:
    """Layers left without the named ones; None if none are named. InputError if one is no layer, or all are named."""
    layers = parent.sizes["layer"]
    if not drop_layers:
        return None
    if max(drop_layers) >= layers:
        raise InputError(f"drop_layers names layer {max(drop_layers)}: the model's layers are 0 to {layers - 1}")
    if not (left := [i for i in range(layers) if i not in drop_layers]):
        raise InputError(
            f"layer=0 is not within 1 to the parent's {layers}: drop_layers names all of them; leave one out"
        )
    return left


def _surviving_layers(
    parent: Shape, child: Shape, scores: AxisScores, ranking: Ranking, drop_layers: tuple[int, ...]
) -> Tensor:
    """Layers without the least important periods, by the sum of a period's scores.

    A period is one layer unless the kinds of layers must keep a pattern (`Shape.period`). Layers after the last whole
    period stay.
    """
    if named := named_survivors(parent, drop_layers):
        return torch.tensor(named)
    if ranking.layers in BLOCK_RANKINGS:
        return _all_but_one_block(parent, child, scores, ranking)
    if parent.family.layers and not parent.family.is_periodic:
        return _best_of_each_kind(parent, child, scores.layers(ranking.layers), ranking)
    layers, period = parent.sizes["layer"], parent.period
    periods = layers // period
    score_P = scores.layers(ranking.layers)[: periods * period].double().reshape(periods, period).sum(1)
    score_P[: math.ceil(first_layers(parent) / period)] = -math.inf if ranking.invert else math.inf
    kept_P = _best(score_P, periods - (layers - child.sizes["layer"]) // period, ranking)
    kept_L = (kept_P[:, None] * period + torch.arange(period)).flatten()
    return torch.cat([kept_L, torch.arange(periods * period, layers)])


def _best_of_each_kind(parent: Shape, child: Shape, score_L: Tensor, ranking: Ranking) -> Tensor:
    """As many of the best layers of each kind as the child has; in the child's order if no config states the best's."""
    kept = []
    for kind, number in Counter(child.family.layers).items():
        places = torch.tensor([i for i, layer in enumerate(parent.family.layers) if layer == kind])
        kept.append(places[_best(score_L[places], number, ranking)])
    kept_L = torch.cat(kept).sort().values
    is_stated = parent.of_layers(kept_L.tolist()).family.states_its_layers
    return kept_L if is_stated else _best_in_order(parent, child, -score_L if ranking.invert else score_L)


def _best_in_order(parent: Shape, child: Shape, worth_L: Tensor) -> Tensor:
    """Layers of the largest sum whose kinds are those of the child's layers, one by one.

    InputError if no layers are, as may be after another round.
    """
    wanted = child.family.layers
    best: dict[int, tuple[float, list[int]]] = {0: (0.0, [])}  # number of layers -> sum of the best, and which
    for i, (kind, worth) in enumerate(zip(parent.family.layers, worth_L.tolist(), strict=True)):
        for number in reversed([n for n in best if n < len(wanted) and wanted[n] == kind]):
            total, layers = best[number]
            if number + 1 not in best or total + worth > best[number + 1][0]:
                best[number + 1] = total + worth, [*layers, i]
    if len(wanted) not in best:
        raise InputError(
            f"layer={len(wanted)}: the config of a {parent.family.model_type} model cannot state the kinds of the "
            "layers that the ranking keeps: use one round, or name drop_layers"
        )
    return torch.tensor(best[len(wanted)][1])


def _all_but_one_block(parent: Shape, child: Shape, scores: AxisScores, ranking: Ranking) -> Tensor:
    """Layers without the contiguous block whose removal costs least (Sreenivas et al. 2024: it keeps accuracy).

    Layers that must stay do. Where layers differ in kind, blocks are considered that leave as many of each kind as the
    child has.
    """
    layers, length = parent.sizes["layer"], parent.sizes["layer"] - child.sizes["layer"]
    rests = [[i for i in range(layers) if not start <= i < start + length] for start in range(layers - length + 1)]
    wanted, first = Counter(child.family.layers), first_layers(parent)
    fitting = [
        start
        for start, rest in enumerate(rests)
        if start >= first and Counter(parent.of_layers(rest).family.layers) == wanted
    ]
    if not fitting:
        raise InputError(
            f"layer={layers - length}: no contiguous block of {length} layers leaves every kind of layer its share; "
            "choose another number, rank single layers, or name drop_layers"
        )
    cost = scores.layers(f"{ranking.layers}={length}")[fitting]
    return torch.tensor(rests[fitting[int(_best(-cost, 1, ranking))]])


def _surviving_heads(parent: Shape, child: Shape, score_LH: Tensor, ranking: Ranking) -> dict[str, Tensor]:
    """Kept query heads, and key-value heads where these are pruned, per layer.

    Groups are chosen first, by the sum of their heads' scores; then the same number of query heads in each group, as
    grouped-query attention requires.
    """
    groups, kept_groups = parent.groups, child.groups
    per_group, kept_per_group = parent.sizes["head"] // groups, child.sizes["head"] // kept_groups
    score_LGQ = score_LH.reshape(len(score_LH), groups, per_group)
    group_LK = _best(score_LGQ.sum(-1), kept_groups, ranking)
    query_LGQ = _best(score_LGQ, kept_per_group, ranking)
    head_LGQ = torch.arange(groups)[:, None] * per_group + query_LGQ
    head_LK = torch.stack([heads[group].flatten() for heads, group in zip(head_LGQ, group_LK, strict=True)])
    return {"head": head_LK} | ({"kv_head": group_LK} if child.sizes.get("kv_head", groups) < groups else {})


def _partners(parent: Shape, child: Shape, head_LK: Tensor, score_LH: Tensor, ranking: Ranking) -> Tensor:
    """Pruned head that is merged into each kept head, [layer, kept]; the kept head itself if none.

    Of L heads in a group, best first and counted from 1, K stay, and head i of max(1, 2K - L + 1) <= i <= K takes from
    head 2K - i + 1: the last kept one from the first pruned one, and so on. (The paper prints the range from 2K - L,
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


def _best_of_groups(parent: Shape, child: Shape, axis: str, scores: Tensor, ranking: Ranking) -> Tensor:
    """Positions of the best entries of an axis, equally many in each of its groups (`Family.groups`)."""
    groups = parent.sizes[parent.family.groups[axis]] if axis in parent.family.groups else 1
    by_group = scores.unflatten(-1, (groups, -1))
    first = torch.arange(groups)[:, None] * by_group.shape[-1]
    return (_best(by_group, child.sizes[axis] // groups, ranking) + first).flatten(-2)


def _best(scores: Tensor, count: int, ranking: Ranking) -> Tensor:
    """Positions of the `count` highest scores of the last dim, ascending; ties go to the lower position."""
    if scores.isnan().any():  # NaN would rank above every number
        raise InputError("the scores hold NaN and cannot be ranked: run `minitron importance` with another --dtype")
    return _order(scores, ranking)[..., :count].sort(dim=-1).values


def _order(scores: Tensor, ranking: Ranking) -> Tensor:
    """Positions along the last dim, best first; ties go to the lower position."""
    return scores.double().argsort(dim=-1, descending=not ranking.invert, stable=True)
