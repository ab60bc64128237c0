"""How important everything is, as measured. Higher means keep. Knows neither model nor ranking.

One tensor per axis and way of scoring it, [layer, channel] where each layer has channels of its own (heads, experts,
neurons), [layer, expert, channel] where each expert has (its neurons), [channel] where all layers share them (hidden),
[layer] for layers. A file holds them under the same names:

    ffn.batch=l2.sequence=mean      head.magnitude=l1      layer.block_importance      parent.nll
    ffn.pre_activation.batch=l2.sequence=mean              layer.block_perplexity=4, [layer - 4 + 1]
    expert.output_norm
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from minitron_cli import canonical_json
from minitron_cli.checkpoint.reader import read_safetensors
from minitron_cli.checkpoint.writer import write_safetensors
from minitron_cli.errors import ArtifactError
from minitron_cli.scores.metric import Activation, Aggregation, Magnitude, Metric, Random

FILE = "scores.safetensors"
PRE_ACTIVATION = "pre_activation"
OUTPUT_NORM = "expert.output_norm"


def key(axis: str, metric: Activation | Magnitude) -> str:
    """The name of one axis's scores."""
    match metric:
        case Activation() if axis == "expert":
            return OUTPUT_NORM  # what a token adds to the residual stream is one number: nothing to aggregate
        case Activation(batch=batch, sequence=sequence, neuron=neuron):
            place = f".{PRE_ACTIVATION}" if axis == "ffn" and neuron == PRE_ACTIVATION else ""
            return f"{axis}{place}.batch={batch}.sequence={sequence}"
        case Magnitude(norm=norm):
            return f"{axis}.magnitude={norm}"


@dataclass(frozen=True, eq=False)
class Scores:
    """All scores of one model."""

    by_name: Mapping[str, Tensor]

    def select(self, axis: str, metric: Metric) -> Tensor:
        """One of the shapes above. ArtifactError says what there is if it was not measured."""
        if isinstance(metric, Random):
            return _random(axis, self._shape(axis), metric.seed)
        return self._get(axis, key(axis, metric))

    def activation(self, axis: str, batch: Aggregation = "l2", sequence: Aggregation = "mean") -> Tensor:
        """Activation importance: [layer, channel], or [channel] for hidden."""
        return self.select(axis, Activation(batch=batch, sequence=sequence))

    def by_layer(self, axis: str) -> Tensor:
        """Activation importance, the neurons of a layer's experts side by side: [layer, channel] or [channel]."""
        score = self.activation(axis)
        return score.flatten(1) if score.ndim > 2 else score

    def layers(self, metric: str) -> Tensor:
        """[layer]: block_importance (1 - cosine), perplexity (the change without the layer), nll (nats without it).

        Of blocks of n layers [layer - n + 1], by their first: block_perplexity=n, block_nll=n, block_task=n.
        """
        kind, _, length = metric.partition("=")
        if length and f"layer.{metric}" not in self.by_name:
            task = " block_task=winogrande:5" if kind == "block_task" else ""
            raise ArtifactError(
                f"the scores hold no {kind} of {length} layers: "
                f"measure it with `minitron importance blocks=[{length}]{task}`"
            )
        return self._get("layer", f"layer.{metric}")

    @property
    def parent_nll(self) -> float | None:
        """Mean nats per calibration token of the whole model; None where layer removal was not measured."""
        return float(self.by_name["parent.nll"]) if "parent.nll" in self.by_name else None

    @property
    def has_experts(self) -> bool:
        return OUTPUT_NORM in self.by_name

    def __or__(self, other: "Scores") -> "Scores":
        return Scores(dict(self.by_name) | dict(other.by_name))

    def _get(self, axis: str, name: str) -> Tensor:
        if name not in self.by_name:
            known = ", ".join(self._of_axis(axis) or sorted(self.by_name))
            raise ArtifactError(f"no scores {name!r}: choose among {known}, or measure it with `minitron importance`")
        return self.by_name[name]

    def _shape(self, axis: str) -> tuple[int, ...]:
        names = self._of_axis(axis)
        return tuple(self._get(axis, names[0] if names else f"{axis}.random").shape)

    def _of_axis(self, axis: str) -> list[str]:
        return sorted(name for name in self.by_name if name.startswith(f"{axis}."))

    def tensors(self) -> dict[str, Tensor]:
        return dict(self.by_name)

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "Scores":
        return cls(dict(tensors))

    def save(self, directory: Path) -> None:
        """Write `scores.safetensors` into a directory that has none."""
        write_safetensors(directory / FILE, self.by_name)

    @classmethod
    def load(cls, directory: Path) -> "Scores":
        return cls.from_tensors(read_safetensors(directory / FILE))


def _random(axis: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """Uniform scores, drawn for each layer, or expert of a layer, from a generator of its own."""
    *owners, channels = shape
    rows = [torch.rand(channels, generator=_generator(seed, axis, row)) for row in range(math.prod(owners))]
    return torch.stack(rows).reshape(shape)


def _generator(seed: int, axis: str, row: int) -> torch.Generator:
    return torch.Generator().manual_seed(int(canonical_json.digest([seed, axis, row])[:15], 16))
