"""Compare a live teacher with its stored signals, on equally many tokens from the same pruned child.

    python scripts/bench_teacher.py && python scripts/signals_study.py

One pass: the live teacher; 50 draws; the 128 most probable ids with the rest as one event; the 8 most probable,
renormalized, which nothing but this study can train on; and the live teacher on the fifth of the positions at which the
student is least sure. Two passes over half of the text: the live teacher, draws of their own in each pass, and the same
draws twice. Each seed draws other calibration blocks and another order of the text. Figures are kept in RUNS_DIR, so an
interrupted study continues. Writes docs/results/signals.md.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from bench_teacher import bench_data
from studies import Figures, SomeBlocks, Study, evenly_pruned, mean_and_interval, write_page

from minitron_cli import io
from minitron_cli.artifacts.build import Context
from minitron_cli.artifacts.workspace import Workspace
from minitron_cli.checkpoint import hf
from minitron_cli.data.batches import evenly_spaced
from minitron_cli.data.pack import Blocks
from minitron_cli.distill import teaching
from minitron_cli.distill.config import DistillConfig
from minitron_cli.distill.distributed import resolve_precision
from minitron_cli.distill.position_choice import PositionChoice
from minitron_cli.distill.teacher_signals import TeacherSignals
from minitron_cli.distill.trainer import train
from minitron_cli.evaluate.perplexity import kl_to_parent, perplexity
from minitron_cli.inputs.source_model import open_source_model
from minitron_cli.prune.config import Ranking
from minitron_cli.signals import shards
from minitron_cli.signals.config import Sampled, SignalKind, TopK
from minitron_cli.signals.encoding import Encoding
from minitron_cli.signals.rows import SignalRows
from minitron_cli.signals.shards import StoredSignals, Visit

RATE, RATIO, BATCH = 1e-3, 0.5, 8  # the best rate of this child in docs/results/studies/start.md
FIFTH = PositionChoice(share=0.2)


@dataclass(frozen=True)
class Arm:
    """What a student learns from."""

    label: str
    kind: SignalKind | None = None
    """Signals; None for the live teacher."""
    passes: int = 1
    drawn: int = 1
    """Passes that have draws of their own."""
    is_renormalized: bool = False
    positions: PositionChoice | None = None


ARMS = (
    Arm("live teacher"),
    Arm("50 draws", Sampled()),
    Arm("top 128 and the rest", TopK()),
    Arm("top 8, renormalized", TopK(k=8, allow_small_k=True), is_renormalized=True),
    Arm("live teacher, least sure fifth", positions=FIFTH),
    Arm("50 draws, least sure fifth", Sampled(), positions=FIFTH),
    Arm("live teacher, two passes", passes=2),
    Arm("own draws in each of two passes", Sampled(), passes=2, drawn=2),
    Arm("the same draws in two passes", Sampled(), passes=2),
)
COMPARISONS = (
    (ARMS[1], ARMS[0], "draws instead of the teacher"),
    (ARMS[2], ARMS[0], "top 128 instead of the teacher"),
    (ARMS[3], ARMS[0], "renormalized top 8 instead of the teacher"),
    (ARMS[4], ARMS[0], "a fifth of the positions instead of all, live"),
    (ARMS[5], ARMS[1], "a fifth of the positions instead of all, drawn"),
    (ARMS[7], ARMS[6], "own draws in each pass instead of the teacher"),
    (ARMS[8], ARMS[7], "the same draws instead of own ones"),
)


class Renormalized(StoredSignals):
    """The most probable ids with probabilities that add up to 1, as most offline distillation has them."""

    def rows(self, visits: Sequence[Visit]) -> SignalRows:
        """Signals without the rest of the distribution."""
        found = super().rows(visits)
        weights_NK = found.weights_NK / found.weights_NK.sum(-1, keepdim=True)
        return replace(found, weights_NK=weights_NK, entropy_N=-torch.xlogy(weights_NK, weights_NK).sum(-1))


@dataclass(frozen=True)
class StudySignals:
    """What the training loop reads of signals."""

    fingerprint: str
    train: StoredSignals


@dataclass(frozen=True, kw_only=True)
class SignalsStudy(Study):
    """Teacher and text, with the length of a run."""

    tokens: int
    """Training tokens of each run."""

    def part(self, passes: int) -> Blocks:
        """Blocks that are read so many times."""
        count = self.tokens // (passes * self.train.sequence_length)
        return cast("Blocks", SomeBlocks(self.train, evenly_spaced(len(self.train), count)))

    def signals(self, arm: Arm) -> StoredSignals:
        """Stored signals of an arm, made once."""
        assert arm.kind
        encoding = Encoding(arm.kind, self.parent.shape.sizes["vocab"])
        path = self.directory / f"{str(arm.kind).replace(' ', '-')}-{arm.passes}-{arm.drawn}-{self.tokens}.safetensors"
        if not path.is_file():
            blocks = self.part(arm.passes)
            device = torch.device("cpu")
            precision = resolve_precision("auto", device)  # as the live teacher's
            teacher = teaching.Teacher(hf.load_model(self.parent.path), device, precision, BATCH)
            piece = teaching.Piece("train", 0, tuple(range(len(blocks))), arm.drawn)
            temporary = path.with_suffix(".new")
            io.make_dirs(path.parent)
            temporary.unlink(missing_ok=True)
            shards.write(temporary, teacher.signals(blocks, piece, encoding, lambda n=1, **figures: None))
            temporary.rename(path)
        return (Renormalized if arm.is_renormalized else StoredSignals)([path], encoding)

    @cached_property
    def shape(self) -> Any:
        """Shape of the child."""
        return evenly_pruned(self.parent.shape, RATIO)

    def result(self, arm: Arm, seed: int) -> Figures:
        """Held-out loss and KL to the teacher after a run, and its speed."""
        blocks = self.part(arm.passes)
        steps = self.tokens // (BATCH * self.train.sequence_length)
        config = DistillConfig(
            steps=steps,
            batch_size=BATCH,
            micro_batch_size=BATCH,
            learning_rate=RATE,
            min_learning_rate=RATE / 10,
            warmup_steps=steps // 10,
            positions=arm.positions,
            save_every=50,
            seed=seed,
        )
        name = f"{arm.label.replace(', ', '-').replace(' ', '-')}-{seed}-{self.tokens}"

        def compute() -> Figures:
            builder = self.builder(Ranking(), seed)
            student, scratch = builder.model(builder.plan(self.shape)), self.directory / name
            signals = cast("TeacherSignals", StudySignals(name, self.signals(arm))) if arm.kind else None
            teacher = None if arm.kind else hf.load_model(self.parent.path)
            found = train(student, teacher, blocks, None, config, scratch, signals=signals)
            io.remove_tree(scratch)
            kl = kl_to_parent(student, self.teacher, self.validation, max_blocks=self.blocks).kl_nats
            loss = perplexity(student, self.validation, max_blocks=self.blocks).loss_nats
            return {"kl": kl, "loss": loss, "run": found.throughput}

        return self.remembered(name, compute)

    def position_bytes(self, arm: Arm) -> float:
        """Bytes of a scored position on disk."""
        self.signals(arm)
        path = next(self.directory.glob(f"{str(arm.kind).replace(' ', '-')}-{arm.passes}-{arm.drawn}-*.safetensors"))
        return path.stat().st_size / shards.Shard(path, self.signals(arm).encoding).positions


def page(study: SignalsStudy, seeds: int) -> Iterator[str]:
    """Markdown lines of the results."""
    by_seed = [[study.result(arm, seed) for arm in ARMS] for seed in range(seeds)]  # one seed of all, then the next
    results = dict(zip(ARMS, zip(*by_seed, strict=True), strict=True))
    sizes = ", ".join(f"{axis} {size}" for axis, size in study.shape.prunable.items())
    yield from (
        "# Stored signals in place of a live teacher",
        "",
        f"The bench teacher's child with {RATIO:.0%} of its non-embedding parameters ({sizes}), {study.tokens:,} "
        f"tokens of forward KL in blocks of {study.train.sequence_length}, learning rate {RATE:g}. Loss and KL to the "
        f"teacher in nats per token on {study.blocks} held-out blocks; {seeds} seeds of calibration blocks and order.",
        "",
        "| learns from | bytes per token | loss | KL |",
        "|---|---|---|---|",
    )
    for arm, found in results.items():
        loss, kl = (mean_and_interval([one[key] for one in found], "{:.4f}") for key in ("loss", "kl"))
        stored = f"{study.position_bytes(arm):.1f}" if arm.kind else "\N{EN DASH}"
        yield f"| {arm.label} | {stored} | {loss} | {kl} |"
    yield from ("", "Differences of runs with the same seed; positive where the change makes it worse:", "")
    yield from ("| change | loss | KL |", "|---|---|---|")
    for changed, base, what in COMPARISONS:
        both = (
            [a[key] - b[key] for a, b in zip(results[changed], results[base], strict=True)] for key in ("loss", "kl")
        )
        yield f"| {what} | " + " | ".join(mean_and_interval(some, "{:+.4f}") for some in both) + " |"
    yield from ("", "Regenerate: `make bench-teacher && python scripts/signals_study.py`")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default="bench", help="name of the workspace in --runs-dir")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"), help="directory of workspaces")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each arm")
    parser.add_argument("--samples", type=int, default=32, help="number of calibration blocks")
    parser.add_argument("--blocks", type=int, default=128, help="held-out blocks to measure on")
    parser.add_argument("--tokens", type=int, default=131_072, help="training tokens of each run")
    parser.add_argument("--output", type=Path, default=Path("docs/results/signals.md"), help="page to write")
    args = parser.parse_args()
    workspace = Workspace(args.runs_dir / args.name)
    with workspace.lock():
        study = SignalsStudy(
            folder="signals-study",
            context=Context(workspace),
            parent=open_source_model(workspace.require("teacher", "python scripts/bench_teacher.py").path),
            data=bench_data(None),
            samples=args.samples,
            blocks=args.blocks,
            tokens=args.tokens,
        )
        lines = list(page(study, args.seeds))
    write_page(args.output, lines)


if __name__ == "__main__":
    main()
