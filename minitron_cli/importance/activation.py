"""Activation importance of heads, neurons and hidden channels: nine aggregations in one pass.

`model.taps` gives the places where activations are observed. Per sample only three numbers per channel are kept (mean
of |x|, L2 norm and variance over its tokens), and over samples only the running moments of those, so memory does not
depend on the number of samples.

    B batch, T token, C channel of the axis, K features of the tapped tensor, H hook, S sequence aggregation
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor

from minitron_cli.importance.fluctuation import Fluctuation
from minitron_cli.importance.running_moments import Moments
from minitron_cli.layerwise.config import ObserverOptions
from minitron_cli.layerwise.observer import Part, Tokens
from minitron_cli.layerwise.resume import under
from minitron_cli.model.family import Family
from minitron_cli.model.layout import parse
from minitron_cli.model.taps import Tap, X, taps
from minitron_cli.scores.metric import AGGREGATIONS, PRE_ACTIVATION, Activation, Aggregation, Flap

FLUCTUATION = "fluctuation"  # prefix of its moments in a saved pass

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn
    from torch.utils.hooks import RemovableHandle
    from transformers import PreTrainedModel


class Activations:
    """Importance of every channel of head, ffn and hidden (Muralidharan et al. 2024, sec. 2.2), experts aside.

    head: each token's L2 norm of the head's output. ffn: the input of the matrix that reads the neurons.
    hidden: the outputs of all norms, scored norm by norm, then summed. With `pre_activation` each neuron is observed a
    second time, where the paper prints it: X W1^T, before the activation function (in a gated MLP, the gate's).
    The same inputs give FLAP's scores of heads and neurons (`fluctuation.py`).
    Only tokens of the loss mask are observed; a sample without any is skipped.
    """

    name = "activation"
    sees_final_norm: ClassVar[bool] = True

    def __init__(self, family: Family, sizes: Mapping[str, int], part: Part, pre_activation: bool = False) -> None:
        self._sizes = sizes
        self._hooks: dict[str, list[Hook]] = {}
        for tap in taps(family):
            if tap.axis in sizes and (hooks := _hooks(tap, part, family, sizes)):
                self._hooks.setdefault(tap.axis, []).extend(hooks)
        first = _first_mlp_matrix(family) if pre_activation else None
        if first and (hooks := _hooks(Tap("ffn", first, "output"), part, family, sizes)):
            self._hooks[f"ffn.{PRE_ACTIVATION}"] = hooks
        self._batch: dict[str, list[Tensor]] = {axis: [] for axis in self._hooks}  # one [S, B, C] per hook
        self._moments: dict[str, Moments] = {}  # over samples, [H, S, C]
        self._fluctuation = Fluctuation(sizes)
        self._counts_BT: Tensor | None = None  # loss mask of the current batch

    @classmethod
    def of(cls, family: Family, sizes: Mapping[str, int], part: Part, options: ObserverOptions) -> Self:
        """Observer of a part of a model."""
        return cls(family, sizes, part, options.pre_activation)

    @classmethod
    def joined(cls, family: Family, sizes: Mapping[str, int], parts: Sequence[Self]) -> Self:
        """Observer of the whole model, from those of its parts."""
        whole = cls(
            family,
            sizes,
            Part(range(sizes["layer"]), True),
            any(f"ffn.{PRE_ACTIVATION}" in part._hooks for part in parts),
        )
        for axis, hooks in whole._hooks.items() if parts[0]._moments else ():
            seen = {hook: part._moments[axis][h] for part in parts for h, hook in enumerate(part._hooks.get(axis, []))}
            whole._moments[axis] = Moments.stack([seen[hook] for hook in hooks])
        whole._fluctuation.join([part._fluctuation for part in parts if part._fluctuation.moments])
        return whole

    def watch(self, model: "PreTrainedModel", tokens: Tokens) -> "list[RemovableHandle]":
        self._counts_BT = tokens.loss_mask_BT
        self._fluctuation.begin_batch()
        for axis, hooks in self._hooks.items():
            self._batch[axis] = [torch.empty(0)] * len(hooks)
        samples, length = tokens.input_ids_BT.shape
        modules = {hook: model.get_submodule(hook.module) for hooks in self._hooks.values() for hook in hooks}
        return [
            _register(modules[hook], hook.side, partial(self._see, axis, h, modules[hook], (samples, length)))
            for axis, hooks in self._hooks.items()
            for h, hook in enumerate(hooks)
        ]

    def _see(self, axis: str, h: int, module: Any, shape: tuple[int, int], features: Tensor) -> None:
        """Accumulate features [B, T, K], or [B T, K]: some models flatten tokens before their experts."""
        count, hook, features_BTK = self._sizes[axis.partition(".")[0]], self._hooks[axis][h], features.view(*shape, -1)
        if hook.part:
            features_BTK = _inputs_of(axis, features_BTK[..., slice(*hook.part)], count)
        if axis not in self._sizes:
            features_BTK = features_BTK[..., :count]  # a fused gate and up matrix puts the gate first
        values_BTC = channels(features_BTK, count)
        over_tokens = over_sample(values_BTC, self._counts_BT)
        self._batch[axis][h] = sequence_aggregates(values_BTC, over_tokens, self._counts_BT)
        if axis in Flap.axes and hook.side == "input" and hook.row is not None:
            is_whole = features_BTK.shape == values_BTC.shape  # else a head, whose channels are observed by their norm
            inputs = over_tokens if is_whole else over_sample(features_BTK.float(), self._counts_BT)
            self._fluctuation.add(axis, inputs, module.weight)

    def end_batch(self, tokens: Tokens, hidden_BTD: Tensor) -> None:
        self._fluctuation.end_batch()
        is_sample_B = None if tokens.loss_mask_BT is None else tokens.loss_mask_BT.any(1)
        for axis, aggregates in self._batch.items():
            values_HSBC = torch.stack(aggregates).double()
            if is_sample_B is not None:
                values_HSBC = values_HSBC[:, :, is_sample_B]
            if not values_HSBC.shape[2]:
                continue
            batch = Moments.of(values_HSBC, dim=2)
            before = self._moments.get(axis)
            self._moments[axis] = batch if before is None else before.to(batch.mean.device).merge(batch)
            aggregates.clear()

    def state(self) -> dict[str, Tensor]:
        own = {f"{axis}.{name}": t for axis, moments in self._moments.items() for name, t in moments.tensors().items()}
        return own | {f"{FLUCTUATION}.{name}": t for name, t in self._fluctuation.moments.state().items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self._fluctuation.moments.restore(under(FLUCTUATION, state))
        self._moments = {}
        for axis in self._hooks if state else ():
            own = {name.removeprefix(f"{axis}."): t for name, t in state.items() if name.startswith(f"{axis}.")}
            self._moments[axis] = Moments.from_tensors(own)

    def merge(self, state: Mapping[str, Tensor]) -> None:
        before, fluctuation = self._moments.copy(), self._fluctuation.moments.state()
        self.restore(state)
        self._fluctuation.moments.merge(fluctuation)
        for axis, moments in before.items():
            others = self._moments.get(axis)
            self._moments[axis] = moments.merge(others.to(moments.mean.device)) if others else moments

    def scores(self) -> dict[str, Tensor]:
        layers = {axis: [hook.row for hook in hooks if hook.row is not None] for axis, hooks in self._hooks.items()}
        return self._fluctuation.scores(layers) | {
            _name(axis, batch, sequence): self._by_row(axis, moments.aggregate(batch)[:, s])
            for axis, moments in self._moments.items()
            for batch in AGGREGATIONS
            for s, sequence in enumerate(AGGREGATIONS)
        }

    def _by_row(self, axis: str, score_HC: Tensor) -> Tensor:
        """Sum over the hooks that observe the same channels: [layer, C], or [C] for an axis that all layers share.

        Layers without such channels have zeros.
        """
        rows = [hook.row for hook in self._hooks[axis]]
        shared = torch.tensor([row or 0 for row in rows], device=score_HC.device)
        sums_LC = score_HC.new_zeros(self._sizes["layer"], score_HC.shape[1]).index_add(0, shared, score_HC)
        return (sums_LC[0] if None in rows else sums_LC).float().cpu()


def _name(series: str, batch: Aggregation, sequence: Aggregation) -> str:
    axis, _, neuron = series.partition(".")
    return Activation(batch=batch, sequence=sequence, neuron=PRE_ACTIVATION if neuron else "activation").key(axis)


def _first_mlp_matrix(family: Family) -> str | None:
    """Name of the module that computes neurons: W1, or the gate of a gated MLP; None if all neurons are in experts."""
    layouts = ((template, parse(text)) for template, text in family.tensors.items() if "{expert}" not in template)
    makers = (t.removesuffix(".weight") for t, lay in layouts if len(lay.dims) == 2 and "ffn" in lay.axes(0))
    return next(makers, None)


class Hook(NamedTuple):
    """A tap in one module of the model."""

    module: str
    side: str
    """`input` or `output`."""
    row: int | None
    """Layer whose channels it observes; None where all layers share them."""
    part: tuple[int, int] | None = None
    """First feature that shows the axis, and one after the last; None where all do."""


def _inputs_of(axis: str, x_BTK: Tensor, count: int) -> Tensor:
    """Inputs of a state space, in the order in which an entry of the axis is a slice; they are stored head by head."""
    return x_BTK if axis == X[0] else x_BTK.unflatten(-1, (-1, count)).transpose(-1, -2).flatten(-2)


def _part(tap: Tap, family: Family, sizes: Mapping[str, int]) -> tuple[int, int] | None:
    if tap.section is None:
        return None
    lengths = parse(family.tensors[f"{tap.module}.weight"]).lengths(0, sizes)
    start = sum(lengths[: tap.section])
    return start, start + lengths[tap.section]


def _hooks(tap: Tap, part: Part, family: Family, sizes: Mapping[str, int]) -> list[Hook]:
    if "{layer}" not in tap.module:
        return [Hook(tap.module, tap.side, None)] if part.with_final_norm else []
    per_layer, layers = "layer" in family.owners(tap.axis), (i for i in part.layers if family.holds(i, tap.module))
    shown = _part(tap, family, sizes)
    return [Hook(tap.module.format(layer=i), tap.side, i if per_layer else None, shown) for i in layers]


def _register(module: "nn.Module", side: str, see: "Callable[[Tensor], None]") -> "RemovableHandle":
    if side == "input":
        return module.register_forward_pre_hook(lambda _, args: see(args[0]))
    return module.register_forward_hook(lambda _, args, output: see(output))


def channels(features_BTK: Tensor, count: int) -> Tensor:
    """Channel activations in fp32, [B, T, count]; the L2 norm where a channel is a slice of features, as a head is."""
    if features_BTK.shape[-1] == count:
        return features_BTK.float()  # squares of bf16 must not be rounded to bf16
    return torch.linalg.vector_norm(features_BTK.unflatten(-1, (count, -1)), dim=-1, dtype=torch.float32)


def over_sample(values_BTC: Tensor, loss_mask_BT: Tensor | None = None) -> Moments:
    """Moments [B, C] over each sample's tokens, with a loss mask only over its tokens."""
    return Moments.of(values_BTC, dim=1, weights=_weights(values_BTC, loss_mask_BT))


def _weights(values_BTC: Tensor, loss_mask_BT: Tensor | None) -> Tensor | None:
    return None if loss_mask_BT is None else loss_mask_BT.to(values_BTC.dtype).unsqueeze(-1)


def sequence_aggregates(values_BTC: Tensor, over_tokens: Moments, loss_mask_BT: Tensor | None = None) -> Tensor:
    """Mean |x|, L2 norm and variance over each sample's tokens, [S, B, C], in the order of AGGREGATIONS.

    The last two are from the moments over the same tokens (`over_sample`). NaN for a sample without any.
    """
    weights_BT1 = _weights(values_BTC, loss_mask_BT)
    counted_BTC = values_BTC if weights_BT1 is None else values_BTC * weights_BT1
    mean_abs_BC = counted_BTC.abs().sum(1) / over_tokens.count  # the paper's mean is (1/n) sum |x|
    return torch.stack([mean_abs_BC if a == "mean" else over_tokens.aggregate(a) for a in AGGREGATIONS])
