"""Supermask stage: how well weights do that were never trained, under masks that a training or scores have found.

The dense training that criteria look at is that of the ticket stage, and is shared with it.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from minitron_cli.artifacts.artifact import Artifact
from minitron_cli.artifacts.build import Context, StageBuild, produce
from minitron_cli.checkpoint import hf
from minitron_cli.data.batches import batch, evenly_spaced
from minitron_cli.data.pack import Blocks
from minitron_cli.data.sources import DataConfig
from minitron_cli.distill import checkpoints
from minitron_cli.distill.targets import targets
from minitron_cli.evaluate.perplexity import perplexity
from minitron_cli.inputs.source_model import SourceModel
from minitron_cli.model.runtime_tensors import disk_tensors, runtime_tensor
from minitron_cli.results.ticket import SupermaskResult, SupermaskRow
from minitron_cli.sparse.mask_file import MASKS
from minitron_cli.sparse.parameter_masks import ParameterMasks
from minitron_cli.stages.ticket_rounds import OTHER_SEED, Pricing, Tickets, collected, fitted, texts
from minitron_cli.ticket import masks, popup, supermask
from minitron_cli.ticket.config import SupermaskConfig, TicketConfig
from minitron_cli.ticket.masks import Masks

if TYPE_CHECKING:
    from transformers import PreTrainedModel

STAGE, VERSION = "supermask", 2


def run(context: Context, model: SourceModel, data: DataConfig, config: SupermaskConfig) -> Artifact:
    """Measure every criterion's supermask with every seed (SupermaskResult). `model` gives shape and tokenizer."""
    train_blocks, held_out = texts(context, model, data)
    config = config.model_copy(update={"training": fitted(config.training, train_blocks)})
    config.training.total_steps(train_blocks.sequence_length)
    like = TicketConfig(start=config.start, training=config.training)
    scores = config.seeds * ("edge_popup" in config.criteria)  # learned as long as weights are trained
    pricing = Pricing(context, model, config.training, train_blocks, held_out, config.seeds + scores)
    tickets = Tickets(replace(context, is_between=True), model, train_blocks, held_out, like, pricing)
    seeds = range(config.seed, config.seed + config.seeds)
    pairs = {pair.seed: pair for pair in collected((_Pair.of(seed, tickets) for seed in seeds), pricing)}
    measuring = _Measuring(context, config, train_blocks, held_out, pairs)
    return produce(
        context,
        stage=STAGE,
        version=VERSION,
        config=config,
        inputs={
            **{f"trained {seed}": pair.final.fingerprint for seed, pair in pairs.items()},
            "train": train_blocks.fingerprint,
            "validation": held_out.fingerprint,
        },
        build=measuring.build,
        price=pricing.of_all if scores else lambda: None,
    )


@dataclass(frozen=True)
class _Pair:
    """Weights before and after the dense training of one seed."""

    seed: int
    first: SourceModel
    final: SourceModel

    @classmethod
    def of(cls, seed: int, tickets: Tickets) -> "_Pair":
        """Those of the ticket stage, trained if they are not there."""
        first, dense = tickets.dense(seed)
        return cls(seed, first, dense.source)


@dataclass(frozen=True)
class _Measuring:
    context: Context
    config: SupermaskConfig
    train_blocks: Blocks
    held_out: Blocks
    pairs: dict[int, _Pair]

    def build(self, work: StageBuild) -> SupermaskResult:
        rows = [row for pair in self.pairs.values() for row in self._rows(work, pair)]
        vocab = next(iter(self.pairs.values())).first.shape.sizes["vocab"]
        return SupermaskResult(
            keep=self.config.keep,
            signed_constant=self.config.signed_constant,
            uniform=math.log(vocab),
            unigram=unigram_loss(self.train_blocks, self.held_out, vocab, self.config.training.eval_blocks),
            seeds=self.config.seeds,
            rows=tuple(rows),
        )

    def _rows(self, work: StageBuild, pair: _Pair) -> Iterator[SupermaskRow]:
        """Rows of one seed; an interrupted run keeps those that are measured."""
        for criterion in ("trained", "none", *self.config.criteria):
            found = work.remember(f"{criterion}-{pair.seed}", partial(self._row, work, pair, criterion))
            yield SupermaskRow(criterion=criterion, seed=pair.seed, **found)

    def _row(self, work: StageBuild, pair: _Pair, criterion: str) -> dict[str, Any]:
        if criterion in ("trained", "none"):
            source = pair.final if criterion == "trained" else pair.first
            return {"density": 1.0, "loss": self._loss(self._load(source))}
        kept = self._learned(work, pair) if criterion == "edge_popup" else self._scored(pair, criterion)
        weights, left = (sum(n) for n in zip(*((m.numel(), int(m.sum())) for m in kept.values()), strict=True))
        model = self._load(pair.first)
        put_(model, pair.first, kept, signed_constant=self.config.signed_constant)
        return {"density": left / weights, "loss": self._loss(model)}

    def _scored(self, pair: _Pair, criterion: str) -> dict[str, Tensor]:
        draw, keep = torch.Generator().manual_seed(pair.seed + OTHER_SEED), Fraction(str(self.config.keep))
        first, final = pair.first.checkpoint.read, pair.final.checkpoint.read
        names = masks.prunable(pair.first.shape)
        return {name: supermask.mask(criterion, first(name), final(name), keep, draw) for name in names}

    def _learned(self, work: StageBuild, pair: _Pair) -> dict[str, Tensor]:
        """Masks by scores that are trained for as long as the dense model was, by stored name."""
        lost, training = (
            1 - Fraction(str(self.config.keep)),
            self.config.training.model_copy(update={"seed": pair.seed}),
        )
        shares = {
            name: masks.highest_share(mask.float(), lost) for name, mask in masks.all_kept(pair.first.shape).items()
        }
        pattern = masks.written(shares, work.scratch / MASKS, pair.first.shape)
        model = self._load(pair.first)
        put_(model, pair.first, masks.all_kept(pair.first.shape), signed_constant=self.config.signed_constant)
        names = [name for name, _ in model.named_parameters() if pattern.covers(name)]
        rate, device = self.config.popup_rate, self.context.device
        scratch = work.scratch / f"scores-{pair.seed}"
        if not work.resume:
            checkpoints.clear(scratch)
        found = popup.learned_masks(
            model, names, pattern.by_magnitude, self.train_blocks, training, rate, device, scratch
        )
        return stored(pattern, found)

    def _load(self, source: SourceModel) -> "PreTrainedModel":
        return hf.load_model(source.path, device=self.context.device, dtype="float32")

    def _loss(self, model: "PreTrainedModel") -> float:
        return perplexity(model, self.held_out, max_blocks=self.config.training.eval_blocks).loss_nats


def stored(pattern: ParameterMasks, found: Masks) -> dict[str, Tensor]:
    """Masks of parameters by the names of the stored tensors that they are made of."""
    return {part: mask for name, whole in found.items() for part, mask in disk_tensors(pattern.family, name, whole)}


@torch.no_grad()
def put_(model: "PreTrainedModel", first: SourceModel, kept: Masks, *, signed_constant: bool) -> None:
    """Give a loaded model the values of a supermask: those that are kept, and zero for the others."""

    def read(name: str) -> Tensor:
        weight = first.checkpoint.read(name)
        return supermask.values(weight, signed_constant=signed_constant) * kept[name] if name in kept else weight

    for name, p in model.named_parameters():
        p.copy_(runtime_tensor(first.family, name, p, read, p.device))


def unigram_loss(train: Blocks, held_out: Blocks, vocab: int, count: int | None) -> float:
    """Held-out loss of the frequencies of tokens in the training text, each count raised by one, in nats per token.

    Over the scored tokens of `count` evenly spaced blocks, those that models are measured on.
    """
    counts = torch.ones(vocab, dtype=torch.float64)
    for i in range(len(train)):
        counts += torch.bincount(train.tokens(i), minlength=vocab)
    labels_N = targets(batch(held_out, evenly_spaced(len(held_out), count))).labels_N
    return float(-(counts / counts.sum()).log()[labels_N].mean())
