"""Measure short distillations at several learning rates and lengths, with batch size and warm-up as the verb fits them.

    python scripts/rate_study.py demo-teacher
    make real-models && python scripts/rate_study.py gemma-3-270m --text train.txt --validation held-out.txt

A child with half of the non-embedding parameters, pruned and repaired by default, is distilled with the keys that
`minitron distill --tokens N` has, except for the learning rate; its end is a tenth of its peak. Every seed draws other
calibration blocks and another order of the text. Figures are kept in RUNS_DIR, so an interrupted study continues.
Prints a Markdown table, or writes it to --output.
"""

import argparse
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from bench_teacher import bench_data
from real_models import MODELS
from studies import Figures, Study, evenly_pruned, mean_and_interval, study_model, write_page

from minitron_cli.artifacts.build import Context
from minitron_cli.artifacts.workspace import Workspace
from minitron_cli.checkpoint import hf
from minitron_cli.checkpoint.model_names import DEMO_TEACHER
from minitron_cli.distill import short_runs
from minitron_cli.distill.config import DistillConfig
from minitron_cli.distill.trainer import train
from minitron_cli.evaluate.perplexity import kl_to_parent
from minitron_cli.inputs.source_model import open_source_model
from minitron_cli.prune.config import PruneConfig
from minitron_cli.stages import prune

RATES = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3)
SHARE = 0.5  # of the non-embedding parameters


@dataclass(frozen=True, kw_only=True)
class RateStudy(Study):
    """A teacher and its text, whose child is distilled for a short time."""

    rates: Sequence[float]

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Sizes of the child."""
        return {axis: n for axis, n in evenly_pruned(self.parent.shape, SHARE).prunable.items() if axis != "layer"}

    def student(self, seed: int) -> Any:
        """Child in fp32 that a run starts from."""
        config = PruneConfig(shape=self.sizes)
        made = prune.run(self.context, self.parent, config, scores=self.scores(seed), data=self.data)
        return hf.load_model(made.path, dtype="float32")

    def config(self, tokens: int, rate: float, seed: int) -> DistillConfig:
        """Settings of a run: those of the verb at this length, with another learning rate."""
        given = DistillConfig(tokens=tokens, learning_rate=rate, min_learning_rate=rate / 10, seed=seed, save_every=50)
        found, _ = short_runs.fitted(given, self.train.sequence_length, len(self.train))
        return found

    def kl(self, model: Any) -> float:
        """KL to the parent on held-out blocks, in nats per token."""
        return kl_to_parent(model, self.teacher, self.validation, max_blocks=self.blocks).kl_nats

    def before(self, seed: int) -> float:
        """KL of the child before training."""
        return self.remembered(f"before-{seed}", lambda: {"kl": self.kl(self.student(seed))})["kl"]

    def after(self, tokens: int, rate: float, seed: int) -> float:
        """KL of the child after a run."""

        def compute() -> Figures:
            student, teacher = self.student(seed), hf.load_model(self.parent.path)
            config = self.config(tokens, rate, seed)
            train(student, teacher, self.train, self.validation, config, self.directory / f"{tokens}-{rate:g}-{seed}")
            return {"kl": self.kl(student), "batch": config.batch_size, "warmup": config.warmup_steps}

        return self.remembered(f"{tokens}-{rate:g}-{seed}", compute)["kl"]


def page(study: RateStudy, name: str, lengths: list[int], seeds: int) -> Iterator[str]:
    """Markdown lines of one model: a row per length, a column per learning rate, the lowest mean in bold."""
    parent = study.parent.shape
    start = mean_and_interval([study.before(seed) for seed in range(seeds)])
    yield from (
        f"{name}: {parent.parameters():,} parameters, {parent.parameters('non_embedding'):,} of them outside embedding "
        f"and head, of which {SHARE:.0%} are kept. KL to the parent (nats/token) on {study.blocks} held-out blocks, "
        f"{start} before training; {seeds} seed{'s' * (seeds > 1)}.",
        "",
        "| tokens | batch | warm-up steps | " + " | ".join(f"{rate:g}" for rate in study.rates) + " |",
        "|---|---|---|" + "---|" * len(study.rates),
    )
    for tokens in lengths:
        config = study.config(tokens, study.rates[0], 0)
        found = {rate: [study.after(tokens, rate, seed) for seed in range(seeds)] for rate in study.rates}
        best = min(found, key=lambda rate: statistics.mean(found[rate]))
        cells = [f"**{mean_and_interval(v)}**" if rate == best else mean_and_interval(v) for rate, v in found.items()]
        yield f"| {tokens:,} | {config.batch_size} | {config.warmup_steps} | " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help=f"{DEMO_TEACHER}, {', '.join(MODELS)}, or a workspace of bench_teacher.py")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"), help="directory of workspaces")
    parser.add_argument("--text", nargs="*", help="files to calibrate and train on (default: the standard library)")
    parser.add_argument("--validation", nargs="*", help="files to measure on")
    parser.add_argument("--lengths", type=int, nargs="+", default=[32_768, 131_072, 524_288], help="tokens of the runs")
    parser.add_argument("--rates", type=float, nargs="+", default=RATES, help="peak learning rates")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each cell")
    parser.add_argument("--samples", type=int, default=64, help="number of calibration blocks")
    parser.add_argument("--blocks", type=int, default=64, help="held-out blocks to measure on")
    parser.add_argument("--output", type=Path, help="page to write")
    args = parser.parse_args()
    workspace = Workspace(args.runs_dir / args.name)
    with workspace.lock():
        study = RateStudy(
            folder="rate-study",
            context=Context(workspace),
            parent=open_source_model(study_model(args.name, workspace)),
            data=bench_data(args.text, args.validation),
            samples=args.samples,
            blocks=args.blocks,
            rates=args.rates,
        )
        lines = list(page(study, args.name, args.lengths, args.seeds))
    if args.output:
        write_page(args.output, lines)
    else:
        print("\n".join(lines))


if __name__ == "__main__":
    main()
