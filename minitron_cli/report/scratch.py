"""Comparison of a pruned and trained model with the same shape trained from scratch, with the tokens of each."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from minitron_cli.artifacts.artifact import Artifact
from minitron_cli.cost import budgets
from minitron_cli.evaluate.earlier import ITEMS
from minitron_cli.evaluate.measurements import Measurements
from minitron_cli.evaluate.metrics import LOSS
from minitron_cli.evaluate.statistics import Items, compare
from minitron_cli.figures import Estimate, Figure, short
from minitron_cli.report.evaluation import LOSS as LOSS_NAME
from minitron_cli.report.evaluation import TOKENS, interval_of
from minitron_cli.report.price import FLOPS
from minitron_cli.report.product import Product
from minitron_cli.report.view import Section, Table
from minitron_cli.results.base import ModelSize
from minitron_cli.results.evaluation import ORIGINAL, PARENT

TOTAL = Figure("tokens with the original's", style="short")
ALL_FLOPS = replace(FLOPS, title="FLOPs with the original's")
ABOVE = Figure("loss above the pruned model's", "nats/token", is_change=True)


@dataclass(frozen=True)
class Arm:
    """One model: pruned and trained, or trained from scratch."""

    label: str
    name: str
    """S_N: from scratch on N tokens; P_P-R_R: pruned from an original that saw P tokens, and trained on R."""
    tokens: int
    """Training tokens after pruning, in all steps, or from scratch."""
    total: int | None
    """All training tokens, those of the original, of a search and of a corrected teacher included; None if the
    original's are not known."""
    flops: int
    """FLOPs of the trainings, without the original's."""
    total_flops: int | None
    """The same with the original's, three forward passes for each of its tokens; None if those are not known."""
    loss: Estimate
    above: Estimate | None = None
    """Loss above the pruned model's on the same held-out tokens, with its interval; None for that model."""


def arms(product: Product) -> Iterator[Arm]:
    """The product and every control of it that was trained from scratch; nothing without such a control."""
    evaluation = product.evaluation
    controls = [made for made in product.trained[1:] if made.manifest.config.get("init") == "random"]
    if evaluation is None or not controls:
        return
    items = evaluation.read_json(ITEMS)["models"]
    losses = {label: _loss_items(one) for label, one in items.items()}
    models = {model.label: model for model in product.models()}
    student = next((model for model in models.values() if model.kind == "distilled"), None)
    if student is None or (own := losses.get(student.label)) is None:
        return
    original = models[ORIGINAL if ORIGINAL in models else PARENT]
    yield replace(_pruned(product, original.found.model), loss=interval_of(LOSS_NAME, student))
    for made in controls:
        if (model := models.get(made.label)) and (found := losses.get(made.label)):
            apart = compare(found, own)
            above = Estimate(apart.difference, apart.low, apart.high)
            yield replace(_scratch(made), loss=interval_of(LOSS_NAME, model), above=above)


def _pruned(product: Product, original: ModelSize) -> Arm:
    ledger, given = budgets.training_of(product.lineage), product.pretraining_tokens
    tokens = budgets.length("tokens", ledger, given=0, per_token=1)
    total = budgets.length("total_tokens", ledger, given=given, per_token=1) if given else None
    name = f"P_{_amount(given)}-R_{_amount(tokens)}"
    flops = budgets.flops_of(ledger)
    total_flops = flops + given * budgets.flops_per_token(original, None) if given else None
    return Arm(product.artifact.label, name, tokens, total, flops, total_flops, Estimate(None))


def _scratch(made: Artifact) -> Arm:
    ledger = budgets.training_of([made])
    tokens = budgets.length("tokens", ledger, given=0, per_token=1)
    flops = budgets.flops_of(ledger)
    return Arm(made.label, f"S_{_amount(tokens)}", tokens, tokens, flops, flops, Estimate(None))


def _amount(tokens: int | None) -> str:
    return short(tokens).replace(" ", "") if tokens else "?"


def _loss_items(stored: object) -> Items | None:
    task, metric = LOSS_NAME
    return Measurements.model_validate({"items": stored}).items.get(task, {}).get(metric)


def scratch_section(found: Sequence[Arm]) -> Section:
    """Section on the same shape trained from scratch."""
    text = (
        "S_N has random initial weights and was trained on N tokens. P_P-R_R was pruned from an original that had been "
        "trained on P tokens, and trained on R more. Equal training tokens (N = R) show what the original's weights "
        "are worth; equal total tokens (N = P + R) show whether the original was worth training for this model alone. "
        "The original's own training is given and not part of any cost elsewhere. Differences are paired over held-out "
        "text."
    )
    is_known = bool(found and found[0].total)
    table = Table.of_columns(
        "Against training from scratch",
        (Figure("model"), [arm.label for arm in found]),
        (Figure("tokens seen"), [arm.name for arm in found]),
        (TOKENS, [arm.tokens for arm in found]),
        (TOTAL, [arm.total if is_known else None for arm in found]),
        (replace(FLOPS, title="FLOPs of training"), [arm.flops for arm in found]),
        (ALL_FLOPS, [arm.total_flops if is_known else None for arm in found]),
        (LOSS, [arm.loss for arm in found]),
        (ABOVE, [arm.above for arm in found]),
    )
    return Section("scratch", "Against training from scratch", text, (table,))
