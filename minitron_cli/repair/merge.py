"""LaCo's merge (Yang et al. 2024, eq. 2): differences of dropped layers, added to the layer before them."""

import itertools
from collections.abc import Sequence

from torch import Tensor

from minitron_cli.checkpoint.reader import Checkpoint
from minitron_cli.prune.plan import PrunePlan
from minitron_cli.prune.slicing import prune_tensor
from minitron_cli.prune.tensor_map import TensorMap
from minitron_cli.repair.store import RepairStore

MERGED = "merged"  # kind of tensors in the store


def merged(own: Tensor, following: Sequence[Tensor]) -> Tensor:
    """theta + sum over k of (theta_k - theta) for a tensor theta of the layer that stays; in fp32, then its dtype."""
    total = own.float()
    for other in following:
        total = total + (other.float() - own.float())
    return total.to(own.dtype)


def put_merged(plan: PrunePlan, checkpoint: Checkpoint, store: RepairStore) -> None:
    """Keep the child's tensors of every layer that has dropped ones directly after it, by the parent's names."""
    dropped = dropped_after(plan)
    for name in plan.sources(checkpoint.tensors).values():
        match = plan.parent.family.match(name)
        if following := dropped.get(match.at.get("layer", -1)):
            holders = [layer for layer in following if plan.parent.family.holds(layer, match.template)]
            others = [checkpoint.read(match.template.format(**match.at | {"layer": layer})) for layer in holders]
            whole = merged(checkpoint.read(name), others)
            store.put(MERGED, name, prune_tensor(TensorMap.of(plan, name), [(0, whole)]))


def dropped_after(plan: PrunePlan) -> dict[int, range]:
    """Kept layer -> dropped layers between it and the next kept one, where there are any."""
    kept, layers = plan.at("layer"), plan.parent.sizes["layer"]
    if kept is None:
        return {}
    ends = [*kept.tolist(), layers]
    return {layer: range(layer + 1, end) for layer, end in itertools.pairwise(ends) if end > layer + 1}
