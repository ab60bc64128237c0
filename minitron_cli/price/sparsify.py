"""Work of making a model sparse: passes over the text, sums and solves, the checkpoint's files."""

from collections import Counter
from dataclasses import dataclass
from functools import cached_property

from minitron_cli.cost import derive
from minitron_cli.cost.compute import model_size
from minitron_cli.evaluate.beside_parent import read_of
from minitron_cli.model.linear_layers import input_groups
from minitron_cli.price.evaluation import logits_bytes
from minitron_cli.price.work import ITEM_BYTES, Moved, Subject, Work
from minitron_cli.prune.stream import MAX_WORKERS
from minitron_cli.results.prune import HeldOut
from minitron_cli.results.search import CalibrationUse
from minitron_cli.results.sparsify import SparsifyResult, SparsityEffect
from minitron_cli.sparse.config import SparsifyConfig
from minitron_cli.sparse.least_squares import CHOICE_OUTPUTS, STEPS

UNKNOWN = HeldOut(loss=0, kl=0)
FP32 = ITEM_BYTES["float32"]
COPIES = 4  # of the widest sums while they are collected and solved
BITS = 8  # of a mask to a byte
RIDGES_TRIED = 3
OBSERVED = 2  # copies of the widest activations in fp32 while they are summed


@dataclass(frozen=True)
class Sparsifying:
    """What the price depends on."""

    parent: Subject
    config: SparsifyConfig
    length: int
    """Tokens of a block of the text; 0 without any."""
    effect_blocks: int
    """Held-out blocks on which the effect is measured."""

    @cached_property
    def matrices(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the matrices that get zeros: outputs, inputs."""
        shape, shapes = self.parent.shape, self.parent.shape.tensors()
        templates = (template for group in input_groups(shape) for template in group.templates)
        return tuple(shapes[name] for template in templates for name in shape.names(template))

    @property
    def tokens(self) -> int:
        """Calibration tokens."""
        return self.config.samples * self.length if self.length else 0

    @property
    def fits(self) -> bool:
        """Whether the weights that stay are fitted."""
        return self.config.repair != "none"

    @property
    def sums(self) -> int:
        """Sums of products that are collected of every input: for the metric, and for the fit."""
        return (self.config.metric.needs == "second_moments") + self.fits


def of_model(parent: Subject, config: SparsifyConfig, length: int) -> Sparsifying:
    """Making a model sparse whose text is not known yet; `length` is 0 where none is needed."""
    return Sparsifying(parent, config, length, config.effect_blocks if length else 0)


def work(making: Sparsifying) -> Work:
    """Work of making a model sparse."""
    parent, length = making.parent, making.length
    weights = sum(outputs * inputs for outputs, inputs in making.matrices)
    size = parent.weights_bytes
    passes = (2 + 3 * (making.config.owl is not None)) * (length > 0)  # outliers: two of the weights, one of the model
    run = parent.runs(min(making.config.batch_size, making.config.samples), max(length, 2))
    stored = size * ((making.config.metric.needs == "second_moments") + making.fits) + weights // BITS if length else 0
    return Work(
        what=_what(making, weights),
        passes=tuple(derive.passes(_result(making))),
        model=run,
        moved={
            "read the parent": Moved(starts=int(length > 0), read=size * (1 + passes)),
            "statistics": Moved(products=_products(making)),
            "write the model": Moved(written=size + weights // BITS + stored),
        },
        certain={"parent": size, "child": size} if making.effect_blocks else {},
        transient=_transient(making, run.layer_bytes())
        | ({"logits": logits_bytes(run)} if making.effect_blocks else {}),
        disk={"model": size, "masks": weights // BITS} | ({"layers": stored} if stored else {}),
        remedies=("batch_size=1", "repair=none") if making.fits else ("batch_size=1",),
        weight_remedies=("effect_blocks=0",),
    )


def _what(making: Sparsifying, weights: int) -> str:
    config = making.config
    texts = [f"{weights:,} weights {'' if config.amounts == 'list' else 'to '}{config.zeros_by}"]
    texts += [f"{config.samples:,} samples of {making.length:,} tokens"] * bool(making.length)
    return ", ".join(texts + ["least squares"] * making.fits)


def _result(making: Sparsifying) -> SparsifyResult:
    """What will have been done, with nothing measured yet."""
    read, config = making.effect_blocks * read_of(making.length), making.config
    repair_error = 0.0 if making.fits else None
    effect = SparsityEffect(
        parent_loss=0, before=UNKNOWN, after=UNKNOWN, tokens=read, read=read, kl_difference_stderr=repair_error
    )
    return SparsifyResult(
        model=model_size(making.parent.shape, making.length),
        pattern=config.pattern,
        metric=config.metric.kind,
        scope=(),
        sparsity=0,
        layer_sparsity=(),
        amounts=config.amounts,
        matrices={},
        repair=config.repair,
        calibration=CalibrationUse(samples=config.samples, sequence_length=making.length) if making.length else None,
        effect=effect if making.effect_blocks else None,
    )


def _products(making: Sparsifying) -> int:
    """FLOPs of the sums, of the metric's updates, and of the steps of the fits."""
    flops = 0
    for (outputs, inputs), count in Counter((shape[0], shape[1]) for shape in making.matrices).items():
        flops += count * making.sums * making.tokens * inputs**2
        if making.config.metric.needs == "second_moments":
            flops += count * (inputs**3 + outputs * inputs**2)
        if making.fits:
            flops += (
                count * 2 * inputs**2 * (outputs * STEPS // 2 + RIDGES_TRIED * STEPS * min(CHOICE_OUTPUTS, outputs))
            )
    return flops


def _transient(making: Sparsifying, layer_bytes: int) -> dict[str, int]:
    widest = max(outputs * inputs for outputs, inputs in making.matrices)
    found = {"matrices": MAX_WORKERS * 2 * widest * ITEM_BYTES[making.parent.dtype]}
    if not making.length:
        return found
    sizes, inputs = making.parent.shape.sizes, max(inputs for _, inputs in making.matrices)
    layer = making.parent.shape.parameters("non_embedding") // sizes["layer"]
    embedding = sizes["vocab"] * sizes["hidden"]
    states = making.tokens * sizes["hidden"] * ITEM_BYTES[making.parent.dtype]
    return found | {
        "one layer": max(layer, embedding) * ITEM_BYTES[making.parent.dtype],
        "activations": layer_bytes + OBSERVED * making.config.batch_size * making.length * inputs * FP32,
        "sums": making.sums * COPIES * inputs**2 * FP32,
        "stored activations": min(making.config.activation_budget, states),
    }
