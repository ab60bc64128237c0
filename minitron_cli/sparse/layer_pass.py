"""Make a model sparse layer by layer: inputs come from layers that are sparse already.

As in both papers, the inputs of all matrices of a layer are collected in one pass through the layer as it was, with
what the sparse layers before it compute. Then all its matrices are pruned, and the tokens go through the sparse layer.
"""

# O output, I input, R held-out token

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from minitron_cli import progress, stopping
from minitron_cli.errors import InputError
from minitron_cli.layerwise.runner import LayerwiseRunner, StoredWeights
from minitron_cli.model.linear_layers import INPUTS, InputGroup, held, input_groups
from minitron_cli.model.shape import Shape
from minitron_cli.model.taps import layer_module
from minitron_cli.prune.slicing import check_finite
from minitron_cli.sparse import least_squares
from minitron_cli.sparse.mask_file import MaskFile, MaskSpec
from minitron_cli.sparse.metrics.base import SparseMetric
from minitron_cli.sparse.pattern import Pattern
from minitron_cli.sparse.statistics import FEW_TOKENS, InputStatistics, LayerInputs
from minitron_cli.sparse.store import Figures, LayerStore, kept, pruned

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from minitron_cli.data.batches import Batch
    from minitron_cli.layerwise.activation_store import ActivationStore


@dataclass(frozen=True)
class Method:
    """How matrices are pruned."""

    metric: SparseMetric
    patterns: Sequence[Pattern]
    """Of each layer."""
    fits: bool
    """Whether the weights that stay are fitted by least squares."""
    masks: MaskFile | None = None
    """Masks of the parent, if it is sparse: what these have pruned stays pruned."""

    def lost(self, name: str, device: str | torch.device) -> Tensor | None:
        """Which weights of a matrix of the parent are pruned already; None if none are."""
        return ~self.masks.read(name).to(device) if self.masks and name in self.masks else None


class StoredMatrix(NamedTuple):
    """A matrix of a layer on disk."""

    name: str
    group: InputGroup
    expert: int | None


def matrices(shape: Shape, groups: Sequence[InputGroup], layer: int) -> Iterator[StoredMatrix]:
    """Matrices of a layer, those of an input one after the other."""
    for group in held(shape, groups, layer):
        for expert in range(shape.sizes["expert"]) if group.is_of_expert else (None,):
            for template in group.templates:
                yield StoredMatrix(template.format(layer=layer, expert=expert), group, expert)


def mask_specs(shape: Shape, metric: SparseMetric, patterns: Sequence[Pattern]) -> dict[str, MaskSpec]:
    """Mask of every matrix by its stored name, given the pattern of each layer."""
    shapes, groups, found = shape.tensors(), input_groups(shape), dict[str, MaskSpec]()
    for layer, pattern in enumerate(patterns):
        for matrix in matrices(shape, groups, layer):
            found[matrix.name] = MaskSpec(shapes[matrix.name], pattern, metric.axis(pattern, INPUTS))
    return found


class SparsifyPass:
    """The `LayerTask` that makes a model sparse. What is finished is in the store."""

    def __init__(
        self,
        model: "PreTrainedModel",
        shape: Shape,
        batches: "Sequence[Batch]",
        method: Method,
        store: LayerStore,
        states: "ActivationStore",
        device: str,
        step: progress.Step,
    ) -> None:
        self._shape, self._method, self._store = shape, method, store
        self._groups, self._samples = input_groups(shape), sum(len(batch.input_ids_BT) for batch in batches)
        self._sparse_layer: int | None = None  # whose weights are read with their zeros
        self._weights = StoredWeights(model, shape.family, self._read, device)
        self._runner = LayerwiseRunner(model, shape.family, batches, self._weights, states, step)

    def _read(self, name: str) -> Tensor:
        """Tensor on disk: the parent's until its layer was pruned in this pass."""
        layer = self._sparse_layer
        if layer is not None and name in {matrix.name for matrix in matrices(self._shape, self._groups, layer)}:
            return self._store.made(layer, name).weight
        return self._store.parent.read(name)

    def begin(self) -> None:
        """Embed every batch."""
        self._runner.embed()

    def restore(self, layers: int, state: Mapping[str, Tensor]) -> None:
        """Continue behind some layers: these are in the store."""
        self._runner.skip(2 * layers)

    def state(self) -> dict[str, Tensor]:
        """Nothing: what was made is in the store."""
        return {}

    def advance(self, layer: int) -> None:
        """Collect the inputs of a layer, prune its matrices, and run every batch through what is left."""
        options = {"needs": self._method.metric.needs, "fits": self._method.fits, "samples": self._samples}
        seen = LayerInputs(self._shape, self._groups, layer, **options)
        with self._runner.at(layer):
            self._runner.before(layer, [seen])
            self._store.put(layer, self._made(layer, seen))
            if layer + 1 < self._shape.sizes["layer"]:
                self._renew(layer)
                self._runner.past(layer)

    def _made(self, layer: int, seen: LayerInputs) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for matrix in matrices(self._shape, self._groups, layer):
            stopping.raise_if_stopped()
            found |= self._sparse(layer, matrix.name, seen.of(matrix.group, matrix.expert))
        return found

    def _sparse(self, layer: int, name: str, inputs: InputStatistics | None) -> dict[str, Tensor]:
        """What the store keeps of a matrix."""
        stored, pattern = self._store.parent.read(name), self._method.patterns[layer]
        check_finite(name, stored)
        weight_OI = stored.to(self._runner.device)
        tokens = inputs.tokens if inputs else 0
        if not pattern.zeros:
            return kept(name, torch.ones_like(stored, dtype=torch.bool), None, None, Figures(True, tokens, 0, 0, False))
        lost_OI = self._method.lost(name, weight_OI.device)
        if inputs is None or tokens < FEW_TOKENS:
            return self._by_magnitude(name, weight_OI, pattern, lost_OI, tokens)
        made = self._method.metric.sparse(weight_OI, inputs.sums(), pattern, lost_OI)
        check_continued(name, made.mask_OI, lost_OI)
        whole_OI = weight_OI if made.weight_OI is None else made.weight_OI.to(weight_OI.dtype)
        plain_OI = pruned(whole_OI, made.mask_OI)
        check_finite(name, plain_OI)
        before = relative_error(weight_OI, plain_OI, inputs.held_out())
        repaired_OI, after = None, before
        if self._method.fits:
            repaired_OI, after = fitted(weight_OI, plain_OI, made.mask_OI, inputs)
        if repaired_OI is None or after is None or before is None or not after < before:
            repaired_OI, after = None, before
        figures = Figures(True, tokens, before, after, repaired_OI is not None)
        return kept(name, made.mask_OI, None if made.weight_OI is None else plain_OI, repaired_OI, figures)

    def _by_magnitude(
        self, name: str, weight_OI: Tensor, pattern: Pattern, lost_OI: Tensor | None, tokens: int
    ) -> dict[str, Tensor]:
        by_metric = self._method.metric.needs == "nothing"
        if not by_metric:
            progress.say(f"{name} is pruned by magnitude: {tokens} calibration tokens came to it")
        mask_OI = self._method.metric.largest(weight_OI, pattern, lost_OI)
        check_continued(name, mask_OI, lost_OI)
        return kept(name, mask_OI, None, None, Figures(by_metric, tokens, None, None, False))

    def _renew(self, layer: int) -> None:
        """Read the pruned weights of the layer that is in memory."""
        module = self._runner.model.get_submodule(layer_module(self._shape.family).format(layer=layer))
        self._sparse_layer = layer
        self._weights.renew_(module, {matrix.name for matrix in matrices(self._shape, self._groups, layer)})
        self._sparse_layer = None


def check_continued(name: str, mask: Tensor, lost: Tensor | None) -> None:
    """Raise InputError if a weight that was pruned already is kept: there were more of them than the pattern has."""
    if lost is not None and bool((mask & lost).any()):
        raise InputError(
            f"{name} has more pruned weights in one place than the new pattern: use the metric that it was pruned by, "
            "or start from the dense model"
        )


def fitted(
    weight_OI: Tensor, plain_OI: Tensor, mask_OI: Tensor, inputs: InputStatistics
) -> tuple[Tensor, float | None]:
    """The weights that stay, fitted by least squares, in the stored dtype, and the error of the matrix."""
    assert inputs.split
    fit_II, held_out_II = inputs.split.fit.inputs_II, inputs.split.held_out.inputs_II
    found_OI = least_squares.fitted(weight_OI, plain_OI, mask_OI, fit_II, held_out_II)
    found_OI = pruned(found_OI.to(weight_OI.dtype), mask_OI)
    return found_OI, relative_error(weight_OI, found_OI, inputs.held_out())


def relative_error(weight_OI: Tensor, sparse_OI: Tensor, inputs_RI: Tensor | None) -> float | None:
    """Norm of the change of the outputs of some tokens, relative to the norm of the outputs; None without tokens."""
    if inputs_RI is None:
        return None
    whole = float((inputs_RI @ weight_OI.float().T).norm())
    return float((inputs_RI @ (weight_OI.float() - sparse_OI.float()).T).norm()) / whole if whole else None
