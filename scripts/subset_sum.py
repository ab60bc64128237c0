"""Show why a random network holds sparse ones that compute what was asked for: the random subset-sum lemma.

    python scripts/subset_sum.py
    python scripts/subset_sum.py --quick --output /tmp/pages

Writes subset-sum.md and subset-sum.svg, in less than a minute. Every subset is the best one, found exactly.
"""

# N candidate, I input, O output, H hidden neuron, B sample

import argparse
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from minitron_cli.figures import Figure
from minitron_cli.report import markdown, plots
from minitron_cli.report.ticket import interval
from minitron_cli.report.view import Cell, Line, Lines, Plot, Table

Array = np.ndarray
SHAPE = (8, 8)
"""Outputs and inputs of the layer that is approximated."""


# The lemma ------------------------------------------------------------------------------------------------------------


def sums(candidates_N: Array) -> Array:
    """Sums of all 2^N subsets; bit i of a sum's place says whether candidate i is in it."""
    found = np.zeros(1)
    for candidate in candidates_N:
        found = np.concatenate([found, found + candidate])
    return found


def best_subset(candidates_N: Array, target: float) -> Array:
    """Bool mask [N] of the subset whose sum is closest to the target, of all 2^N, in time 2^(N/2).

    Every sum of the first half is paired with the sum of the second that brings it closest (Horowitz & Sahni 1974).
    """
    half = len(candidates_N) // 2
    left, right = sums(candidates_N[:half]), sums(candidates_N[half:])
    order = np.argsort(right, kind="stable")
    after = np.searchsorted(right[order], target - left).clip(1, len(right) - 1) if len(right) > 1 else 0 * left
    places = np.stack([after - 1, after]).astype(int).clip(0)
    errors = abs(left + right[order][places] - target)
    side, first = np.unravel_index(errors.argmin(), errors.shape)
    second = int(order[places[side, first]])
    bits = [int(first) >> i & 1 for i in range(half)] + [second >> i & 1 for i in range(len(candidates_N) - half)]
    return np.array(bits, dtype=bool)


def uniform(draw: np.random.Generator, count: int) -> Array:
    """Candidates between -1 and 1, those of the lemma (Lueker 1998)."""
    return draw.uniform(-1, 1, count)


def product(draw: np.random.Generator, count: int) -> Array:
    """Products of two weights, those of two layers (Pensia et al. 2020)."""
    return uniform(draw, count) * uniform(draw, count)


def subset_error(candidates_N: Array, target: float) -> float:
    """Distance of a target from the closest sum."""
    return abs(float(candidates_N[best_subset(candidates_N, target)].sum()) - target)


def single_error(candidates_N: Array, target: float) -> float:
    """Distance of a target from the closest single candidate."""
    return float(abs(candidates_N - target).min())


CHOICES: dict[str, tuple[Callable[[np.random.Generator, int], Array], Callable[[Array, float], float]]] = {
    "best subset of uniform candidates": (uniform, subset_error),
    "best subset of products of two": (product, subset_error),
    "best single uniform candidate": (uniform, single_error),
}
"""What is chosen from -> candidates, and the error of the choice."""


def bits(choice: str, count: int, seed: int, targets: int) -> float:
    """Mean of log2 of the error over targets between -1/2 and 1/2, each with candidates of its own."""
    draw = np.random.default_rng((seed, count))
    candidates, error = CHOICES[choice]
    return float(np.mean([math.log2(error(candidates(draw, count), draw.uniform(-0.5, 0.5))) for _ in range(targets)]))


# The layer ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TwoLayers:
    """A random ReLU network and what is left of it: y = (V * kept) relu((U * kept) x)."""

    first_HI: Array
    second_OH: Array
    kept_first_HI: Array
    kept_second_OH: Array

    def __call__(self, x_BI: Array) -> Array:
        hidden_BH = np.maximum(x_BI @ (self.first_HI * self.kept_first_HI).T, 0)
        return hidden_BH @ (self.second_OH * self.kept_second_OH).T

    def weights(self) -> Array:
        """What each input with a sign adds to each output, per unit of it: [2, O, I] for x > 0 and for x < 0."""
        first, second = self.first_HI * self.kept_first_HI, self.second_OH * self.kept_second_OH
        return np.stack([second @ np.maximum(first, 0), second @ np.minimum(first, 0)])

    @property
    def share_kept(self) -> float:
        """Share of all weights that is kept."""
        kept = self.kept_first_HI.sum() + self.kept_second_OH.sum()
        return float(kept / (self.first_HI.size + self.second_OH.size))


def pruned(weights_OI: Array, neurons: int, draw: np.random.Generator) -> TwoLayers:
    """A random network with so many hidden neurons per input, pruned to compute weights_OI x; no weight is changed.

    Each neuron keeps one input, so that with the weight u it passes the positive part of that input if u > 0 and the
    negative part if u < 0. To each output, both parts of an input are then to be passed with the factor w, and the
    factors at hand are the products v u of the neurons' two weights: two problems of subset sum for every weight
    (Pensia et al. 2020, "Optimal lottery tickets via subset sum", lemma 2 and theorem 1).
    """
    outputs, inputs = weights_OI.shape
    first_HI = draw.uniform(-1, 1, (inputs * neurons, inputs))
    second_OH = draw.uniform(-1, 1, (outputs, inputs * neurons))
    input_H = np.arange(inputs * neurons) // neurons
    kept_first_HI, kept_second_OH = input_H[:, None] == np.arange(inputs), np.zeros(second_OH.shape, dtype=bool)
    factor_H = first_HI[kept_first_HI]
    for o, i in np.ndindex(outputs, inputs):
        for has_sign_H in (factor_H > 0, factor_H < 0):
            places = np.flatnonzero((input_H == i) & has_sign_H)
            kept_second_OH[o, places] = best_subset(second_OH[o, places] * factor_H[places], weights_OI[o, i])
    return TwoLayers(first_HI, second_OH, kept_first_HI, kept_second_OH)


@dataclass(frozen=True)
class LayerErrors:
    """How far a pruned network is from the layer."""

    median: float
    """Median error of a weight."""
    largest: float
    """Largest error of a weight."""
    output: float
    """Root mean square of the outputs' error over that of the outputs, for normal inputs."""
    share_kept: float


def layer_errors(neurons: int, seed: int) -> LayerErrors:
    """Errors of a pruned network for weights between -1/2 and 1/2."""
    draw = np.random.default_rng((seed, neurons))
    weights_OI = draw.uniform(-0.5, 0.5, SHAPE)
    network = pruned(weights_OI, neurons, draw)
    x_BI = draw.standard_normal((1000, SHAPE[1]))
    y_BO = x_BI @ weights_OI.T
    output = np.sqrt(np.square(network(x_BI) - y_BO).mean() / np.square(y_BO).mean())
    errors = abs(network.weights() - weights_OI)
    return LayerErrors(float(np.median(errors)), float(errors.max()), float(output), network.share_kept)


# Page -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Study:
    """How much is measured, and what was found."""

    seeds: int
    targets: int
    counts: tuple[int, ...]
    """Numbers of candidates."""
    neurons: tuple[int, ...]
    """Numbers of hidden neurons per input."""

    @cached_property
    def lemma(self) -> dict[str, dict[int, list[float]]]:
        """Choice -> number of candidates -> log2 of the error, by seed."""
        return {
            choice: {n: [bits(choice, n, seed, self.targets) for seed in range(self.seeds)] for n in self.counts}
            for choice in CHOICES
        }

    @cached_property
    def layers(self) -> dict[int, list[LayerErrors]]:
        """Hidden neurons per input -> errors, by seed."""
        return {n: [layer_errors(n, seed) for seed in range(self.seeds)] for n in self.neurons}


def page(study: Study, command: str) -> Iterator[str]:
    """The page's paragraphs and tables."""
    yield "# Subset sums"
    yield f"    {command}"
    yield (
        "Why does a random network hold sparse ones that compute what was asked for? Because n random numbers have 2^n "
        "subsets. The random subset-sum lemma (Lueker 1998): with n = O(log 1/ε) candidates, uniform between -1 and 1, "
        "some subset has a sum within ε of any number between -1/2 and 1/2, with high probability. The error of the "
        "best subset falls exponentially with n; that of the best single candidate only as 1/n."
    )
    yield (
        f"Mean of log2 of the error over {study.targets} targets, each with candidates of its own; mean and 95 % "
        f"interval (Student's t) over {study.seeds} seeds. Expected: about one bit less for each further candidate."
    )
    yield markdown.table(lemma_table(study.lemma))
    yield "![Error against the number of candidates](subset-sum.svg)"
    yield "## A layer from a random network"
    yield (
        f"A random ReLU network with two layers is pruned, and not trained, to compute a linear layer with {SHAPE[1]} "
        f"inputs, {SHAPE[0]} outputs and weights between -1/2 and 1/2 (Pensia et al. 2020). Each hidden neuron keeps "
        "one input; the second layer keeps, for each weight and each sign of its input, the best subset of products of "
        "the two layers' weights. Expected: about half a bit less for each further neuron per input in the median, "
        "since half of them pass an input of a given sign; the largest error is that of the input with the fewest "
        "neurons of a sign, and falls later."
    )
    yield markdown.table(layer_table(study.layers))
    yield (
        "A network that is wider by a factor of O(log 1/ε) therefore holds a ticket for every layer of its size, to ε, "
        "before any weight is trained. If all layers share one random basis (a universal basis), only the masks have "
        "to be stored. Nothing here says how to find the subsets where the target is not known: that is what training, "
        "or learned scores, have to do."
    )


def lemma_table(found: dict[str, dict[int, list[float]]]) -> Table:
    """log2 of the error by number of candidates, and its slope."""
    columns = (Figure("candidates"), *(Figure(choice, "bits", style="fixed") for choice in found))
    counts = next(iter(found.values()))
    rows: list[tuple[Cell, ...]] = [(str(n), *(interval(some[n]) for some in found.values())) for n in counts]
    return Table("", columns, (*rows, ("each further one", *(interval(slopes(some)) for some in found.values()))))


def slopes(found: dict[int, list[float]]) -> list[float]:
    """Slope of the line through the values against the counts, by seed."""
    return [float(np.polyfit(list(found), values, 1)[0]) for values in zip(*found.values(), strict=True)]


def layer_table(found: dict[int, list[LayerErrors]]) -> Table:
    """Errors of the layer by number of hidden neurons, and their slopes."""
    names = {"median": "median error of a weight", "largest": "largest", "output": "relative error of the output"}
    columns = (Figure("neurons per input"), Figure("weights kept", style="share"))
    errors = {name: {n: [math.log2(getattr(one, name)) for one in some] for n, some in found.items()} for name in names}
    rows: list[tuple[Cell, ...]] = [
        (str(n), float(np.mean([one.share_kept for one in some])), *(interval(errors[name][n]) for name in names))
        for n, some in found.items()
    ]
    last = ("each further one", None, *(interval(slopes(some)) for some in errors.values()))
    figures = (Figure(title, "bits", style="fixed") for title in names.values())
    return Table("", (*columns, *figures), (*rows, last))


def plot(found: dict[str, dict[int, list[float]]]) -> Plot:
    """log2 of the error against the number of candidates, a choice per line."""
    lines = [Line([(n, float(np.mean(v))) for n, v in some.items()], i) for i, some in enumerate(found.values())]
    drawing = Lines(tuple(lines), Figure("candidates"), Figure("log2 of the error", "bits"))
    return Plot("subset-sum", drawing, "Error of the best choice for a random target", tuple(enumerate(found)))


WHOLE = Study(seeds=5, targets=100, counts=(2, 4, 8, 12, 16, 20, 24), neurons=(4, 8, 16, 24, 32, 40))
QUICK = Study(seeds=2, targets=5, counts=(2, 4, 8), neurons=(4, 8))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("docs/results"), help="directory of the page")
    parser.add_argument("--quick", action="store_true", help="few seeds, targets and candidates: does it run at all?")
    args = parser.parse_args()
    study = QUICK if args.quick else WHOLE
    args.output.mkdir(parents=True, exist_ok=True)
    command = f"python scripts/subset_sum.py{' --quick' * args.quick}"
    (args.output / "subset-sum.md").write_text("\n\n".join(page(study, command)) + "\n")
    (args.output / "subset-sum.svg").write_text(plots.sheet([plot(study.lemma)]))


if __name__ == "__main__":
    main()
