"""Options of `minitron sparsify`: the pattern, the metric by which weights are chosen, and the repair of the others."""

import math
from fractions import Fraction
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, model_validator

from minitron_cli import methods
from minitron_cli.choices import MaskRepair, SparseMethod
from minitron_cli.errors import InputError
from minitron_cli.repair.held_out import HELD_OUT
from minitron_cli.sparse.metrics import MetricSetting
from minitron_cli.sparse.metrics.wanda import Wanda
from minitron_cli.sparse.pattern import Pattern
from minitron_cli.spec import Quantity, Spec

SAMPLE_TOKENS = 262_144
"""Calibration tokens beyond which the number of samples is lowered unless it is set (128 blocks of 2048 in papers)."""


def _pattern(text: str) -> str:
    try:
        return str(Pattern.parse(text))
    except InputError as e:
        raise ValueError(str(e)) from None


PatternText = Annotated[str, AfterValidator(_pattern)]


class SparsifyConfig(Spec):
    """Zeros among the weights of every decoder block's matrices. Embeddings, head, norms, biases and routers stay."""

    method: SparseMethod | None = Field(None, exclude=True)
    """A published method by its name, which stands for other keys of this section: they are printed."""
    pattern: PatternText = "2:4"
    """N:M: of M consecutive inputs of every output, N are kept; or a share of zeros such as 50%."""
    metric: MetricSetting = Wanda()
    """Score by which weights are kept: its name, or its kind and options."""
    repair: MaskRepair = "none"
    """least_squares: fit the weights that are left to what the whole matrix computes, where that is nearer to it on
    held-out samples."""
    layer_amounts: tuple[float, ...] | None = None
    """Share of zeros of each layer, in place of the pattern's, which must be a share too; null: the same for all."""
    samples: int = Field(128, ge=1)
    """Blocks of training text that inputs are collected on (128 in both papers). Unless set, at most those that the
    text has, and no more than hold 262,144 tokens."""
    batch_size: int = Field(8, ge=1)
    """Samples per forward pass. Larger is faster and takes more memory; results agree to rounding."""
    activation_budget: Quantity = 1_000_000_000
    """Bytes of hidden states held in memory between two layers; the rest waits on disk."""
    seed: int = 0
    """Seed of the draw of blocks."""
    effect_blocks: int = Field(16, ge=0)
    """Held-out blocks on which loss and KL are measured, if parent and child fit into memory together; 0: none. Without
    effect where no text is needed."""

    @property
    def needs_text(self) -> bool:
        """Whether anything is collected on text."""
        return self.metric.needs != "nothing" or self.repair != "none"

    def patterns(self, layers: int) -> tuple[Pattern, ...]:
        """Pattern of each layer. InputError if the list has not one share for each."""
        if self.layer_amounts is None:
            return (Pattern.parse(self.pattern),) * layers
        if len(self.layer_amounts) != layers:
            raise InputError(
                f"sparsify.layer_amounts has {len(self.layer_amounts)} shares, and the model {layers} layers: "
                "give one for each"
            )
        return tuple(Pattern(Fraction(str(share))) for share in self.layer_amounts)

    def fitted(self, sequence_length: int, blocks: int) -> Self:
        """The same with the number of samples, unless it was set, that a text of so many blocks has."""
        if "samples" in self.model_fields_set:
            return self
        most = min(self.samples, blocks, math.ceil(SAMPLE_TOKENS / sequence_length))
        return self.model_copy(update={"samples": max(most, 1)})

    @model_validator(mode="before")
    @classmethod
    def _stands_for_keys(cls, values: Any) -> Any:
        return methods.expanded("sparsify", values)

    @model_validator(mode="after")
    def _amounts_are_shares(self) -> Self:
        if self.layer_amounts is None:
            return self
        if Pattern.parse(self.pattern).group:
            raise ValueError(f"layer_amounts are shares, and {self.pattern} is not: give a pattern such as 50%")
        if not all(0 <= share < 1 for share in self.layer_amounts):
            raise ValueError("layer_amounts are shares of zeros: each is at least 0 and below 1")
        return self

    @model_validator(mode="after")
    def _has_held_out_samples(self) -> Self:
        if self.repair != "none" and self.samples < HELD_OUT:
            raise ValueError(f"a repair needs at least {HELD_OUT} samples: one of so many is held out of it")
        return self
