"""Compare rankings by the zero-shot loss of children pruned by importance, at random, and by inverse importance.

Also: whether adding the residual of pruned query heads to the kept ones helps, and whether bf16 ranks as fp32 does.

    python scripts/bench_teacher.py && python scripts/ranking_study.py

Each seed draws other calibration samples and another random ranking. Writes docs/results/ranking.md.
"""

import argparse
import statistics
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from bench_teacher import bench_data
from studies import evenly_pruned, mean_and_deviation, write_page

from minitron_cli.artifacts.build import Context
from minitron_cli.artifacts.workspace import Workspace
from minitron_cli.importance.config import ImportanceConfig
from minitron_cli.inputs.source_model import SourceModel, open_source_model
from minitron_cli.inputs.token_blocks import blocks_of
from minitron_cli.model.shape import Shape
from minitron_cli.prune.child_builder import ChildBuilder, read_scores
from minitron_cli.prune.config import Ranking
from minitron_cli.results.training import TeacherResult
from minitron_cli.scores.metric import Random
from minitron_cli.scores.rank_correlation import METRICS
from minitron_cli.stages import importance

BLOCKS = 128  # held-out blocks of a loss
DTYPES = ("float32", "bfloat16")


def shapes(parent: Shape) -> dict[str, Shape]:
    """Shapes with one axis halved, and one with half of the non-embedding parameters by width, each with its name."""
    return {
        "neurons to 50 %": parent.resize(ffn=parent.sizes["ffn"] // 2),
        "hidden channels to 50 %": parent.resize(hidden=parent.sizes["hidden"] // 2),
        "non-embedding parameters to 50 % (hidden and ffn)": evenly_pruned(parent, 0.5),
    }


def rankings(seed: int) -> dict[str, Ranking]:
    """Rankings that are compared; `seed` draws the random one."""
    return {
        "importance": Ranking(),
        "random": Ranking(width=Random(seed=seed)),
        "inverse": Ranking(invert=True),
    }


def head_shapes(parent: Shape) -> dict[str, Shape]:
    """Shapes with two thirds and one third of the query heads, the same number in every group, each with its name."""
    groups, heads = parent.sizes["kv_head"], parent.sizes["head"]
    kept = (max(1, 2 * heads // groups // 3) * groups, max(1, heads // groups // 3) * groups)
    return {f"query heads {heads} to {n}": parent.resize(head=n) for n in kept}


def residuals(seed: int) -> dict[str, Ranking]:
    """Kinds of head residual that are compared; the same for every seed."""
    return {kind: Ranking(head_residual=kind) for kind in ("none", "paper", "laco")}


Shapes = Callable[[Shape], dict[str, Shape]]
Rankings = Callable[[int], dict[str, Ranking]]
Losses = dict[str, dict[str, list[float]]]
"""Shape -> ranking -> loss in nats per token, one per seed."""


def losses(
    context: Context, parent: SourceModel, seeds: int, samples: int, shapes: Shapes, rankings: Rankings
) -> Losses:
    """Zero-shot losses of all shapes under all rankings, with `samples` calibration blocks for each seed."""
    data = bench_data(None)
    validation = blocks_of(context, data, "validation", parent.path)
    found: Losses = {}
    for seed in range(seeds):
        artifact = importance.run(
            context, parent, data, ImportanceConfig(samples=samples, seed=seed, layer_removal=False)
        )
        scores = read_scores(artifact, parent)
        for name, shape in shapes(parent.shape).items():
            for label, ranking in rankings(seed).items():
                loss = ChildBuilder(context, parent, scores, ranking).zero_shot_loss(shape, validation, BLOCKS)
                found.setdefault(f"{name}: {shape}", {}).setdefault(label, []).append(loss)
                print(seed, name, label, round(loss, 4), flush=True)
    return found


def low_precision(context: Context, parent: SourceModel, samples: int) -> Iterator[str]:
    """Table of Spearman's correlation between scores in bf16 and in fp32, over all layers and aggregations."""
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
    """Spearman's rank correlation of two vectors without ties."""
    ranks = torch.stack([x.argsort().argsort().double() for x in (a, b)])
    return float(torch.corrcoef(ranks)[0, 1])


def page(
    parent: SourceModel, parent_loss: float, ranked: Losses, residual: Losses, low_precision: Iterable[str], seeds: int
) -> list[str]:
    """Lines of the Markdown page."""
    return [
        "# Rankings by importance, at random, and inverted",
        "",
        f"Zero-shot validation loss in nats per token over {BLOCKS} blocks; mean ± standard deviation over {seeds}",
        "seeds (other calibration samples, another random ranking). The teacher is made by `make bench-teacher`:",
        f"{parent.shape.parameters():,} parameters, loss {parent_loss:.3f}.",
        "",
        "Regenerate: `make bench-teacher && python scripts/ranking_study.py`",
        "",
        *table(ranked, list(rankings(0))),
        "",
        "## The head residual",
        "",
        "Pruned query heads are added to the kept ones (`prune.ranking.head_residual`) with the paper's sign,",
        "or with that of LaCo, which the paper cites. Same measure and seeds as above.",
        "",
        *table(residual, list(residuals(0))),
        "",
        "## bf16 against fp32",
        "",
        "Spearman's correlation between the scores of a bf16 pass and an fp32 pass over the same samples. A ranking",
        "is that of one layer (for hidden channels, of the model) by one of the nine aggregations.",
        "",
        *low_precision,
    ]


def table(found: Losses, labels: list[str]) -> Iterator[str]:
    """Table with a row per shape and a column per ranking."""
    yield "| shape | " + " | ".join(labels) + " |"
    yield "|---|" + "---|" * len(labels)
    for name, by_label in found.items():
        cells = (mean_and_deviation(by_label[label]) for label in labels)
        yield f"| {name} | " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"), help="directory of workspaces")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    parser.add_argument("--samples", type=int, default=128, help="number of calibration blocks")
    parser.add_argument("--output", type=Path, default=Path("docs/results/ranking.md"), help="page to write")
    args = parser.parse_args()
    workspace = Workspace(args.runs_dir / "bench")
    teacher = workspace.require("teacher", "make bench-teacher")
    parent = open_source_model(teacher.path)
    with workspace.lock():
        context = Context(workspace)
        ranked = losses(context, parent, args.seeds, args.samples, shapes, rankings)
        residual = losses(context, parent, args.seeds, args.samples, head_shapes, residuals)
        precision = list(low_precision(context, parent, args.samples))
    after = teacher.result(TeacherResult).after
    assert after, "a teacher is evaluated at its last step"
    write_page(args.output, page(parent, after.loss, ranked, residual, precision, args.seeds))


if __name__ == "__main__":
    main()
