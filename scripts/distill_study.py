"""What does a child owe to its teacher's predictions, to the channels that were kept, and to the parent's weights?

    python scripts/bench_teacher.py && python scripts/distill_study.py

One cut, no repair, the same number of tokens for every arm: the channels that importance keeps distilled or trained on
the text alone, random channels distilled, and random weights in the same shape either way. A seed draws other
calibration samples, another random order, other random weights and another order of the text. Each arm's learning rate
is the best of a few short runs with a seed of their own. A run that is finished is kept under
runs/NAME/distill-study, so that a stopped study goes on. Writes docs/results/distillation.md and a figure beside it.
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
from studies import Figures, Study, even_cut, picture, spread, write_page

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

TRIAL_SEED = 100
CURVE_BLOCKS = 32


@dataclass(frozen=True)
class Arm:
    label: str
    start: str
    objective: Objective
    rates: tuple[float, ...] = (5e-4, 1e-3, 2e-3)
    """Learning rates to try; one alone is not tried but taken."""


ARMS = (
    Arm("pruned, KD", "importance", "kl"),
    Arm("pruned, CE", "importance", "ce"),
    Arm("random channels, KD", "random channels", "kl", (1e-3,)),  # as the pruned one, whose weights they are too
    Arm("random weights, KD", "random weights", "kl", (1e-3, 2e-3, 4e-3)),
    Arm("random weights, CE", "random weights", "ce", (1e-3, 2e-3, 4e-3)),
)
EXPECTED = (
    (ARMS[1], ARMS[0], "what the teacher's predictions add to the text"),
    (ARMS[2], ARMS[0], "what importance adds to pruning"),
    (ARMS[3], ARMS[0], "what the parent's weights add, with a teacher"),
    (ARMS[4], ARMS[1], "what the parent's weights add, without"),
    (ARMS[4], ARMS[0], "all of it"),
)


@dataclass(frozen=True, kw_only=True)
class DistillStudy(Study):
    tokens: int
    """Of each run."""
    trial_tokens: int
    """Of a run that tries a learning rate."""

    def measured(self, model: Any) -> Figures:
        kl = kl_to_parent(model, self.teacher, self.validation, max_blocks=self.blocks).kl_nats
        return {"loss": self._loss(model), "kl": kl}

    def parent_loss(self) -> float:
        return self.remembered("parent", lambda: {"loss": self._loss(self.teacher)})["loss"]

    def _loss(self, model: Any) -> float:
        return perplexity(model, self.validation, max_blocks=self.blocks).loss_nats


@dataclass(frozen=True)
class Cut:
    """All runs of one cut."""

    study: DistillStudy
    ratio: float
    seeds: int
    trial_ratio: float
    """Of the cut whose short runs choose the learning rates."""

    @cached_property
    def shape(self) -> Shape:
        return even_cut(self.study.parent.shape, self.ratio)

    def student(self, arm: Arm, seed: int) -> Any:
        ranking = Ranking(width=Random(seed=seed)) if arm.start == "random channels" else Ranking()
        builder = self.study.builder(ranking, seed)
        plan = builder.plan(self.shape)
        if arm.start != "random weights":
            return builder.model(plan)
        config_of_child = child_config(self.study.parent.checkpoint.config, plan)
        return hf.new_model(hf.config_from_dict(config_of_child, "the child"), seed=seed)

    def rate(self, arm: Arm) -> float:
        """The learning rate whose short run ends lowest: in KL for KD, in loss for CE."""
        if len(arm.rates) == 1:
            return arm.rates[0]
        figure = "kl" if arm.objective == "kl" else "loss"
        return min(arm.rates, key=lambda rate: self.trial(arm, rate)[figure])

    def trial(self, arm: Arm, rate: float) -> Figures:
        cut = replace(self, ratio=self.trial_ratio)
        return cut.run(arm, TRIAL_SEED, rate, self.study.trial_tokens, points=1)["after"]

    def result(self, arm: Arm, seed: int) -> Figures:
        return self.run(arm, seed, self.rate(arm), self.study.tokens, points=12)

    def run(self, arm: Arm, seed: int, rate: float, tokens: int, points: int) -> Figures:
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
        return {arm: [self.result(arm, seed) for seed in range(self.seeds)] for arm in ARMS}


def section(cut: Cut, figure: str) -> Iterator[str]:
    results = cut.results()
    sizes = ", ".join(f"{axis} {size}" for axis, size in cut.shape.prunable.items())
    kept, total = cut.shape.parameters("non_embedding"), cut.shape.parameters()
    share = kept / cut.study.parent.shape.parameters("non_embedding")
    yield from (
        f"## {share:.0%} of the non-embedding parameters kept",
        "",
        f"{sizes}: {kept:,} parameters without embeddings, {total:,} in all.",
        "",
        "| start, objective | learning rate | loss | KL to the parent |",
        "|---|---|---|---|",
    )
    for arm, of_arm in results.items():
        loss, kl = (spread([found["after"][key] for found in of_arm]) for key in ("loss", "kl"))
        yield f"| {arm.label} | {cut.rate(arm):g} | {loss} | {kl} |"
    yield from ("", "Differences within a seed, positive where the second is better:", "")
    yield from ("| | first - second | loss | KL |", "|---|---|---|---|")
    for first, second, what in EXPECTED:
        both = (_differences(results, first, second, key) for key in ("loss", "kl"))
        cells = (spread(differences, "{:+.3f}") for differences in both)
        yield f"| {what} | {first.label} - {second.label} | " + " | ".join(cells) + " |"
    yield from ("", _verdict(results), "")
    yield from (f"![Loss and KL to the parent on held-out text against tokens]({figure})", "")


def _verdict(results: dict[Arm, list[Figures]]) -> str:
    """How often the order holds that the papers lead one to expect."""
    order = (ARMS[0], ARMS[1], ARMS[3])
    found = []
    for key, name in (("loss", "loss"), ("kl", "KL")):
        by_seed = zip(*([run["after"][key] for run in results[arm]] for arm in order), strict=True)
        found.append(f"{sum(a < b < c for a, b, c in by_seed)} of {len(results[ARMS[0]])} seeds by {name}")
    return f"Expected is {' < '.join(arm.label for arm in order).replace(', ', ' with ')}: so in {' and '.join(found)}."


def _differences(results: dict[Arm, list[Figures]], first: Arm, second: Arm, key: str) -> list[float]:
    return [a["after"][key] - b["after"][key] for a, b in zip(results[first], results[second], strict=True)]


def trials(cut: Cut) -> Iterator[str]:
    study = cut.study
    yield from (
        "## Learning rates",
        "",
        f"Short runs of {study.trial_tokens:,} tokens on the first cut chose the learning rates of all; loss / KL:",
        "",
    )
    rates = sorted({rate for arm in ARMS for rate in arm.rates})
    yield "| start, objective | " + " | ".join(f"{rate:g}" for rate in rates) + " |"
    yield "|---|" + "---|" * len(rates)
    for arm in ARMS:
        found = {rate: cut.trial(arm, rate) for rate in arm.rates if len(arm.rates) > 1}
        cells = (f"{found[r]['loss']:.3f} / {found[r]['kl']:.3f}" if r in found else "" for r in rates)
        yield f"| {arm.label} | " + " | ".join(cells) + " |"
    yield ""


def draw(cut: Cut, parent_loss: float, path: Path) -> None:
    """The mean over seeds of each arm, in a band from the lowest to the highest seed."""
    settings = SETTINGS | {"savefig.facecolor": "white", "lines.markersize": 3.0}
    with picture(path, (9.0, 3.6), settings) as figure:
        panels = figure.subplots(1, 2)
        for axes, key, label in zip(panels, ("loss", "kl"), ("loss (nats)", "KL to the parent (nats)"), strict=True):
            for (arm, of_arm), colour in zip(cut.results().items(), SERIES, strict=False):
                tokens = [point["tokens"] for point in of_arm[0]["curve"]]
                by_point = list(zip(*([point[key] for point in found["curve"]] for found in of_arm), strict=True))
                axes.plot(tokens, [statistics.mean(v) for v in by_point], color=colour, marker="o", label=arm.label)
                axes.fill_between(tokens, *([f(v) for v in by_point] for f in (min, max)), color=colour, alpha=0.15)
            axes.set(xlabel="tokens", ylabel=label, yscale="log")
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_locator(LogLocator(subs=(2, 3, 4, 6)))
            axes.yaxis.set_minor_formatter("{x:g}")
        panels[0].axhline(parent_loss, color="black", linestyle=(0, (4, 3)), linewidth=1.2, alpha=0.7, label="parent")
        panels[0].legend(frameon=False)


def page(study: DistillStudy, cuts: Sequence[Cut], output: Path) -> Iterator[str]:
    parent = study.parent_loss()
    precision = cuts[0].result(ARMS[0], 0)["run"]["precision"]
    yield from (
        "# What distillation, importance and the parent's weights are worth",
        "",
        f"The teacher is that of `make bench-teacher`: {study.parent.shape.parameters():,} parameters, held-out loss "
        f"{parent:.3f}. Its width is",
        "cut evenly (hidden and ffn), with no repair, and every arm is trained by the same loop on the same number of "
        "tokens:",
        f"{study.tokens:,}, {study.tokens / len(study.train) / study.train.sequence_length:.2f} epochs, 8 blocks of "
        f"{study.train.sequence_length} a step, AdamW, cosine to a tenth, {precision}. KD is forward KL at "
        "temperature 1",
        "with no other loss; CE is conventional training on the text, whose tokens are cheaper by the teacher's "
        "forward pass.",
        "",
        f"Loss and KL(parent ‖ child) in nats per token over {study.blocks} held-out blocks; mean and 95 % interval",
        f"(Student's t) over {cuts[0].seeds} seeds. A seed draws other calibration samples, random orders and weights, "
        "and",
        "another order of the text. Learning rates: for each start and objective the best of those tried in short runs",
        "with another seed, by the figure that it minimises; random channels take that of those that importance keeps.",
        "",
        "Regenerate: `make bench-teacher && python scripts/distill_study.py`",
        "",
    )
    for cut in cuts:
        figure = output.with_name(f"{output.stem}-{cut.ratio:g}.svg")
        yield from section(cut, figure.name)
        draw(cut, parent, figure)
    yield from trials(cuts[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"))
    parser.add_argument("--name", default="bench", help="workspace with a teacher")
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.5])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=128, help="calibration blocks")
    parser.add_argument("--blocks", type=int, default=256, help="held-out blocks that results are measured on")
    parser.add_argument("--tokens", type=int, default=256_000, help="of each run")
    parser.add_argument("--trial-tokens", type=int, default=64_000, help="of each short run")
    parser.add_argument("--output", type=Path, default=Path("docs/results/distillation.md"))
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
        lines = list(page(study, [Cut(study, ratio, args.seeds, args.ratios[0]) for ratio in args.ratios], args.output))
    write_page(args.output, lines)


if __name__ == "__main__":
    main()
