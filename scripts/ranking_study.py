"""Does importance know what matters? Zero-shot loss of cuts ranked by importance, at random, and upside down.

And does it help that query heads which go leave a residual in those that stay? And does bf16 rank as fp32 does?

    python scripts/bench_teacher.py && python scripts/ranking_study.py

Each seed draws other calibration samples and another random order. Writes docs/results/ranking.md.
"""

import argparse
import statistics
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from bench_teacher import bench_data
from studies import even_cut, mean_and_deviation, write_page

from minitron_cli.artifacts.build import Context
from minitron_cli.artifacts.workspace import Workspace
from minitron_cli.importance.config import ImportanceConfig
from minitron_cli.inputs.source_model import SourceModel, open_source_model
from minitron_cli.inputs.token_blocks import blocks_of
from minitron_cli.model.shape import Shape
from minitron_cli.prune.child_builder import ChildBuilder, read_scores
from minitron_cli.prune.config import Ranking
from minitron_cli.scores.metric import Random
from minitron_cli.scores.rank_correlation import METRICS
from minitron_cli.stages import importance

BLOCKS = 128
DTYPES = ("float32", "bfloat16")


def cuts(parent: Shape) -> dict[str, Shape]:
    """Halved axes one by one, and half of the non-embedding parameters by an even cut of width."""
    return {
        "neurons to 50 %": parent.resize(ffn=parent.sizes["ffn"] // 2),
        "hidden channels to 50 %": parent.resize(hidden=parent.sizes["hidden"] // 2),
        "non-embedding parameters to 50 % (hidden and ffn)": even_cut(parent, 0.5),
    }


def rankings(seed: int) -> dict[str, Ranking]:
    return {
        "importance": Ranking(),
        "random": Ranking(width=Random(seed=seed)),
        "inverse": Ranking(invert=True),
    }


def head_cuts(parent: Shape) -> dict[str, Shape]:
    """Two thirds and one third of the query heads, the same number in every group."""
    groups, heads = parent.sizes["kv_head"], parent.sizes["head"]
    kept = (max(1, 2 * heads // groups // 3) * groups, max(1, heads // groups // 3) * groups)
    return {f"query heads {heads} to {n}": parent.resize(head=n) for n in kept}


def residuals(seed: int) -> dict[str, Ranking]:
    return {kind: Ranking(head_residual=kind) for kind in ("none", "paper", "laco")}


Cuts = Callable[[Shape], dict[str, Shape]]
Rankings = Callable[[int], dict[str, Ranking]]
Found = dict[str, dict[str, list[float]]]


def losses(context: Context, parent: SourceModel, seeds: int, samples: int, cuts: Cuts, rankings: Rankings) -> Found:
    """Cut -> ranking -> loss in nats per token, one per seed."""
    data = bench_data(None)
    validation = blocks_of(context, data, "validation", parent.path)
    found: Found = {}
    for seed in range(seeds):
        artifact = importance.run(
            context, parent, data, ImportanceConfig(samples=samples, seed=seed, layer_removal=False)
        )
        scores = read_scores(artifact, parent)
        for name, shape in cuts(parent.shape).items():
            for label, ranking in rankings(seed).items():
                loss = ChildBuilder(context, parent, scores, ranking).zero_shot_loss(shape, validation, BLOCKS)
                found.setdefault(f"{name}: {shape}", {}).setdefault(label, []).append(loss)
                print(seed, name, label, round(loss, 4), flush=True)
    return found


def low_precision(context: Context, parent: SourceModel, samples: int) -> Iterator[str]:
    """Spearman's correlation of bf16's scores with fp32's: every layer and all nine aggregations."""
    config = ImportanceConfig(samples=samples, layer_removal=False)
    runs = (importance.run(replace(context, dtype=dtype), parent, bench_data(None), config) for dtype in DTYPES)
    exact, rounded = (read_scores(artifact, parent) for artifact in runs)
    yield "| axis | rankings | median | lowest |"
    yield "|---|---|---|---|"
    for axis in ("head", "ffn", "hidden"):
        found = []
        for metric in METRICS.values():
            pairs = zip(*(torch.atleast_2d(scores.select(axis, metric)) for scores in (exact, rounded)), strict=True)
            found += [spearman(a, b) for a, b in pairs]
        yield f"| {axis} | {len(found)} | {statistics.median(found):.5f} | {min(found):.5f} |"


def spearman(a: torch.Tensor, b: torch.Tensor) -> float:
    ranks = torch.stack([x.argsort().argsort().double() for x in (a, b)])
    return float(torch.corrcoef(ranks)[0, 1])


def page(
    parent: SourceModel, parent_loss: float, ranked: Found, residual: Found, low_precision: Iterable[str], seeds: int
) -> list[str]:
    return [
        "# Ranked by importance, at random, upside down",
        "",
        f"Zero-shot validation loss in nats per token over {BLOCKS} blocks; mean ± standard deviation over {seeds}",
        "seeds (other calibration samples, another random order). The teacher is that of `make bench-teacher`:",
        f"{parent.shape.parameters():,} parameters, loss {parent_loss:.3f}.",
        "",
        "Regenerate: `make bench-teacher && python scripts/ranking_study.py`",
        "",
        *table(ranked, list(rankings(0))),
        "",
        "## The head residual",
        "",
        "Query heads that stay take over from those that go (`prune.ranking.head_residual`): as the paper prints it,",
        "and with the sign of LaCo, which the paper cites. The same measure, the same seeds.",
        "",
        *table(residual, list(residuals(0))),
        "",
        "## bf16 beside fp32",
        "",
        "Spearman's correlation of the scores of a pass in bf16 with those of a pass in fp32, same samples. A ranking",
        "is one layer (of hidden channels, the model) under one of the nine aggregations.",
        "",
        *low_precision,
    ]


def table(found: Found, labels: list[str]) -> Iterator[str]:
    yield "| cut | " + " | ".join(labels) + " |"
    yield "|---|" + "---|" * len(labels)
    for name, by_label in found.items():
        cells = (mean_and_deviation(by_label[label]) for label in labels)
        yield f"| {name} | " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--output", type=Path, default=Path("docs/results/ranking.md"))
    args = parser.parse_args()
    workspace = Workspace(args.runs_dir / "bench")
    teacher = workspace.require("teacher", "make bench-teacher")
    parent = open_source_model(teacher.path)
    with workspace.lock():
        context = Context(workspace)
        ranked = losses(context, parent, args.seeds, args.samples, cuts, rankings)
        residual = losses(context, parent, args.seeds, args.samples, head_cuts, residuals)
        precision = list(low_precision(context, parent, args.samples))
    write_page(args.output, page(parent, teacher.summary["after"]["loss"], ranked, residual, precision, args.seeds))


if __name__ == "__main__":
    main()
