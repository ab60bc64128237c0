"""What a study found, as tables and as a page of Markdown: every arm, and every order that a paper expects."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from minitron_cli.evaluate.statistics import mean_of_runs
from minitron_cli.report import markdown
from minitron_cli.report.view import Table
from minitron_cli.search.rank import kendall_tau
from minitron_cli.study.comparison import Paired, differ, holm, regret
from minitron_cli.study.definition import Expected, Figure, StudyDefinition, When
from minitron_cli.study.run_figures import ModelFigures, RunFigures

ARMS = ("arm", "runs", "parameters", "learning rate", "before: loss / KL", "after: loss / KL")
ORDERS = (
    "expected lower",
    "than",
    "figure",
    "difference",
    "seeds as expected",
    "p (Holm)",
    "seen at 80 %",
    "published",
)

LOWEST_P = 0.001
"""p-values below this are not told apart."""


@dataclass(frozen=True)
class Found:
    """Figures of all runs of a study."""

    name: str
    definition: StudyDefinition
    runs: Mapping[str, Sequence[RunFigures]]
    """Label of each arm -> its runs, by seed."""
    parent_loss: float
    """Nats per token."""
    setting: str
    """Model, text and lengths, in a sentence."""
    command: str
    """Command that measures it again."""
    tried: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Label of each arm -> learning rates that it chose from; none where it had no choice."""

    @property
    def seeds(self) -> int:
        """Largest number of runs of an arm."""
        return max(len(runs) for runs in self.runs.values())

    def arms(self) -> Table:
        """A row for each arm."""
        return Table.of_words("Arms", ARMS, [_arm(label, runs) for label, runs in self.runs.items()])

    def orders(self) -> Table:
        """A row for each order that was published; no rows if there are none."""
        pairs = [self.paired(expected) for expected in self.definition.expected]
        adjusted = holm([pair.p_value for pair in pairs])
        rows = [
            self._order(expected, pair, p, len(pairs))
            for expected, pair, p in zip(self.definition.expected, pairs, adjusted, strict=True)
        ]
        return Table.of_words("Published orders", ORDERS, rows)

    def paired(self, expected: Expected) -> Paired:
        """Differences of the two sides by seed, positive in the expected order, of the seeds that all arms have."""
        higher, lower = (self._side(side, expected.when) for side in (expected.higher, expected.lower))
        return Paired(tuple(h - low for h, low in zip(higher, lower, strict=False)))

    def _side(self, side: str | tuple[str, str], when: When) -> list[float]:
        """Figures of an arm by seed, or differences of the figures of two."""
        if isinstance(side, str):
            return self._values(side, when)
        first, second = (self._values(arm, when) for arm in side)
        return [one - other for one, other in zip(first, second, strict=False)]

    def unequal(self) -> str:
        """Pairs of compared arms whose children differ in parameters outside the embedding, with both sizes."""
        sizes = {label: runs[0].non_embedding for label, runs in self.runs.items()}
        pairs = dict.fromkeys(pair for order in self.definition.expected for pair in order.pairs)
        return "; ".join(
            f"{lower} has {sizes[lower]:,} parameters and {higher} {sizes[higher]:,}"
            for lower, higher in pairs
            if sizes[lower] != sizes[higher]
        )

    def _values(self, arm: str, when: When) -> list[float]:
        return [value(run, when, self.definition.figure) for run in self.runs[arm]]

    def _order(self, expected: Expected, pair: Paired, p: float, orders: int) -> list[str]:
        return [
            _words(expected.lower),
            _words(expected.higher),
            f"{self.definition.figure} {expected.when}",
            f"{pair.mean:+.4f}" + f" ± {pair.half_width:.4f}" * pair.is_drawn,
            f"{pair.as_expected} of {len(pair.differences)}",
            _p_value(p) * pair.is_drawn,
            f"{pair.smallest_seen(orders):.4f}" if pair.is_drawn else "",
            expected.published,
        ]

    def choice(self) -> Table:
        """Agreement of the orders before and after training, and what a choice before training costs, over seeds."""
        by_seed = list(zip(*(self._pairs(arm) for arm in self.runs), strict=False))
        orders = [tuple(zip(*pairs, strict=True)) for pairs in by_seed]  # of each seed: figures before, and after
        taus = [tau for before, after in orders if (tau := kendall_tau(before, after)) is not None]
        costs = [regret(before, after) for before, after in orders]
        rows = [["Kendall's tau of the orders", _interval(taus)], ["cost of the choice", _interval(costs)]]
        return Table.of_words("Choice before training", ("of " + str(len(self.runs)) + " candidates", "value"), rows)

    def _pairs(self, arm: str) -> list[tuple[float, float]]:
        return list(zip(self._values(arm, "before"), self._values(arm, "after"), strict=True))

    def at_the_edge(self) -> str:
        """Arms whose learning rate is the largest or the smallest that they tried, so that another may be better."""
        sides = {
            side: [
                label
                for label, rates in self.tried.items()
                if len(rates) > 1 and self.runs[label][0].learning_rate == extreme(rates)
            ]
            for side, extreme in (("largest", max), ("smallest", min))
        }
        quoted = {side: ", ".join(f'"{label}"' for label in labels) for side, labels in sides.items()}
        return "; ".join(f"the {side} for {labels}" for side, labels in quoted.items() if labels)

    def tables(self) -> list[Table]:
        """All tables."""
        return [self.arms(), self.orders(), *([self.choice()] if self.definition.are_candidates else ())]

    def page(self) -> str:
        """Page of Markdown."""
        return "\n\n".join(self._paragraphs()) + "\n"

    def _paragraphs(self) -> Iterator[str]:
        yield f"# {markdown.inline(self.definition.question)}"
        yield markdown.inline(self.setting)
        yield (
            "Loss and KL from the parent in nats per token on held-out blocks that nothing was chosen by; the "
            f"parent's loss is {self.parent_loss:.4f}. Mean and 95 % interval (Student's t) over {self.seeds} seeds, "
            "each of which draws other calibration blocks and another order of the text; a figure without an interval "
            "is of one run, or the same in all."
        )
        yield markdown.table(self.arms())
        if edges := self.at_the_edge():
            yield (
                "The learning rate is an extreme of those that were tried, and one beyond it may be better: "
                f"{markdown.inline(edges)}."
            )
        if self.definition.expected:
            yield (
                f"Published orders ({markdown.inline(self.definition.source)}). The difference is that of runs with "
                "the same seed, positive in the expected order, with its 95 % interval; p-values are of paired "
                "t-tests, adjusted for their number (Holm). Beside it is the smallest difference that so many seeds "
                "find four times in five, with an adjusted p-value below 0.05, if no other order differs and the "
                "standard error is the one that was measured."
            )
            yield markdown.table(self.orders())
        if differing := self.unequal():
            yield f"Arms that are compared differ in size outside the embedding: {markdown.inline(differing)}."
        if self.definition.are_candidates:
            yield (
                f"How well the {self.definition.figure} before training chooses: Kendall's tau of the orders before "
                f"and after training, and the {self.definition.figure} after training of the candidate that is lowest "
                "before it, minus the lowest."
            )
            yield markdown.table(self.choice())
        yield f"Regenerate: `{self.command}`"


def _words(side: str | tuple[str, str]) -> str:
    return side if isinstance(side, str) else " minus ".join(side)


def _p_value(p: float) -> str:
    return f"{p:.3f}" if p >= LOWEST_P else f"< {LOWEST_P}"


def value(run: RunFigures, when: When, figure: Figure) -> float:
    """Figure of a run on the reported blocks; after training, if there was none, that before."""
    measured = run.after if when == "after" and run.after else run.before
    return float(getattr(measured.reported, figure))


def _arm(label: str, runs: Sequence[RunFigures]) -> list[str]:
    after = [run.after.reported for run in runs if run.after]
    rate = runs[0].learning_rate
    return [
        label,
        str(len(runs)),
        f"{runs[0].parameters:,}",
        f"{rate:g}" if rate else "",
        _figures([run.before.reported for run in runs]),
        _figures(after) if after else "",
    ]


def _figures(found: Sequence[ModelFigures]) -> str:
    return " / ".join(_interval([getattr(one, name) for one in found]) for name in ("loss", "kl"))


def _interval(values: Sequence[float]) -> str:
    """Mean, and half the width of its 95 % interval."""
    if not differ(values):
        return f"{values[0]:.4f}"
    mean, half = mean_of_runs(values)
    return f"{mean:.4f} ± {half:.4f}"
