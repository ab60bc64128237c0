"""Quality of models against what they cost, as plots: values with their intervals, and the value of guessing."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from minitron_cli.evaluate.config import PERPLEXITY
from minitron_cli.evaluate.metrics import SPEED_FIGURES, metric_figure
from minitron_cli.figures import Estimate, Figure
from minitron_cli.report.evaluation import LOSS, PARAMETERS, Evaluated, Name, interval_of, metric_names
from minitron_cli.report.text import capitalized
from minitron_cli.report.view import Line, Lines, Plot, Section
from minitron_cli.results.run_record import SpeedRecord

DECODE = "decode_tokens_per_second"
MOST_TASKS = 6  # plots beyond these repeat what the table says
SCORE = Figure("score", better="higher")  # of a task, whose own name a user may have chosen
TEXT = (
    "Better models are nearer to the top left for tasks, and to the bottom left for the loss; of those with a speed, "
    "the fast ones are on the right. Lines are 95 % intervals of the difference from the parent on the same items; of "
    "models measured elsewhere, of the value."
)


@dataclass(frozen=True)
class Point:
    """One model in a plot."""

    cost: float
    value: Estimate
    color: int


def quality_section(models: Sequence[Evaluated], speed: SpeedRecord | None) -> Section:
    """Section with a plot of the loss and of each task against parameters, and against speed if it was measured."""
    measured = speed.models if speed else {}
    sizes = [model.parameters for model in models]
    speeds = [getattr(measured.get(model.label), DECODE, None) for model in models]
    costs = ((PARAMETERS, sizes), (SPEED_FIGURES[DECODE], speeds))
    plots = tuple(plot for i, (x, values) in enumerate(costs) for plot in _plots(f"quality-{i}", models, x, values))
    shown = {line.color for plot in plots if isinstance(plot.drawing, Lines) for line in plot.drawing.lines}
    legend = tuple((i, model.label) for i, model in enumerate(models) if i in shown)
    return Section("quality", "Quality against size and speed", TEXT, plots=plots, legend=legend)


def _plots(name: str, models: Sequence[Evaluated], x: Figure, costs: Sequence[float | None]) -> Iterator[Plot]:
    for i, metric in enumerate(_shown(models)):
        found = [
            Point(cost, _estimate(metric, model), color)
            for color, (model, cost) in enumerate(zip(models, costs, strict=True))
            if cost is not None and model.value(metric) is not None
        ]
        if len(found) > 1:
            chance = next((one.chance for model in models if (one := model.metric(metric)) and one.chance), None)
            yield plot(f"{name}-{i}", metric, x, found, chance)


def _estimate(metric: Name, model: Evaluated) -> Estimate:
    """Value with the interval of its difference from the parent, which has none; without items, with its own."""
    found, apart = interval_of(metric, model), model.difference(metric)
    if apart:
        return around(found.value, apart.difference, apart.low, apart.high)
    return Estimate(found.value) if model.kind == "parent" else found


def around(value: float | None, difference: float | None, low: float | None, high: float | None) -> Estimate:
    """Value with the ends of the interval of its difference from a reference, moved to the value."""
    if value is None or difference is None or low is None or high is None:
        return Estimate(value)
    return Estimate(value, value - difference + low, value - difference + high)


def _shown(models: Sequence[Evaluated]) -> list[Name]:
    """The loss, then the tasks' metrics of which more is better."""
    names = metric_names(models)
    tasks = [name for name in names if name[0] != PERPLEXITY and metric_figure(*name).better == "higher"]
    return [*(name for name in names if name == LOSS), *tasks[:MOST_TASKS]]


def plot(name: str, metric: Name, x: Figure, points: Sequence[Point], chance: float | None = None) -> Plot:
    """Values of a metric against a cost, each with its interval, and a dashed line at the value of guessing."""
    is_text = metric[0] == PERPLEXITY
    y = replace(metric_figure(*metric), style="fixed") if is_text else SCORE
    title = capitalized(y.title) if is_text else ".".join(metric)
    caption = f"{title} against {x.heading}" + ("; guessing has the dashed line." if chance else ".")
    lines = [line for point in points for line in _drawn(point)]
    return Plot(name, Lines(tuple(lines), x, y, chance), caption)


def _drawn(point: Point) -> Iterator[Line]:
    value, low, high = point.value[:3]
    if low is not None and high is not None:
        yield Line([(point.cost, low), (point.cost, high)], point.color, "span")
    if value is not None:
        yield Line([(point.cost, value)], point.color, "points")
