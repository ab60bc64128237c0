"""Page of a chain: its original and the product of every step, a row each."""

from collections.abc import Iterator, Sequence

from minitron_cli.evaluate.metrics import KL_ORIGINAL, SPEED_FIGURES, metric_figure
from minitron_cli.figures import Estimate, Figure, Style, short
from minitron_cli.report import quality
from minitron_cli.report.evaluation import PARAMETERS
from minitron_cli.report.headline import against, percent
from minitron_cli.report.provenance import CostRow, cost_table
from minitron_cli.report.quality import Point
from minitron_cli.report.view import Cell, KeyFigure, Plot, Section, Table, View
from minitron_cli.results.evaluation import ORIGINAL
from minitron_cli.results.family import FamilyMember, FamilyResult, Interval

LOSS = "perplexity.loss"
EXPONENTIALS = ("perplexity.perplexity", "perplexity.byte_perplexity")  # of a column that is shown
SHARE: Style = "share"
TEXT = (
    "Every model on the same held-out text and tasks. Differences are from the original, where the model was compared "
    "with it, and never from the model that its step pruned. In brackets are 95 % intervals; differences are paired "
    "item by item, and the lines of plots are their intervals."
)


def view(title: str, result: FamilyResult, costs: Sequence[CostRow]) -> View:
    """Everything that is shown of a chain."""
    sections = (
        _quality(result.members),
        Section("sizes", "Sizes and training", "What each step pruned and trained.", (size_table(result.members),)),
        Section(
            "serving",
            "Memory and speed",
            "Memory: weights in bfloat16 and the KV cache of one sequence of 4,096 tokens. Speed, if it was measured: "
            "generation with transformers.",
            (serving_table(result.members),),
        ),
        Section("cost", "Cost by step", "Work for the last member, stage by stage.", (cost_table("Cost", costs),)),
    )
    return View(title, _headline(result), _lead(result), tuple(_figures(result)), sections)


def _quality(members: Sequence[FamilyMember]) -> Section:
    plots = tuple(_plots(members))
    legend = tuple((i, member.label) for i, member in enumerate(members)) if plots else ()
    return Section("quality", "Quality", TEXT, (quality_table(members),), plots, legend)


def _plots(members: Sequence[FamilyMember]) -> Iterator[Plot]:
    """The loss and every task of the members against their parameters, in the order of the chain."""
    names = dict.fromkeys(name for member in members for name in member.metrics)
    for i, (task, metric) in enumerate(name.rsplit(".", 1) for name in names):
        found = [(member, member.metrics.get(f"{task}.{metric}")) for member in members]
        points = [
            Point(float(member.parameters), _from_original(member, f"{task}.{metric}", x), color)
            for color, (member, x) in enumerate(found)
            if x
        ]
        if (task, metric) == ("perplexity", "loss") or task != "perplexity":
            chance = next((x.chance for _, x in found if x and x.chance), None)
            yield quality.plot(f"family-{i}", (task, metric), PARAMETERS, points, chance)


def _from_original(member: FamilyMember, name: str, found: Interval) -> Estimate:
    """Value with the interval of its difference from the original's; the original has none."""
    apart = member.from_original.get(name)
    return quality.around(found.value, apart.value, apart.low, apart.high) if apart else Estimate(found.value)


def tables(result: FamilyResult) -> tuple[Table, ...]:
    """Everything about the members as tables, for a terminal."""
    return quality_table(result.members), size_table(result.members), serving_table(result.members)


def _headline(result: FamilyResult) -> str:
    """The last member's size and quality in one sentence."""
    first, last = result.members[0], result.members[-1]
    size = percent(last.parameters / first.parameters)
    made = f"The last of {len(result.members) - 1} steps, at {size} of the original's size,"
    loss = last.from_original.get(LOSS)
    if loss is None or loss.value is None:
        return (
            f"{made} has not been {'compared with the original (compare_with: step)' if last.metrics else 'measured'}."
        )
    return f"{made} {against(loss.value, loss.low, loss.high, ORIGINAL)}."


def _lead(result: FamilyResult) -> str:
    first, *others = result.members
    sizes = " to ".join(short(member.parameters) for member in result.members)
    lead = f"The original was pruned in {len(others)} steps from {sizes} parameters."
    if (loss := others[-1].from_original.get(LOSS)) and loss.value is not None:
        own, its = others[-1].metrics[LOSS].value, first.metrics[LOSS].value
        lead += f" The loss of the last member is {own:.3f} nats per token, the original's {its:.3f}."
    return lead


def _figures(result: FamilyResult) -> list[KeyFigure]:
    first, last = result.members[0], result.members[-1]
    share = percent(last.parameters / first.parameters)
    found = [KeyFigure(short(last.parameters), "parameters", f"{share} of the original's")]
    if last.probability_retained is not None:
        note = "probability of a token of held-out text, against the original's"
        found.append(KeyFigure(percent(last.probability_retained), "retained", note))
    if last.tokens_in_all:
        found.append(KeyFigure(short(last.tokens_in_all), "training tokens", "in all steps"))
    return found


def quality_table(members: Sequence[FamilyMember]) -> Table:
    """Loss, KL and tasks of every member, their differences from the original, and the shares retained."""
    names = dict.fromkeys(name for member in members for name in member.metrics if name not in EXPONENTIALS)
    columns: list[tuple[Figure, Sequence[Cell]]] = []
    for name in names:
        figure = metric_figure(*name.rsplit(".", 1))
        title = figure.title if name.startswith("perplexity.") else name
        columns.append((Figure(title, figure.unit), [_cell(member.metrics.get(name)) for member in members]))
        apart = [_cell(member.from_original.get(name)) for member in members]
        columns.append((Figure(f"{title} - {ORIGINAL}", figure.unit, is_change=True), apart))
    retained = (
        (Figure("probability per token retained", style=SHARE), [member.probability_retained for member in members]),
        (Figure("tasks retained", style=SHARE), [member.tasks_retained for member in members]),
    )
    kl = (KL_ORIGINAL, [_cell(member.kl_original) for member in members])
    return Table.of_columns("Quality (95 % interval)", _labels(members), *columns[:2], kl, *columns[2:], *retained)


def size_table(members: Sequence[FamilyMember]) -> Table:
    """Parameters of every member, what was pruned for it, and the tokens that it was trained on."""
    active: list[Cell] = [member.active for member in members]
    has_experts = any(member.active != member.parameters for member in members)
    return Table.of_columns(
        "Sizes and training",
        _labels(members),
        (PARAMETERS, [member.parameters for member in members]),
        (Figure("without embeddings", style="short"), [member.non_embedding for member in members]),
        (Figure("active", style="short"), active if has_experts else [None] * len(members)),
        (Figure("of the original", style=SHARE), [member.parameters / members[0].parameters for member in members]),
        (Figure("pruned"), [member.pruned for member in members]),
        (Figure("tokens of the step", style="short"), [member.tokens for member in members]),
        (Figure("tokens in all", style="short"), [member.tokens_in_all for member in members]),
    )


def serving_table(members: Sequence[FamilyMember]) -> Table:
    """Memory of every member, and its speed if it was measured."""
    speeds = ("prefill_tokens_per_second", "decode_tokens_per_second")
    return Table.of_columns(
        "Memory and speed",
        _labels(members),
        (Figure("memory at 4,096 tokens", style="bytes"), [member.memory_bytes for member in members]),
        *((SPEED_FIGURES[name], [getattr(member, name) for member in members]) for name in speeds),
    )


def _labels(members: Sequence[FamilyMember]) -> tuple[Figure, Sequence[Cell]]:
    return Figure("member"), [member.label for member in members]


def _cell(found: Interval | None) -> Cell:
    return None if found is None else Estimate(found.value, found.low, found.high)
