"""Importance that a shape retains: ranks thousands of shapes without building a model."""

# L layer, C channel, G group, Q query head of a group, N size

import math
from collections.abc import Iterable
from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor

from minitron_cli import progress
from minitron_cli.errors import ArtifactError
from minitron_cli.model.axes import RANKED
from minitron_cli.model.shape import Shape
from minitron_cli.prune.config import BLOCK_RANKINGS, Ranking
from minitron_cli.prune.plan import AxisScores
from minitron_cli.search.feasible import Candidate

WIDTHS = ("hidden", *RANKED)
TINY = 1e-12  # the logarithm of 0 is infinite


class RetainedImportance:
    """Log of the importance that a shape retains: sum over the pruned axes of log(retained share); at most 0.

    An axis's share is the mean over the layers that have the axis, with equal weights. Cumulative shares are cached.
    """

    def __init__(self, parent: Shape, scores: AxisScores, ranking: Ranking) -> None:
        self.parent, self.scores, self.ranking = parent, scores, ranking
        self._curves: dict[str, list[float]] = {}
        self._known_heads: dict[tuple[int, int], float] = {}

    def __call__(self, shape: Shape) -> float:
        sizes, own = shape.sizes, self.parent.sizes
        shares = [self._share(axis, sizes[axis]) for axis in ("layer", *WIDTHS) if sizes.get(axis) != own.get(axis)]
        if sizes["head"] != own["head"] or shape.groups != self.parent.groups:
            shares.append(self._heads(shape.groups, sizes["head"] // shape.groups))
        return sum(math.log(max(share, TINY)) for share in shares)

    def order(self, candidates: Iterable[Candidate]) -> list[Candidate]:
        """Candidates with their retained importance as the cost `log_retained`, those that retain most first.

        Where layers are ranked by blocks, those without a block whose length was measured are left out, unless all are.
        """
        ordered = sorted(
            (replace(c, costs={**c.costs, "log_retained": self(c.shape)}) for c in candidates),
            key=lambda c: (-c.costs["log_retained"], c.name),
        )
        ranked = [c for c in ordered if self._dropped(c.shape) in self._rankable]
        if ranked and len(ranked) < len(ordered):
            lengths = sorted({self._dropped(c.shape) for c in ordered} - self._rankable)
            progress.say(
                f"leaving out {len(ordered) - len(ranked):,} of {len(ordered):,} shapes: the scores hold no "
                f"{self.ranking.layers} of {', '.join(map(str, lengths))} layers"
            )
        return ranked or ordered

    def _dropped(self, shape: Shape) -> int:
        return self.parent.sizes["layer"] - shape.sizes["layer"]

    @cached_property
    def _rankable(self) -> frozenset[int]:
        """Numbers of layers that can be dropped as they are ranked."""
        lengths = range(self.parent.sizes["layer"])
        if self.ranking.layers not in BLOCK_RANKINGS:
            return frozenset(lengths)
        return frozenset({0, *(n for n in lengths if self._is_measured(f"{self.ranking.layers}={n}"))})

    def _is_measured(self, blocks: str) -> bool:
        try:
            self.scores.layers(blocks)
        except ArtifactError:
            return False
        return True

    def _share(self, axis: str, size: int) -> float:
        if axis not in self._curves:
            self._curves[axis] = self._curve(axis)
        return self._curves[axis][size - 1]

    def _curve(self, axis: str) -> list[float]:
        """[N]: share of the best 1, 2, ... N entries, mean over layers."""
        sums_LN = self._best_first(self._score(axis)).cumsum(-1).flatten(0, -2)
        return [float(x) for x in _mean_share(sums_LN, sums_LN[:, -1])]

    def _score(self, axis: str) -> Tensor:
        if axis != "layer":
            return torch.atleast_2d(self.scores.select(axis, self.ranking.width))
        metric = (
            "block_importance" if self.ranking.layers in BLOCK_RANKINGS else self.ranking.layers
        )  # block scores do not add up to shares
        return torch.atleast_2d(self.scores.layers(metric))

    def _heads(self, groups: int, per_group: int) -> float:
        """Share that the best groups retain, with the best heads in each."""
        if (known := self._known_heads.get((groups, per_group))) is not None:
            return known
        score_LH = self.scores.select("head", self.ranking.width)
        score_LGQ = self._best_first(score_LH.reshape(len(score_LH), self.parent.groups, -1))
        of_groups_LG = self._best_first(score_LGQ[..., :per_group].sum(-1))
        share = float(_mean_share(of_groups_LG[:, :groups].sum(-1, keepdim=True), score_LGQ.sum((1, 2))))
        return self._known_heads.setdefault((groups, per_group), share)

    def _best_first(self, score: Tensor) -> Tensor:
        # Perplexity may fall without a layer, which makes its score negative; a share needs scores of at least 0.
        return score.double().clamp(min=0).sort(dim=-1, descending=not self.ranking.invert).values


def _mean_share(part_LN: Tensor, whole_L: Tensor) -> Tensor:
    """[N]: mean share of the whole, over the rows that have any; 1 if none has."""
    has_any_L = whole_L > 0
    if not has_any_L.any():
        return torch.ones_like(part_LN[0])
    return (part_LN[has_any_L] / whole_L[has_any_L, None]).mean(0)


def inputs(parent: Shape) -> dict[str, str]:
    """What a stage that orders shapes names among its inputs where some layers or experts may have scores of 0.

    They counted as if they retained everything before.
    """
    may_lack = len(set(parent.family.layers)) > 1 or "expert" in parent.sizes
    return {"retained": "where there is any"} if may_lack else {}
