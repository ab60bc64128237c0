"""Distill plain and repaired children of a pretrained model on equally many tokens, with equally tuned learning rates.

    make real-models
    python scripts/real_distill_study.py gemma-3-270m --text train.txt --validation held-out.txt

Both children keep the same channels and neurons: a share of the non-embedding parameters, hidden and ffn pruned in
proportion, pruned by `minitron prune` with and without its default repair. For each, learning rates are tried by the
same rule in short runs, by KL on the even held-out blocks; everything reported is of the odd ones. Figures are kept in
RUNS_DIR, so an interrupted study continues. Writes docs/results/real-models-distillation-MODEL.md and a figure.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from bench_teacher import bench_data
from matplotlib.ticker import EngFormatter
from real_models import MODELS, real_model
from studies import (
    RATES,
    Figures,
    SomeBlocks,
    Study,
    best_rate,
    evenly_pruned,
    mean_and_interval,
    reached,
    svg_figure,
    write_page,
)

from minitron_cli.artifacts.build import Context
from minitron_cli.artifacts.workspace import Workspace
from minitron_cli.checkpoint import hf
from minitron_cli.data.pack import Blocks
from minitron_cli.distill.config import DistillConfig
from minitron_cli.distill.trainer import train
from minitron_cli.inputs.source_model import open_source_model
from minitron_cli.prune.config import PruneConfig
from minitron_cli.report.plots import SERIES, SETTINGS
from minitron_cli.stages import prune

PLAIN, REPAIRED = "plain", "repaired"
REPAIRS = {PLAIN: "none", REPAIRED: "auto"}
TRIAL_SEED = 100
POINTS = 5  # of a curve


@dataclass(frozen=True, kw_only=True)
class RealDistillStudy(Study):
    """A pretrained model and its text, with the lengths of training runs."""

    ratio: float
    """Share of the non-embedding parameters that children keep."""
    tokens: int
    """Training tokens of each run."""
    trial_tokens: int
    """Training tokens of each short run that tries a learning rate."""
    batch: int
    """Blocks per step."""

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Sizes of the children."""
        return {axis: n for axis, n in evenly_pruned(self.parent.shape, self.ratio).prunable.items() if axis != "layer"}

    def student(self, arm: str, seed: int) -> Any:
        """Child in fp32 that a run starts from."""
        config = PruneConfig(shape=self.sizes, repair=REPAIRS[arm], repair_samples=64)
        made = prune.run(self.context, self.parent, config, scores=self.scores(seed), data=self.data)
        return hf.load_model(made.path, dtype="float32")

    def held_out(self, half: int) -> SomeBlocks:
        """Every second held-out block, from number `half` on: 0 to choose by, 1 to report."""
        return SomeBlocks(self.validation, range(half, len(self.validation), 2))

    def name(self, arm: str, seed: int, rate: float, tokens: int, half: int) -> str:
        """Name that the figures of a run are kept under."""
        return f"{self.ratio}-{arm}-{seed}-{rate:g}-{tokens}-{half}-{self.batch}"

    def training(self, arm: str, seed: int, rate: float, tokens: int, half: int) -> Figures:
        """A run: its `curve`, held-out loss and KL on one half of the blocks, and its throughput as `run`."""
        steps = max(1, tokens // (self.batch * self.train.sequence_length))
        config = DistillConfig(
            steps=steps,
            batch_size=self.batch,
            micro_batch_size=self.batch // 2,
            learning_rate=rate,
            min_learning_rate=rate / 10,
            warmup_steps=steps // 10,
            eval_every=steps if half == 0 else max(1, steps // POINTS),
            eval_blocks=self.blocks,
            save_every=50,
            seed=seed,
        )
        name = self.name(arm, seed, rate, tokens, half)

        def compute() -> Figures:
            student, teacher = self.student(arm, seed), hf.load_model(self.parent.path)
            scratch = self.directory / name
            held_out = cast("Blocks", self.held_out(half))  # has all that a training reads of held-out blocks
            found = train(student, teacher, self.train, held_out, config, scratch)
            return {"curve": found.validation, "run": found.throughput}

        return self.remembered(name, compute)

    def rate(self, arm: str) -> float:
        """Learning rate of the short run with the lowest final KL."""
        return best_rate(lambda rate: self.trial(arm, rate)["kl"])

    def tried(self, rate: float) -> Iterator[str]:
        """KL of each child's short run at a learning rate, as a cell; empty where it was not tried."""
        for arm in REPAIRS:
            name = self.name(arm, TRIAL_SEED, rate, self.trial_tokens, half=0)
            yield f"{self.trial(arm, rate)['kl']:.3f}" if self.path_of(name).is_file() else ""

    def trial(self, arm: str, rate: float) -> dict[str, float]:
        """Final figures of a short run."""
        return self.training(arm, TRIAL_SEED, rate, self.trial_tokens, half=0)["curve"][-1]

    def result(self, arm: str, seed: int) -> Figures:
        """Run at the chosen learning rate."""
        return self.training(arm, seed, self.rate(arm), self.tokens, half=1)


def page(study: RealDistillStudy, name: str, seeds: int, figure: Path) -> Iterator[str]:
    """Markdown lines of the results, and the figure."""
    results = {arm: [study.result(arm, seed) for seed in range(seeds)] for arm in REPAIRS}
    curves = {arm: [found["curve"] for found in runs] for arm, runs in results.items()}
    precisions = {found["run"]["precision"] for runs in results.values() for found in runs}
    sizes = ", ".join(f"{axis} {size}" for axis, size in study.sizes.items())
    yield from (
        f"# Distillation of {name}, plain and repaired",
        "",
        f"{study.ratio:.0%} of its non-embedding parameters kept ({sizes}). Forward KL, AdamW, cosine to a "
        f"tenth of the peak, {study.batch} blocks of {study.train.sequence_length} tokens a step, "
        f"{' and '.join(sorted(precisions))}. Loss and KL to the "
        f"parent in nats per token on {study.blocks} held-out blocks; {seeds} "
        f"seed{'s' * (seeds > 1)} of calibration blocks and order of the text.",
        "",
        "| child | learning rate | before: loss / KL | " + f"after {study.tokens:,} tokens: loss / KL |",
        "|---|---|---|---|",
    )
    for arm, found in curves.items():
        before, after = (both(lambda key, i=i, found=found: [curve[i][key] for curve in found]) for i in (0, -1))
        yield f"| {arm} | {study.rate(arm):g} | {before} | {after} |"
    yield ""
    for key, title in (("loss", "loss"), ("kl", "KL")):
        needed = [reached(repaired, key, plain[-1][key]) for plain, repaired in pairs(curves)]
        known = [tokens for tokens in needed if tokens != float("inf")]
        text = f"{mean_and_interval(known, '{:,.0f}')} tokens" if len(known) == seeds else "more tokens than that"
        yield f"- the repaired child reaches the plain one's final {title} after {text}"
    yield from (
        "",
        "| tokens | plain: loss / KL | repaired: loss / KL | repaired - plain: loss / KL |",
        "|---|---|---|---|",
    )
    for i, point in enumerate(curves[PLAIN][0]):
        cells = (both(lambda key, i=i, arm=arm: [curve[i][key] for curve in curves[arm]]) for arm in REPAIRS)
        apart = both(lambda key, i=i: [b[i][key] - a[i][key] for a, b in pairs(curves)], "{:+.3f}")
        yield f"| {point['tokens']:,} | {' | '.join(cells)} | {apart} |"
    yield from (
        "",
        f"Short runs of {study.trial_tokens:,} tokens chose the learning rates, by KL on other blocks. Three were "
        "tried for both children, and then the next beside the best until none was better:",
        "",
        "| learning rate | " + " | ".join(REPAIRS) + " |",
        "|---|" + "---|" * len(REPAIRS),
    )
    for rate in RATES:
        if any(cells := list(study.tried(rate))):
            yield f"| {rate:g} | " + " | ".join(cells) + " |"
    yield from ("", f"![Held-out KL against tokens]({figure.name})", "")
    yield "The figures of all runs are in [real-models-distillation/](real-models-distillation/)."
    yield ""
    yield (
        f"Regenerate: `make real-models && python scripts/real_distill_study.py {name} --text T --validation V "
        f"--ratio {study.ratio} --samples {study.samples} --blocks {study.blocks} --tokens {study.tokens} "
        f"--trial-tokens {study.trial_tokens} --batch {study.batch} --seeds {seeds}`"
    )
    draw(curves, figure)


def both(values: Callable[[str], list[float]], form: str = "{:.3f}") -> str:
    """Loss and KL as a cell: means over seeds with intervals."""
    return " / ".join(mean_and_interval(values(key), form) for key in ("loss", "kl"))


def pairs(curves: dict[str, list[list[dict[str, float]]]]) -> Iterator[tuple[list[dict[str, float]], ...]]:
    """Curves of the plain and of the repaired child of each seed."""
    return zip(curves[PLAIN], curves[REPAIRED], strict=True)


def draw(curves: dict[str, list[list[dict[str, float]]]], path: Path) -> None:
    """Plot KL against tokens, one line per run."""
    with svg_figure(path, (6.4, 3.6), SETTINGS | {"savefig.facecolor": "white"}) as figure:
        axes = figure.add_subplot()
        for (arm, found), color in zip(curves.items(), SERIES, strict=False):
            for seed, curve in enumerate(found):
                tokens, kl = [p["tokens"] for p in curve], [p["kl"] for p in curve]
                axes.plot(tokens, kl, color=color, marker="o", label=arm if seed == 0 else None)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.set(xlabel="tokens of distillation", ylabel="KL to the parent (nats)", ylim=(0, None))
        axes.legend(frameon=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=MODELS, help="pretrained model that `make real-models` assembled")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"), help="directory of workspaces")
    parser.add_argument("--text", nargs="+", required=True, help="files to calibrate and train on")
    parser.add_argument("--validation", nargs="+", required=True, help="files to choose rates and to measure on")
    parser.add_argument("--ratio", type=float, default=0.5, help="share of the non-embedding parameters to keep")
    parser.add_argument("--seeds", type=int, default=2, help="runs of each child")
    parser.add_argument("--samples", type=int, default=32, help="number of calibration blocks")
    parser.add_argument("--blocks", type=int, default=32, help="held-out blocks to choose by, and others to report")
    parser.add_argument("--tokens", type=int, default=200_000, help="training tokens of each run")
    parser.add_argument("--trial-tokens", type=int, default=50_000, help="training tokens of each short run")
    parser.add_argument("--batch", type=int, default=8, help="blocks of 256 tokens per step")
    parser.add_argument(
        "--output", type=Path, help="page to write (default: docs/results/real-models-distillation-MODEL.md)"
    )
    args = parser.parse_args()
    workspace = Workspace(args.runs_dir / f"distilled-{args.model}")
    with workspace.lock():
        study = RealDistillStudy(
            folder="real-distill-study",
            context=Context(workspace),
            parent=open_source_model(real_model(args.model)),
            data=bench_data(args.text, args.validation),
            samples=args.samples,
            blocks=args.blocks,
            ratio=args.ratio,
            tokens=args.tokens,
            trial_tokens=args.trial_tokens,
            batch=args.batch,
        )
        output = args.output or Path(f"docs/results/real-models-distillation-{args.model}.md")
        lines = list(page(study, args.model, args.seeds, output.with_suffix(".svg")))
    write_page(output, lines)


if __name__ == "__main__":
    main()
