"""Importance scores of one model, as measured. Higher means more important. Knows neither model nor ranking.

One tensor per axis and metric: [layer, channel] where each layer has channels of its own (heads, experts, neurons),
[layer, expert, channel] where each expert has (its neurons), [channel] where all layers share them (hidden), and
[layer] for layer scores. A file holds them under the same names:

    ffn.batch=l2.sequence=mean      head.magnitude=l1      layer.block_importance      parent.nll
    ffn.pre_activation.batch=l2.sequence=mean              layer.block_perplexity=4, [layer - 4 + 1]
    ffn.flap                        expert.output_norm
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from minitron_cli.checkpoint.safetensors_file import read_safetensors
from minitron_cli.checkpoint.writer import write_safetensors
from minitron_cli.errors import ArtifactError
from minitron_cli.scores.layer_score import LAYER_SCORES, LayerScore, layer_score
from minitron_cli.scores.metric import OUTPUT_NORM, Activation, Aggregation, Metric, names_of

FILE = "scores.safetensors"


@dataclass(frozen=True, eq=False)
class Scores:
    """All scores of one model."""

    by_name: Mapping[str, Tensor]
    """Name -> tensor."""

    def select(self, axis: str, metric: Metric) -> Tensor:
        """Scores of an axis by a metric, in one of the shapes above. ArtifactError if they were not measured."""
        return metric.select(axis, self.by_name)

    def activation(self, axis: str, batch: Aggregation = "l2", sequence: Aggregation = "mean") -> Tensor:
        """Activation importance: [layer, channel], or [channel] for hidden."""
        return self.select(axis, Activation(batch=batch, sequence=sequence))

    def by_layer(self, axis: str) -> Tensor:
        """Activation importance [layer, channel] or [channel]; the neurons of a layer's experts are concatenated."""
        score = self.activation(axis)
        return score.flatten(1) if score.ndim > 2 else score

    def layers(self, kind: str) -> Tensor:
        """Layer score [layer], or [layer - n + 1] of `kind=n`, for blocks of n layers by their first layer.

        ArtifactError names the command that measures it if it was not measured.
        """
        name = f"layer.{kind}"
        if name in self.by_name:
            return self.by_name[name]
        kind, _, length = kind.partition("=")
        if length:
            how = layer_score(kind).measured_by.format(n=length)
            raise ArtifactError(
                f"the scores hold no {kind} of {length} layers: measure it with `minitron importance {how}`"
            )
        known = ", ".join(names_of("layer", self.by_name))
        how = f"minitron importance {layer_score(kind).measured_by}".rstrip()
        raise ArtifactError(f"no scores {name!r}: choose among {known}, or measure it with `{how}`")

    def of_single_layers(self) -> list[tuple[LayerScore, Tensor]]:
        """Every measured layer score with one value per layer, in the order of the registry: score, [layer]."""
        measured = [(score, f"layer.{score.kind}") for score in LAYER_SCORES if not score.is_of_blocks]
        return [(score, self.by_name[name]) for score, name in measured if name in self.by_name]

    @property
    def parent_nll(self) -> float | None:
        """Mean loss of the whole model in nats per calibration token; None if no layer removal was measured."""
        return float(self.by_name["parent.nll"]) if "parent.nll" in self.by_name else None

    @property
    def has_experts(self) -> bool:
        """Whether experts were scored."""
        return OUTPUT_NORM in self.by_name

    def __or__(self, other: "Scores") -> "Scores":
        """Scores of both; those of `other` win."""
        return Scores(dict(self.by_name) | dict(other.by_name))

    def tensors(self) -> dict[str, Tensor]:
        """Name -> tensor, a new dictionary."""
        return dict(self.by_name)

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "Scores":
        """Scores of the named tensors."""
        return cls(dict(tensors))

    def save(self, directory: Path) -> None:
        """Write `scores.safetensors` into a directory that has none."""
        write_safetensors(directory / FILE, self.by_name)

    @classmethod
    def load(cls, directory: Path) -> "Scores":
        """Scores stored in a directory. CheckpointError if the file is damaged."""
        return cls.from_tensors(read_safetensors(directory / FILE))
