"""Simulate how often the intervals of an evaluation hold the truth, by how documents share the tokens.

    python scripts/interval_coverage.py [EXPERIMENTS]

Each experiment draws the true mean of every document and its noise, which is smaller for a longer document, and asks
whether the 95 % interval around the weighted mean holds the mean over all texts. The clustered error with the factor
G / (G - 1), and G - 1 degrees of freedom, which count all documents alike, are shown for comparison.
"""

# E experiment, G document

import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from minitron_cli.evaluate.estimates import of_metric
from minitron_cli.evaluate.statistics import Items, effective_number, errors, interval, student_t
from minitron_cli.results.evaluation import MetricResult

NOISE = 0.5  # standard deviation over that between documents, for a document with an equal share of the tokens

Weights = Callable[[np.random.Generator], np.ndarray]
Draw = Callable[[np.random.Generator, int], np.ndarray]

TEXTS: dict[str, Weights] = {
    "3 equal": lambda source: np.ones(3),
    "10 equal": lambda source: np.ones(10),
    "9 and one with half": lambda source: np.r_[np.ones(9), 9],
    "49 and one with half": lambda source: np.r_[np.ones(49), 49],
    "98 and two with a quarter": lambda source: np.r_[np.ones(98), 49, 49],
    "99 and one with a fifth": lambda source: np.r_[np.ones(99), 25],
    "50 and five with two thirds": lambda source: np.r_[np.ones(50), np.full(5, 20)],
    "30 lognormal (1.5)": lambda source: source.lognormal(0, 1.5, 30),
    "9 and one with 90 %": lambda source: np.r_[np.ones(9), 81],
}
"""Tokens of each document, up to a factor."""
EFFECTS: dict[str, Draw] = {
    "normal": lambda source, count: source.normal(size=count),
    "skewed": lambda source, count: source.exponential(size=count) - 1,
}
"""What the mean of a document differs by from the mean over all texts."""


class Coverage(NamedTuple):
    """Shares of the experiments whose interval held the truth, and medians over the experiments."""

    documents: float
    """Effective number of documents."""
    held: float
    held_before: float
    """Share for the clustered error that counts all documents alike."""
    width: float
    """Half-width of the interval, in standard deviations of the weighted mean."""


def coverage(weights: Weights, effect: Draw, experiments: int, seed: int = 0, confidence: float = 0.95) -> Coverage:
    """Simulate intervals over documents; those of one document that outweighs the others included."""
    source = np.random.default_rng(seed)
    rows = [_experiment(source, weights(source), effect, confidence) for _ in range(experiments)]
    number_E, error_E, reach_E, before_E, spread_E = np.array(rows).T
    return Coverage(
        float(np.median(number_E)),
        float(np.mean(np.abs(error_E) < reach_E)),
        float(np.mean(np.abs(error_E) < before_E)),
        float(np.median(reach_E / spread_E)),
    )


def _experiment(source: np.random.Generator, weights_G: np.ndarray, effect: Draw, confidence: float) -> list[float]:
    """Effective number, error of the mean, half-widths of the interval now and before, and the true spread."""
    share_G = weights_G / weights_G.sum()
    noise_G = NOISE / np.sqrt(share_G * len(share_G))
    values_G = effect(source, len(share_G)) + noise_G * source.normal(size=len(share_G))
    items = Items(values_G, share_G)  # each document is an item: nothing of it is left to fall back to
    assert items.stderr is not None
    reach = student_t(confidence, items.degrees_of_freedom) * items.stderr
    spread = float(np.sqrt((share_G**2 * (1 + noise_G**2)).sum()))
    return [effective_number(share_G), items.mean, reach, _reach_before(values_G, share_G, confidence), spread]


def _reach_before(values_G: np.ndarray, share_G: np.ndarray, confidence: float) -> float:
    count = len(values_G)
    residuals_G = share_G * (values_G - share_G @ values_G)
    return student_t(confidence, count - 1) * float(np.sqrt((residuals_G**2).sum() * count / (count - 1)))


def coverage_of_parts(experiments: int, blocks: int = 40, seed: int = 0, confidence: float = 0.95) -> float:
    """Share of intervals that hold the mean of one text: nine documents, and one with 90 % in `blocks` blocks."""
    source = np.random.default_rng(seed)
    effect_G = source.normal(size=10)
    groups_I = np.r_[np.arange(9), np.full(blocks, 9)]
    weights_I = np.r_[np.full(9, 0.1 / 9), np.full(blocks, 0.9 / blocks)]
    held = 0
    for _ in range(experiments):
        parts_I = effect_G[groups_I] + NOISE * source.normal(size=len(groups_I))
        items = Items(parts_I, weights_I, groups_I, "block")
        assert items.unit == "block"
        assert items.stderr is not None
        held += abs(items.mean - weights_I @ effect_G[groups_I]) < items.stderr * student_t(
            confidence, items.degrees_of_freedom
        )
    return held / experiments


class Answers(NamedTuple):
    """Questions that are answered right or wrong."""

    share: float
    """True share of right answers."""
    documents: int
    each: int
    """Questions on each document."""


QUESTIONS = [
    Answers(share, documents, each)
    for share in (0.7, 0.95)
    for documents, each in ((20, 1), (100, 1), (10, 4), (40, 5))
]


def coverage_of_shares(kind: Answers, experiments: int, seed: int = 0) -> tuple[float, float]:
    """Share of the experiments whose interval holds the true share of right answers: as evaluated, and by Student's t.

    How hard a document is, is drawn from a beta distribution that gives two answers on it a correlation of 1/4.
    """
    source = np.random.default_rng(seed)
    held = np.zeros(2)
    for _ in range(experiments):
        ability_G = source.beta(3 * kind.share, 3 * (1 - kind.share), kind.documents)
        groups_I = np.repeat(np.arange(kind.documents), kind.each)
        answers_I = (source.random(len(groups_I)) < ability_G[groups_I]).astype(float)
        items = Items(answers_I.tolist(), groups=groups_I.tolist())
        found = MetricResult(value=items.mean, n=len(answers_I), **errors(items))
        by_t = interval(items.mean, items.stderr, items.degrees_of_freedom)
        held += [low <= kind.share <= high for low, high in filter(None, (of_metric(found).interval(), by_t))]
    return held[0] / experiments, held[1] / experiments


def table_of_shares(experiments: int) -> Iterator[str]:
    """Rows of a Markdown table."""
    yield "| right | documents | questions on each | holds the truth | Student's t |"
    yield "|--:|--:|--:|--:|--:|"
    for kind in QUESTIONS:
        held, by_t = coverage_of_shares(kind, experiments)
        yield f"| {kind.share:.0%} | {kind.documents} | {kind.each} | {held:.3f} | {by_t:.3f} |"


def table(experiments: int) -> Iterator[str]:
    """Rows of a Markdown table."""
    yield "| documents | effective number | holds the truth | if skewed | width | before |"
    yield "|---|--:|--:|--:|--:|--:|"
    for name, weights in TEXTS.items():
        normal, skewed = (coverage(weights, effect, experiments) for effect in EFFECTS.values())
        cells = (f"{normal.documents:.1f}", f"{normal.held:.3f}", f"{skewed.held:.3f}", f"{normal.width:.1f}")
        yield f"| {' | '.join((name, *cells, f'{normal.held_before:.3f}'))} |"
    yield ""
    yield f"parts of 9 documents and one with 90 %: {coverage_of_parts(experiments):.3f}"


if __name__ == "__main__":
    number = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
    print("\n".join([*table(number), "", *table_of_shares(number)]))
