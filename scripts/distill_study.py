"""Measure what the teacher's predictions, importance and the parent's weights each contribute to a distilled child.

    python scripts/bench_teacher.py && python scripts/distill_study.py

All arms have one pruned shape, no repair and the same number of training tokens. They start from the channels that
importance keeps, from random channels, or from random weights, and are distilled or trained on the text alone. Each
seed draws other calibration samples, random channels, random weights and another order of the text. The learning rate
of an arm is the best of a few short runs with a seed of their own. Finished runs are kept in runs/NAME/distill-study,
so an interrupted study continues. Writes docs/results/distillation.md and a figure beside it.
"""

import argparse
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from bench_teacher import bench_data
from matplotlib.ticker import EngFormatter, LogLocator
from studies import Figures, Study, evenly_pruned, mean_and_interval, svg_figure, write_page

from minitron_cli.artifacts.build import Context
from minitron_cli.artifacts.workspace import Workspace
from minitron_cli.checkpoint import hf
from minitron_cli.distill.config import OBJECTIVES, DistillConfig, Objective
from minitron_cli.evaluate.perplexity import kl_to_parent, perplexity
from minitron_cli.inputs.source_model import open_source_model
from minitron_cli.model.shape import Shape
from minitron_cli.prune.child_config import child_config
from minitron_cli.prune.config import Ranking
from minitron_cli.report.plots import SERIES, SETTINGS
from minitron_cli.scores.metric import Random

TRIAL_SEED = 100  # of the short runs that choose learning rates
CURVE_BLOCKS = 32  # held-out blocks of a point of a curve


@dataclass(frozen=True)
class Arm:
    """Initial weights and training objective that are compared with others."""

    label: str
    start: str
    objective: Objective
    rates: tuple[float, ...] = (5e-4, 1e-3, 2e-3)
    """Learning rates to try in short runs; a single one is used without a trial."""


ARMS = (
    Arm("pruned, KD", "importance", "kl"),
    Arm("pruned, CE", "importance", "ce"),
    Arm("random channels, KD", "random channels", "kl", (1e-3,)),  # the rate of "pruned, KD"
    Arm("random weights, KD", "random weights", "kl", (1e-3, 2e-3, 4e-3)),
    Arm("random weights, CE", "random weights", "ce", (1e-3, 2e-3, 4e-3)),
)
COMPARISONS = (
    (ARMS[1], ARMS[0], "teacher's predictions, added to the text"),
    (ARMS[2], ARMS[0], "importance instead of a random choice"),
    (ARMS[3], ARMS[0], "parent's weights, with a teacher"),
    (ARMS[4], ARMS[1], "parent's weights, without a teacher"),
    (ARMS[4], ARMS[0], "all together"),
)


@dataclass(frozen=True, kw_only=True)
class DistillStudy(Study):
    """Teacher and text, with the lengths of training runs."""

    tokens: int
    """Training tokens of each run."""
    trial_tokens: int
    """Training tokens of a short run that tries a learning rate."""

    def measured(self, model: Any) -> Figures:
        """Loss and KL to the parent on held-out blocks, in nats per token."""
        kl = kl_to_parent(model, self.teacher, self.validation, max_blocks=self.blocks).kl_nats
        return {"loss": self._loss(model), "kl": kl}

    def parent_loss(self) -> float:
        """Loss of the teacher on held-out blocks in nats per token."""
        return self.remembered("parent", lambda: {"loss": self._loss(self.teacher)})["loss"]

    def _loss(self, model: Any) -> float:
        return perplexity(model, self.validation, max_blocks=self.blocks).loss_nats


@dataclass(frozen=True)
class PrunedShape:
    """Runs of all arms in one shape."""

    study: DistillStudy
    ratio: float
    """Share of the non-embedding parameters that is kept."""
    seeds: int
    trial_ratio: float
    """Share kept in the short runs that choose the learning rates."""

    @cached_property
    def shape(self) -> Shape:
        return evenly_pruned(self.study.parent.shape, self.ratio)

    def student(self, arm: Arm, seed: int) -> Any:
        """Model that training starts from."""
        ranking = Ranking(width=Random(seed=seed)) if arm.start == "random channels" else Ranking()
        builder = self.study.builder(ranking, seed)
        plan = builder.plan(self.shape)
        if arm.start != "random weights":
            return builder.model(plan)
        config_of_child = child_config(self.study.parent.checkpoint.config, plan)
        return hf.new_model(hf.config_from_dict(config_of_child, "the child"), seed=seed)

    def rate(self, arm: Arm) -> float:
        """Learning rate of the short run with the lowest final KL (for KD) or loss (for CE)."""
        if len(arm.rates) == 1:
            return arm.rates[0]
        figure = "kl" if arm.objective == "kl" else "loss"
        return min(arm.rates, key=lambda rate: self.trial(arm, rate)[figure])

    def trial(self, arm: Arm, rate: float) -> Figures:
        """Final figures of a short run."""
        pruned = replace(self, ratio=self.trial_ratio)
        return pruned.run(arm, TRIAL_SEED, rate, self.study.trial_tokens, points=1)["after"]

    def result(self, arm: Arm, seed: int) -> Figures:
        """Figures and curve of a full run at the chosen learning rate."""
        return self.run(arm, seed, self.rate(arm), self.study.tokens, points=12)

    def run(self, arm: Arm, seed: int, rate: float, tokens: int, points: int) -> Figures:
        """Final figures, throughput, and a curve of at least `points` evaluations of one training run."""
        name = f"{self.ratio}-{arm.label.replace(', ', '-').replace(' ', '-')}-{seed}-{rate:g}-{tokens}"
        study = self.study
        batch = 8 * study.train.sequence_length
        config = DistillConfig(
            tokens=tokens,
            batch_size=8,
            micro_batch_size=8,
            learning_rate=rate,
            min_learning_rate=rate / 10,
            warmup_steps=tokens // (10 * batch),
            losses=OBJECTIVES[arm.objective],
            eval_every=max(1, tokens // (points * batch)),
            eval_blocks=CURVE_BLOCKS,
            save_every=50,
            seed=seed,
        )

        def compute() -> Figures:
            student = self.student(arm, seed)
            result = study.trained(name, student, config)
            return {"after": study.measured(student), "curve": result.validation, "run": result.throughput}

        return study.remembered(name, compute)

    def results(self) -> dict[Arm, list[Figures]]:
        """Full runs of each arm, one per seed."""
        return {arm: [self.result(arm, seed) for seed in range(self.seeds)] for arm in ARMS}


def section(pruned: PrunedShape, figure: str) -> Iterator[str]:
    """Markdown lines about one shape."""
    results = pruned.results()
    sizes = ", ".join(f"{axis} {size}" for axis, size in pruned.shape.prunable.items())
    kept, total = pruned.shape.parameters("non_embedding"), pruned.shape.parameters()
    share = kept / pruned.study.parent.shape.parameters("non_embedding")
    yield from (
        f"## {share:.0%} of the non-embedding parameters kept",
        "",
        f"{sizes}: {kept:,} parameters without embeddings, {total:,} in all.",
        "",
        "| start, objective | learning rate | loss | KL to the parent |",
        "|---|---|---|---|",
    )
    for arm, of_arm in results.items():
        loss, kl = (mean_and_interval([found["after"][key] for found in of_arm]) for key in ("loss", "kl"))
        yield f"| {arm.label} | {pruned.rate(arm):g} | {loss} | {kl} |"
    yield from ("", "Differences of runs with the same seed, positive where the second arm is better:", "")
    yield from ("| contribution | first arm - second arm | loss | KL |", "|---|---|---|---|")
    for first, second, contribution in COMPARISONS:
        both = (_differences(results, first, second, key) for key in ("loss", "kl"))
        cells = (mean_and_interval(differences, "{:+.3f}") for differences in both)
        yield f"| {contribution} | {first.label} - {second.label} | " + " | ".join(cells) + " |"
    yield from ("", _seeds_in_expected_order(results), "")
    yield from (f"![Loss and KL to the parent on held-out text against tokens]({figure})", "")


def _seeds_in_expected_order(results: dict[Arm, list[Figures]]) -> str:
    """Sentence that counts the seeds in which the arms have the order expected from the papers."""
    order = (ARMS[0], ARMS[1], ARMS[3])
    found = []
    for key, name in (("loss", "loss"), ("kl", "KL")):
        by_seed = zip(*([run["after"][key] for run in results[arm]] for arm in order), strict=True)
        found.append(f"{sum(a < b < c for a, b, c in by_seed)} of {len(results[ARMS[0]])} seeds by {name}")
    expected = " < ".join(arm.label.replace(", ", " with ") for arm in order)
    return f"Expected order: {expected}. Found in {' and '.join(found)}."


def _differences(results: dict[Arm, list[Figures]], first: Arm, second: Arm, key: str) -> list[float]:
    return [a["after"][key] - b["after"][key] for a, b in zip(results[first], results[second], strict=True)]


def trials(pruned: PrunedShape) -> Iterator[str]:
    """Markdown lines about the short runs that chose the learning rates."""
    study = pruned.study
    yield from (
        "## Learning rates",
        "",
        f"Final loss / KL of short runs ({study.trial_tokens:,} tokens) in the first shape, which chose all learning "
        "rates:",
        "",
    )
    rates = sorted({rate for arm in ARMS for rate in arm.rates})
    yield "| start, objective | " + " | ".join(f"{rate:g}" for rate in rates) + " |"
    yield "|---|" + "---|" * len(rates)
    for arm in ARMS:
        found = {rate: pruned.trial(arm, rate) for rate in arm.rates if len(arm.rates) > 1}
        cells = (f"{found[r]['loss']:.3f} / {found[r]['kl']:.3f}" if r in found else "" for r in rates)
        yield f"| {arm.label} | " + " | ".join(cells) + " |"
    yield ""


def draw(pruned: PrunedShape, parent_loss: float, path: Path) -> None:
    """Plot the curves of each arm: the mean over seeds in a band from the lowest to the highest seed."""
    settings = SETTINGS | {"savefig.facecolor": "white", "lines.markersize": 3.0}
    with svg_figure(path, (9.0, 3.6), settings) as figure:
        panels = figure.subplots(1, 2)
        for axes, key, label in zip(panels, ("loss", "kl"), ("loss (nats)", "KL to the parent (nats)"), strict=True):
            for (arm, of_arm), color in zip(pruned.results().items(), SERIES, strict=False):
                tokens = [point["tokens"] for point in of_arm[0]["curve"]]
                by_point = list(zip(*([point[key] for point in found["curve"]] for found in of_arm), strict=True))
                axes.plot(tokens, [statistics.mean(v) for v in by_point], color=color, marker="o", label=arm.label)
                axes.fill_between(tokens, *([f(v) for v in by_point] for f in (min, max)), color=color, alpha=0.15)
            axes.set(xlabel="tokens", ylabel=label, yscale="log")
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_locator(LogLocator(subs=(2, 3, 4, 6)))
            axes.yaxis.set_minor_formatter("{x:g}")
        panels[0].axhline(parent_loss, color="black", linestyle=(0, (4, 3)), linewidth=1.2, alpha=0.7, label="parent")
        panels[0].legend(frameon=False)


def page(study: DistillStudy, pruned_shapes: Sequence[PrunedShape], output: Path) -> Iterator[str]:
    parent = study.parent_loss()
    precision = pruned_shapes[0].result(ARMS[0], 0)["run"]["precision"]
    yield from (
        "# Contribution of distillation, importance and the parent's weights",
        "",
        f"The teacher is made by `make bench-teacher`: {study.parent.shape.parameters():,} parameters, held-out loss "
        f"{parent:.3f}. Its width",
        "(hidden and ffn) is pruned in proportion, without repair. Every arm is trained by the same loop on the same "
        "number of",
        f"tokens: {study.tokens:,}, {study.tokens / len(study.train) / study.train.sequence_length:.2f} epochs, "
        f"8 blocks of {study.train.sequence_length} per step, AdamW, cosine to a tenth of the peak, {precision}. KD is",
        "forward KL at temperature 1 without another loss; CE is conventional training on the text, which saves the "
        "teacher's",
        "forward pass.",
        "",
        f"Loss and KL(parent ‖ child) are in nats per token over {study.blocks} held-out blocks: mean and 95 % "
        "interval (Student's t) over",
        f"{pruned_shapes[0].seeds} seeds. Each seed draws other calibration samples, random channels, random weights "
        "and another order of the",
        "text. The learning rate of each arm is the best of short runs with another seed, by the quantity that the arm",
        "minimizes; random channels use the rate of the pruned arm with KD.",
        "",
        "Regenerate: `make bench-teacher && python scripts/distill_study.py`",
        "",
    )
    for pruned in pruned_shapes:
        figure = output.with_name(f"{output.stem}-{pruned.ratio:g}.svg")
        yield from section(pruned, figure.name)
        draw(pruned, parent, figure)
    yield from trials(pruned_shapes[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"), help="directory of workspaces")
    parser.add_argument("--name", default="bench", help="name of a workspace with a teacher")
    parser.add_argument(
        "--ratios", type=float, nargs="+", default=[0.5], help="shares of the non-embedding parameters to keep"
    )
    parser.add_argument("--seeds", type=int, default=3, help="runs of each arm")
    parser.add_argument("--samples", type=int, default=128, help="number of calibration blocks")
    parser.add_argument(
        "--blocks", type=int, default=256, help="number of held-out blocks that results are measured on"
    )
    parser.add_argument("--tokens", type=int, default=256_000, help="training tokens of each run")
    parser.add_argument("--trial-tokens", type=int, default=64_000, help="training tokens of each short run")
    parser.add_argument("--output", type=Path, default=Path("docs/results/distillation.md"), help="page to write")
    args = parser.parse_args()
    workspace = Workspace(args.runs_dir / args.name)
    teacher = workspace.require("teacher", f"python scripts/bench_teacher.py --name {args.name}")
    with workspace.lock():
        study = DistillStudy(
            folder="distill-study",
            context=Context(workspace),
            parent=open_source_model(teacher.path),
            data=bench_data(None),
            samples=args.samples,
            blocks=args.blocks,
            tokens=args.tokens,
            trial_tokens=args.trial_tokens,
        )
        lines = list(
            page(study, [PrunedShape(study, ratio, args.seeds, args.ratios[0]) for ratio in args.ratios], args.output)
        )
    write_page(args.output, lines)


if __name__ == "__main__":
    main()
