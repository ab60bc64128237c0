"""Options of `minitron sparsify`: the pattern, the metric by which weights are chosen, and the repair of the others."""

import math
from collections.abc import Sequence
from fractions import Fraction
from itertools import count, islice
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from minitron_cli import methods
from minitron_cli.choices import CheckpointForm, MaskRepair, SparseMethod
from minitron_cli.errors import DataError, InputError
from minitron_cli.repair.held_out import HELD_OUT
from minitron_cli.sparse.amounts import LayerAmounts, Owl, PatternText
from minitron_cli.sparse.metrics import MetricSetting
from minitron_cli.sparse.metrics.wanda import Wanda
from minitron_cli.sparse.pattern import Pattern
from minitron_cli.spec import Quantity, Spec

HALF = Fraction(1, 2)
SAMPLE_TOKENS = 262_144
"""Calibration tokens beyond which the number of samples is lowered unless it is set (128 blocks of 2048 in papers)."""


def _no_layer_differs(whole: Pattern, spread: Fraction) -> str:
    """Sentence on N:M by outliers where every N would be rounded to the same, and on patterns where it would not be."""
    assert whole.group
    wider = (Pattern(whole.zeros, whole.group << doublings) for doublings in count())
    first, second = islice((one for one in wider if one.group and spread * one.group >= HALF), 2)
    least = 0.5 / whole.group
    return (
        f"layer_amounts.spread is {float(spread):g}, less than half a weight of {whole.group}, so that all layers "
        f"would keep {whole}: write the pattern as {first} or {second}, or set a spread of at least {least:g}"
    )


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
    layer_amounts: LayerAmounts = "uniform"
    """uniform: all layers have the pattern. owl: layers with more outliers lose less, and all together as much as the
    pattern says. Or a list with the share of zeros of each layer if the pattern is a share, or with N:M of the same M,
    in place of the pattern's."""
    write_as: CheckpointForm | None = Field(None, exclude_if=lambda form: form is None)
    """Form in which a model in a multimodal wrapper is written: wrapper, with the vision tower and projector as they
    are, or text, the text model alone, a checkpoint like any other. Unless set, as the model is that is given."""
    rounds: int = Field(1, ge=1, exclude_if=lambda rounds: rounds == 1)
    """Times that weights are pruned, each time an equal part of those that go, with a training between two rounds as
    the section `distill` says. What is pruned once stays pruned."""
    round_tokens: Quantity | None = Field(None, exclude_if=lambda tokens: tokens is None)
    """Tokens of the training between two rounds; null: as many as `distill` has."""
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
        return self.metric.needs != "nothing" or self.repair != "none" or self.owl is not None

    @property
    def owl(self) -> Owl | None:
        """Settings of amounts by outliers; None if amounts need no text."""
        return self.layer_amounts if isinstance(self.layer_amounts, Owl) else None

    @property
    def amounts(self) -> Literal["uniform", "list", "owl"]:
        """How the layers' amounts are chosen."""
        return "list" if isinstance(self.layer_amounts, tuple) else "owl" if self.owl else "uniform"

    @property
    def zeros_by(self) -> str:
        """The pattern and the metric, in words."""
        return f"by layer, by {self.metric.kind}" if self.amounts == "list" else f"{self.pattern} by {self.metric.kind}"

    def patterns(self, layers: int) -> tuple[Pattern, ...]:
        """Pattern of each layer, that of all where it depends on outliers. InputError if a list is not one of each."""
        if not isinstance(self.layer_amounts, tuple):
            return (Pattern.parse(self.pattern),) * layers
        if len(self.layer_amounts) != layers:
            raise InputError(
                f"sparsify.layer_amounts has {len(self.layer_amounts)} entries, and the model {layers} layers: "
                "give one for each"
            )
        return tuple(map(Pattern.parse, self.layer_amounts))

    def of_round(self, number: int, first: Sequence[str] = ()) -> Self:
        """Settings of one of the rounds, the first being 1.

        `first`: patterns of the layers after the first round, which were chosen by outliers. Later ones continue them.
        """
        if self.rounds == 1:
            return self
        amounts = self.layer_amounts
        if isinstance(amounts, Owl):
            later = tuple(str(Pattern(Pattern.parse(text).zeros * number)) for text in first)
            share = float(Fraction(str(amounts.spread)) / self.rounds)
            amounts = amounts.model_copy(update={"spread": share}) if number == 1 else later or "uniform"
        elif isinstance(amounts, tuple):
            amounts = tuple(self._part(text, number) for text in amounts)
        changes = {"pattern": self._part(self.pattern, number), "layer_amounts": amounts}
        return self.model_copy(update=changes | {"rounds": 1, "round_tokens": None})

    def _part(self, pattern: str, number: int) -> str:
        return str(Pattern.parse(pattern).part(number, self.rounds))

    def fitted(self, sequence_length: int, blocks: int) -> Self:
        """The same with the number of samples, unless it was set, that a text of so many blocks has.

        DataError if these are too few for the repair.
        """
        if "samples" in self.model_fields_set:
            return self
        least = HELD_OUT if self.repair != "none" else 1
        if 0 < blocks < least:
            raise DataError(
                f"a repair needs at least {HELD_OUT} samples, and the data has {blocks} blocks of {sequence_length} "
                "tokens: add text, lower --sequence-length, or use --repair none"
            )
        most = min(self.samples, blocks, max(math.ceil(SAMPLE_TOKENS / sequence_length), least))
        return self.model_copy(update={"samples": max(most, 1)})

    @model_validator(mode="before")
    @classmethod
    def _stands_for_keys(cls, values: Any) -> Any:
        return methods.expanded("sparsify", values)

    @model_validator(mode="after")
    def _amounts_are_like_the_pattern(self) -> Self:
        whole = Pattern.parse(self.pattern)
        spread = Fraction(str(self.owl.spread)) if self.owl else Fraction()
        if spread and whole.group and whole.zeros and spread * whole.group < HALF:
            raise ValueError(_no_layer_differs(whole, spread))
        if spread and not whole.group and not spread <= whole.zeros < 1 - spread:
            raise ValueError(
                f"layer_amounts.spread is {float(spread):g}, and no layer's share can differ that much from {whole}: "
                "lower the spread"
            )
        for amount in self.layer_amounts if isinstance(self.layer_amounts, tuple) else ():
            if Pattern.parse(amount).group != whole.group:
                like, other = (f"N:{whole.group}", "50%") if whole.group else ("a share of zeros", amount)
                raise ValueError(
                    f"layer_amounts has {amount}, and the pattern is {whole}: write {like} for each layer, or add "
                    f"--pattern {other}"
                )
        return self

    @model_validator(mode="after")
    def _rounds_are_possible(self) -> Self:
        whole = Pattern.parse(self.pattern)
        if self.rounds == 1:
            if self.round_tokens is not None:
                raise ValueError("round_tokens is of the training between rounds, and there is one round; set rounds")
            return self
        listed = self.layer_amounts if isinstance(self.layer_amounts, tuple) else (self.pattern,)
        most = max((Pattern.parse(text).lost(whole.group) for text in listed), default=0) if whole.group else None
        if most is not None and self.rounds > most:
            raise ValueError(f"{whole} in {self.rounds} rounds: a group loses {most} weights, so set at most {most}")
        if whole.group and self.owl:
            raise ValueError("N:M by outliers is chosen at once: list layer_amounts, or leave out rounds")
        return self

    @model_validator(mode="after")
    def _has_held_out_samples(self) -> Self:
        if self.repair != "none" and self.samples < HELD_OUT:
            raise ValueError(f"a repair needs at least {HELD_OUT} samples: one of so many is held out of it")
        return self
