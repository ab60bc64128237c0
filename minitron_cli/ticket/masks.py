"""Masks of tickets and of their controls: which weights of which matrices are kept. Knows no training.

Masks are bool tensors by the matrix's stored name, True where a weight is kept. What is lost stays lost.
"""

import math
from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor

from minitron_cli import io
from minitron_cli.choices import TicketScope
from minitron_cli.errors import RecipeError
from minitron_cli.model.linear_layers import input_groups
from minitron_cli.model.shape import Shape
from minitron_cli.sparse.mask_file import MaskFile, MaskSpec, new_mask_file
from minitron_cli.sparse.parameter_masks import ParameterMasks
from minitron_cli.sparse.pattern import SHARE_DIGITS, Pattern, highest
from minitron_cli.ticket.config import TicketConfig

Masks = Mapping[str, Tensor]
LOST = -1.0  # a score below that of every weight


def prunable(shape: Shape) -> tuple[str, ...]:
    """Stored names of every matrix of a decoder block; embeddings, head, norms and routers stay whole."""
    templates = (template for group in input_groups(shape) for template in group.templates)
    return tuple(name for template in templates for name in shape.names(template))


def last_layer(shape: Shape) -> frozenset[str]:
    """Those of the last decoder layer."""
    templates = (template for group in input_groups(shape) for template in group.templates)
    last = (template.replace("{layer}", str(shape.sizes["layer"] - 1)) for template in templates)
    return frozenset(name for template in last for name in shape.names(template))


def by_magnitude(
    weights: Callable[[str], Tensor],
    before: Masks,
    lost: Fraction,
    scope: TicketScope,
    others: Mapping[str, Fraction] = MappingProxyType({}),
) -> dict[str, Tensor]:
    """Masks that keep the largest trained weights, so that the share `lost` of each matrix or of all is pruned.

    `weights` reads a matrix by its name; `before` are the masks that it was trained with; `others` are the shares of
    matrices that lose another one. The number of lost weights is rounded down. With the scope `global` the largest
    weight of every matrix is kept, so that none is empty: at least as many must be left as there are matrices
    (`check_none_empty`).
    """
    scores = {name: _scores(weights(name), mask) for name, mask in before.items()}
    if scope == "global":
        return _highest_of_all(scores, lost)
    return {name: highest_share(score, others.get(name, lost)) for name, score in scores.items()}


def _scores(weight: Tensor, mask: Tensor) -> Tensor:
    return weight.float().abs().masked_fill(~mask, LOST)


def highest_share(scores: Tensor, lost: Fraction) -> Tensor:
    """Mask of the highest scores without the share `lost`; of equal ones those with the lower index."""
    kept = scores.numel() - int(lost * scores.numel())
    return highest(scores.reshape(1, -1), kept).reshape(scores.shape)


def _highest_of_all(scores: Mapping[str, Tensor], lost: Fraction) -> dict[str, Tensor]:
    """Masks of the highest scores of all, and of the highest of each, for which there must be room."""
    flat = {name: score.flatten().clone() for name, score in scores.items()}
    for score in flat.values():
        score[score.argmax()] = torch.inf
    kept = highest_share(torch.cat(list(flat.values())), lost).split([score.numel() for score in flat.values()])
    return {name: mask.reshape(score.shape) for (name, score), mask in zip(scores.items(), kept, strict=True)}


def check_none_empty(shape: Shape, config: TicketConfig) -> None:
    """Raise RecipeError if the last round with the scope `global` leaves fewer weights than there are matrices."""
    shapes, names = shape.tensors(), prunable(shape)
    weights = sum(math.prod(shapes[name]) for name in names)
    kept = weights - int((1 - (1 - Fraction(str(config.rate))) ** config.rounds) * weights)
    if config.scope == "global" and kept < len(names):
        raise RecipeError(
            f"{config.rounds} rounds of {config.rate:g} leave {kept} weights in {len(names)} matrices, and each keeps "
            "one at least: set fewer rounds or a lower rate"
        )


def all_kept(shape: Shape) -> dict[str, Tensor]:
    """Masks that prune nothing."""
    shapes = shape.tensors()
    return {name: torch.ones(shapes[name], dtype=torch.bool) for name in prunable(shape)}


def shuffled(masks: Masks, seed: int) -> dict[str, Tensor]:
    """Every mask permuted within its matrix: each keeps its density, and no weight its place."""
    draw = torch.Generator().manual_seed(seed)
    return {
        name: mask.flatten()[torch.randperm(mask.numel(), generator=draw)].reshape(mask.shape)
        for name, mask in masks.items()
    }


def random_like(masks: Masks, seed: int) -> dict[str, Tensor]:
    """Random masks of the same density over all matrices together, so that matrices lose what they had been spared."""
    draw = torch.Generator().manual_seed(seed)
    scores = {name: torch.rand(mask.shape, generator=draw) for name, mask in masks.items()}
    weights, kept = (sum(one) for one in zip(*((m.numel(), int(m.sum())) for m in masks.values()), strict=True))
    return _highest_of_all(scores, Fraction(weights - kept, weights))


def spec_of(mask: Tensor) -> MaskSpec:
    """Description of a mask by its exact number of zeros, as a share of the whole tensor."""
    zeros, one = int((~mask).sum()), 10**SHARE_DIGITS
    return MaskSpec(tuple(mask.shape), Pattern(Fraction(-(-zeros * one // mask.numel()), one)), None)


def written(masks: Masks, path: Path, shape: Shape) -> ParameterMasks:
    """The same masks as a file at `path`, which an interrupted run may have left, for a model of this shape."""
    io.make_dirs(path.parent)
    path.unlink(missing_ok=True)
    with new_mask_file(path, {name: spec_of(mask) for name, mask in masks.items()}) as file:
        for name, mask in masks.items():
            file.put(name, mask)
    return ParameterMasks(MaskFile.open(path), shape.family, shape.tensors())


def read(file: MaskFile) -> dict[str, Tensor]:
    """All masks of a file."""
    return {name: file.read(name) for name in file.specs}


@torch.no_grad()
def apply_(model: torch.nn.Module, masks: ParameterMasks) -> None:
    """Set every lost weight of a loaded model to zero."""
    for name, p in model.named_parameters():
        if masks.covers(name):
            p.masked_fill_(~masks.kept(name, p.shape).to(p.device), 0)


def moved(before: Callable[[str], Tensor], after: Callable[[str], Tensor], masks: Masks) -> float | None:
    """Root mean square of the distance that masked weights have moved; None if the masks keep none."""
    total, count = 0.0, 0
    for name, mask in masks.items():
        total += float((after(name) - before(name))[mask].double().square().sum())
        count += int(mask.sum())
    return (total / count) ** 0.5 if count else None
