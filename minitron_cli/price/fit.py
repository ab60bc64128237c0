"""Work of a repair beside its passes over the text: outer products, solves, and what is held and stored for them.

The sums and solves are those of `repair.gram` and `repair.least_squares`. Counts are for dense decoder layers; the
neurons of experts are fitted from the same number of tokens in all.
"""

from collections.abc import Collection, Iterator, Sequence

from minitron_cli.cost.compute import Pass, model_size
from minitron_cli.model.residual_stream import adds_as_it_is, norms
from minitron_cli.model.runtime_tensors import experts_module
from minitron_cli.model.shape import Shape
from minitron_cli.price.work import ITEM_BYTES, Moved, Run
from minitron_cli.repair.gram import ROWS
from minitron_cli.repair.layerwise_fit import STORES
from minitron_cli.repair.least_squares import CHOICE_OUTPUTS, RIDGES
from minitron_cli.results.base import ModelSize

FP32, FP64 = ITEM_BYTES["float32"], ITEM_BYTES["float64"]
COPIES = 4  # of the widest sums in fp64 while they are solved

Fitted = Sequence[tuple[Shape, Collection[str]]]
"""Shapes of children with the names of the repairs that each gets."""


def passes_again(fitted: Fitted, tokens: int, length: int) -> Iterator[Pass]:
    """Layers of children that run again for each of their parts, which the cost of a result counts once."""
    for child, repairs in fitted:
        if "least_squares" in repairs:
            size: ModelSize = model_size(child, length)
            again = 1 if adds_as_it_is(child.family) else 2  # the end of the layer is not computed once more
            yield Pass("repair, again", 0, again * tokens * size.decoder_flops)


def statistics(parent: Shape, fitted: Fitted, tokens: int) -> Moved:
    """Products over the tokens and solves of all fits."""
    products = solves = 0
    if any({"rotate", "rescale"} & set(repairs) for _, repairs in fitted):
        products += 2 * tokens * _norms(parent) * parent.sizes["hidden"] ** 2
    for child, repairs in fitted:
        if "least_squares" in repairs:
            for inputs, outputs, count in _parts(parent, child, is_rotated="rotate" in repairs):
                products += count * 2 * tokens * inputs * ((inputs + ROWS) // 2 + outputs)  # half of a symmetric sum
                solves += count * _solve(inputs, outputs)
    return Moved(products=products, solves=solves)


def memory(run: Run, child: Shape, tokens: int, activation_budget: int) -> dict[str, int]:
    """States between layers, the widest sums, and the activations of a layer of each model."""
    inputs = max(inputs for inputs, _, _ in _parts(run.shape, child, is_rotated=True))
    return {
        "stored activations": min(activation_budget, tokens * _stored_channels(run.shape, child) * FP32),
        "sums": COPIES * inputs**2 * FP64 + _expert_sums(run.shape, child),
        "activations": 2 * run.layer_bytes(),
    }


def _expert_sums(parent: Shape, child: Shape) -> int:
    """Bytes of the sums of all experts of a layer, which are there at once: two for each, to fit and to choose."""
    neurons = child.sizes.get("ffn", 0)
    if not experts_module(parent.family) or neurons == parent.sizes.get("ffn", 0):
        return 0
    return child.sizes["expert"] * 2 * neurons * (neurons + parent.sizes["hidden"]) * FP32


def _stored_channels(parent: Shape, child: Shape) -> int:
    """Channels of a token that are stored: its hidden states, and what the last matrix of a layer reads."""
    return (STORES - 1) * parent.sizes["hidden"] + child.sizes["ffn"]


def stored_bytes(parent: Shape, child: Shape, repairs: Collection[str]) -> int:
    """Moments of all norms, and every fitted matrix, in fp32."""
    moments = _norms(parent) * parent.sizes["hidden"] ** 2 if {"rotate", "rescale"} & set(repairs) else 0
    matrices = 0
    if "least_squares" in repairs:
        matrices = sum(n * i * o for i, o, n in _parts(parent, child, is_rotated="rotate" in repairs))
    return FP32 * (moments + matrices)


def _norms(shape: Shape) -> int:
    """Norms over the residual stream whose inputs are summed."""
    return sum(shape.sizes["layer"] if "{layer}" in norm else 1 for norm in norms(shape.family))


def _parts(parent: Shape, child: Shape, *, is_rotated: bool) -> Iterator[tuple[int, int, int]]:
    """(inputs, outputs, number) of the fits: a norm before each block, and the block's writer."""
    hidden, wanted, layers = child.sizes["hidden"], parent.sizes["hidden"], child.sizes["layer"]
    yield child.sizes["head"] * child.sizes["head_dim"], hidden, layers
    yield child.sizes["ffn"], hidden, layers
    if adds_as_it_is(parent.family) and (is_rotated or hidden < wanted):
        yield hidden, wanted, 2 * layers


def _solve(inputs: int, outputs: int) -> int:
    """FLOPs of choosing a ridge on some outputs, and of the solve for all of them."""
    factor, some = inputs**3 // 3, min(CHOICE_OUTPUTS, outputs)
    return (len(RIDGES) + 1) * factor + inputs**2 * (6 * some * len(RIDGES) + 4 * outputs)
