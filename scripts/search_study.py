"""Compare the shape found by a search that retrains its candidates with the best zero-shot and an evenly scaled one.

    python scripts/bench_teacher.py && python scripts/search_study.py

Prunes the bench teacher to half of its non-embedding parameters, over a grid without the evenly scaled shape. Three
shapes are then distilled in full, with three seeds each: the search's winner, the best zero-shot candidate, and the
evenly scaled shape. A second, zero-shot search has a latency limit that is measured on this machine. Writes the column
and the section "plain" of docs/results/search.md. An interrupted run continues.

    python scripts/search_study.py --candidates 24 --top 6 --repair auto --learning-rate 4e-4

repairs the children, also those of candidates, and writes the column and the section "repaired", without the search
for a latency, which does not depend on the weights.
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import torch
from bench_teacher import bench_data
from studies import Study, mean_and_deviation

from minitron_cli.artifacts.artifact import Artifact
from minitron_cli.artifacts.build import Context
from minitron_cli.artifacts.workspace import Workspace
from minitron_cli.distill.config import DistillConfig
from minitron_cli.evaluate.metrics import LOSS
from minitron_cli.figures import significant
from minitron_cli.inputs.source_model import open_source_model
from minitron_cli.prune.config import Budget, PruneConfig, Ranking, RepairName
from minitron_cli.report import plots
from minitron_cli.report.candidates import TOKENS
from minitron_cli.report.view import Line, Lines, Plot
from minitron_cli.results.search import CandidateResult, SearchResult
from minitron_cli.results.training import TrainingResult
from minitron_cli.search.config import Retrain, SearchConfig
from minitron_cli.search.constraints.base import Timing, Workload
from minitron_cli.search.latency_probe import LatencyProbe
from minitron_cli.search.rank import kendall_tau
from minitron_cli.stages import distill, prune, search

SPACE = {
    "layer": (5, 6, 7, 8),
    "hidden": (112, 128, 144, 160, 176, 192),
    "head": (4, 6),
    "ffn": tuple(range(192, 513, 32)),
}
FAST_SPACE = {**SPACE, "layer": (4, 5, 6, 7, 8)}  # time grows with layers here; five of eight take 63 %
EVEN = {"hidden": 126, "ffn": 344}  # about two thirds of both (six heads divide 126): half of the parameters
BUDGET = Budget(target="50%", count="non_embedding")
LATENCY = {"phase": "decode", "batch": 1, "length": 128, "repeats": 9}
COLUMNS = ("plain", "repaired")
SKELETON = """\
# A search that retrains its candidates

| | plain | repaired |
|---|---|---|

Differences are in nats; negative means that the search's winner is better.
"""
Finals = Mapping[str, list[dict[str, float]]]
"""Name of a shape -> loss and KL of each seed after full distillation."""


@dataclass(frozen=True, kw_only=True)
class SearchStudy(Study):
    """Teacher and text, with the searches and trainings that are run on them."""

    args: argparse.Namespace

    def pruning(self, **options: Any) -> PruneConfig:
        """Pruning configuration with the repair of this study."""
        return PruneConfig(repair=self.args.repair, **options)

    def found(self) -> Artifact:
        """The search that retrains its candidates."""
        retrain = Retrain(
            top=self.args.top,
            tokens=self.args.retrain_tokens,
            batch_size=16,
            micro_batch_size=16,
            learning_rate=self.args.learning_rate,
            warmup_steps=2,
        )
        config = SearchConfig(
            budget=BUDGET, space=SPACE, candidates=self.args.candidates, score_blocks=self.blocks, retrain=retrain
        )
        with self.clocked():
            return search.run(self.context, self.parent, self.scores(), self.data, config, prune=self.pruning())

    @contextmanager
    def clocked(self) -> Iterator[None]:
        """Add the CPU seconds of the block to those of earlier runs, unless the search existed already."""
        started, before = time.process_time(), self._made()
        is_done = False
        try:
            yield
            is_done = True
        finally:
            if not is_done or self._made() != before:
                self.cpu_path.write_text(json.dumps({"search": self.cpu_seconds + time.process_time() - started}))

    def _made(self) -> list[str]:
        return [artifact.key for artifact in self.context.workspace.artifacts(search.STAGE)]

    @property
    def cpu_path(self) -> Path:
        return self.context.workspace.root / "cpu-seconds.json"

    @property
    def cpu_seconds(self) -> float:
        """CPU time of the search over all runs that it took."""
        return json.loads(self.cpu_path.read_text())["search"] if self.cpu_path.is_file() else 0.0

    def fast(self) -> Artifact:
        """The search without retraining, over shapes within the latency limit."""
        config = SearchConfig(
            budget=BUDGET,
            space=FAST_SPACE,
            candidates=self.args.fast_candidates,
            score_blocks=self.blocks,
            constraints=({"kind": "latency", **LATENCY, "at_most": self.args.latency},),
            retrain=None,
        )
        return search.run(self.context, self.parent, self.scores(), self.data, config)

    def timing(self, shape: Mapping[str, int]) -> Timing:
        """Time of a shape under LATENCY, from the cache if the search measured it."""
        return LatencyProbe(self.builder(Ranking()))(self.parent.shape.resize(**shape), Workload(**LATENCY))

    def distilled(self, shape: Mapping[str, int], seed: int) -> dict[str, float]:
        """Held-out loss and KL to the teacher after full distillation."""
        sizes = {axis: size for axis, size in shape.items() if size != self.parent.shape.sizes[axis]}
        child = prune.run(self.context, self.parent, self.pruning(shape=sizes), scores=self.scores(), data=self.data)
        config = DistillConfig(
            tokens=self.args.tokens,
            batch_size=16,
            micro_batch_size=16,
            learning_rate=self.args.learning_rate,
            min_learning_rate=self.args.learning_rate / 10,
            warmup_steps=5,
            eval_every=10**6,
            eval_blocks=self.args.final_blocks,
            save_every=10,
            seed=seed,
        )
        after = distill.run(self.context, self.parent, child.path, self.data, config).result(TrainingResult).after
        assert after, "training ends with an evaluation"
        assert after.kl is not None, "the evaluation compares with the teacher"
        print(sizes, seed, after, flush=True)
        return {"loss": after.loss, "kl": after.kl}


@dataclass(frozen=True)
class Results:
    """Results so far."""

    study: SearchStudy
    search: Artifact
    fast: Artifact | None
    """The search with a latency limit, if there is one."""
    shapes: Mapping[str, Mapping[str, int]]
    """Shapes that are distilled in full."""
    finals: Finals

    @cached_property
    def found(self) -> SearchResult:
        """Result of the search that retrains."""
        return self.search.result(SearchResult)

    @property
    def rows(self) -> Sequence[CandidateResult]:
        """Its candidates, best first."""
        return self.found.candidates

    def write(self) -> None:
        """Replace this run's column, section and figure of the page."""
        output: Path = self.study.args.output
        before = output.read_text() if output.is_file() else SKELETON
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(with_section(with_column(before, self.column, facts(self)), self.column, section(self)))
        output.with_name(self.picture).write_text(curves(self.found))

    @property
    def column(self) -> str:
        """Name of the column and the section of the page that this run writes."""
        return COLUMNS[self.study.args.repair != "none"]

    @property
    def picture(self) -> str:
        """File name of the figure."""
        return f"{self.study.args.output.stem}-{self.column}.svg"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"), help="directory of workspaces")
    parser.add_argument("--candidates", type=int, default=32, help="number of shapes that are scored zero-shot")
    parser.add_argument(
        "--fast-candidates", type=int, default=4, help="number of shapes that the search with a latency limit scores"
    )
    parser.add_argument("--latency", default="60%", help="latency limit as a share of the parent's")
    parser.add_argument("--top", type=int, default=8, help="number of shapes that are retrained")
    parser.add_argument("--blocks", type=int, default=32, help="number of validation blocks of a score")
    parser.add_argument(
        "--final-blocks", type=int, default=96, help="number of validation blocks after full distillation"
    )
    parser.add_argument("--retrain-tokens", type=int, default=131_072, help="tokens of a retraining")
    parser.add_argument("--tokens", type=int, default=163_840, help="tokens of a full distillation")
    parser.add_argument(
        "--seeds", type=int, default=3, help="number of full distillations, each with another order of the data"
    )
    parser.add_argument("--repair", choices=get_args(RepairName), default="none", help="repair of pruned children")
    parser.add_argument(
        "--learning-rate",
        type=float,
        default=1e-3,
        help="learning rate of all training; repaired children need a lower one",
    )
    parser.add_argument(
        "--search-only", action="store_true", help="skip the search with a latency limit and full distillation"
    )
    parser.add_argument("--output", type=Path, default=Path("docs/results/search.md"), help="page to write")
    args = parser.parse_args()
    workspace = Workspace(args.runs_dir / "bench")
    parent = open_source_model(workspace.require("teacher", "make bench-teacher").path)
    own = Workspace(args.runs_dir / "search-study")  # other studies may have locked the teacher's
    with own.lock():
        study = SearchStudy(
            folder="search-study",
            context=Context(own),
            parent=parent,
            data=bench_data(None),
            samples=128,
            blocks=args.blocks,
            args=args,
        )
        found = study.found()
        rows = found.result(SearchResult).candidates
        shapes = {
            "search's winner": rows[0].shape,
            "best zero-shot": min(rows, key=lambda row: row.zero_shot).shape,
            "scaled evenly": dict(parent.shape.prunable) | EVEN,
        }
        fast = None if args.search_only or args.repair != "none" else study.fast()
        results = Results(study, found, fast, shapes, {name: [] for name in shapes})
        results.write()
        for seed in range(0 if args.search_only else args.seeds):
            for name, shape in shapes.items():
                results.finals[name].append(study.distilled(shape, seed))
            results.write()


def curves(found: SearchResult) -> str:
    """SVG file of the loss of every retrained candidate at each rung, the winner in another color."""
    lines = tuple(
        Line(
            list(zip((0, *found.rung_tokens), (row.zero_shot, *row.rungs), strict=False)),
            2 if i else 1,
            style="faint" if i else "line",
        )
        for i, row in enumerate(found.candidates)
        if row.rungs
    )
    svg = plots.svg(Plot("halving", Lines(lines, TOKENS, LOSS), "")).replace("currentColor", "#334155")
    for i, color in enumerate(plots.SERIES):
        svg = svg.replace(f"var(--series-{i})", color)
    names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" font-family="sans-serif"'
    return svg.replace("<svg ", f'<svg {names} style="background:#fff" ', 1) + "\n"


def facts(results: Results) -> dict[str, str]:
    """Values of this run's column by the label of the row."""
    study, rows = results.study, results.rows
    return {
        "candidates scored zero-shot": str(len(rows)),
        "candidates retrained": str(study.args.top),
        "CPU minutes of the search": f"{study.cpu_seconds / 60:.1f}",
        **(dict(final_figures(results)) if any(results.finals.values()) else {}),
        **dict(stability(results)),
    }


def final_figures(results: Results) -> Iterator[tuple[str, str]]:
    """Rows on losses after full distillation, and on the winner's differences by seed."""
    for name, shape in results.shapes.items():
        count = results.study.parent.shape.resize(**shape).parameters("non_embedding")
        yield f"{name}: shape", spell(shape)
        yield f"{name}: parameters without embeddings", f"{count:,}"
        for figure, title in (("loss", "loss"), ("kl", "KL to the teacher")):
            yield f"{name}: {title}", mean_and_deviation([one[figure] for one in results.finals[name]], "{:.4f}")
    first, *others = results.finals.values()
    for name, other in zip(list(results.finals)[1:], others, strict=True):
        gaps = [a["loss"] - b["loss"] for a, b in zip(first, other, strict=True)]
        differences = ", ".join(f"{gap:+.4f}" for gap in gaps)
        yield f"winner - {name}, loss by seed", differences if any(gaps) else "the same shape"


def stability(results: Results) -> Iterator[tuple[str, str]]:
    """Rows on Kendall's tau between successive rankings, with the number of candidates."""
    rows = results.rows
    tau = kendall_tau([-row.costs["log_retained"] for row in rows], [row.zero_shot for row in rows])
    yield "Kendall's tau, importance kept to zero-shot", f"{tau:+.2f} ({len(rows)} candidates)"
    for row in next(iter(results.found.winners.values())).stability:
        yield f"Kendall's tau, {row.before} to {row.after}", f"{row.tau:+.2f} ({row.candidates} candidates)"


def with_column(page: str, column: str, values: Mapping[str, str]) -> str:
    """Page with one column of its first table replaced."""
    lines = page.splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("|---")) + 1
    last = next(i for i in range(first, len(lines)) if not lines[i].startswith("|"))
    table = {
        label: cells
        for label, *cells in ([c.strip() for c in line.strip("|").split("|")] for line in lines[first:last])
    }
    place = COLUMNS.index(column)
    for cells in table.values():
        cells[place] = "-"
    for label, value in values.items():
        table.setdefault(label, ["-", "-"])[place] = value
    shown = [f"| {' | '.join((label, *cells))} |" for label, cells in table.items() if cells != ["-", "-"]]
    return "\n".join([*lines[:first], *shown, *lines[last:]]) + "\n"


def with_section(page: str, column: str, lines: Sequence[str]) -> str:
    """Page with the section of one column replaced, or added at the end."""
    head, *sections = page.rstrip("\n").split("\n## ")
    title = f"Candidates, {column}"
    kept = {text.partition("\n")[0]: text for text in sections} | {title: "\n".join([title, "", *lines]).rstrip()}
    return "\n\n## ".join(text.rstrip() for text in (head, *kept.values())) + "\n"


def section(results: Results) -> Iterator[str]:
    """Markdown lines of this run's section, below its heading."""
    yield from candidate_table(results.rows)
    yield from ("", f"![loss of every retrained candidate, rung by rung]({results.picture})", "")
    yield from latency(results.study, results.rows, results.fast) if results.fast else ()


def candidate_table(rows: Sequence[CandidateResult]) -> Iterator[str]:
    """Table of candidates with their scores at each rung."""
    rungs = max(len(row.rungs) for row in rows)
    yield (
        "| | shape | parameters | importance kept | zero-shot | "
        + " | ".join(f"rung {i + 1}" for i in range(rungs))
        + " |"
    )
    yield "|---|---|---|---|---|" + "---|" * rungs
    for i, row in enumerate(rows):
        reached = [*map(significant, row.rungs), *[""] * (rungs - len(row.rungs))]
        retained = f"{math.exp(row.costs['log_retained']):.1%}"
        cells = [
            str(i + 1),
            spell(row.shape),
            f"{row.parameters:,}",
            retained,
            significant(row.zero_shot),
            *reached,
        ]
        yield "| " + " | ".join(cells) + " |"


def latency(study: SearchStudy, rows: Sequence[CandidateResult], fast: Artifact) -> Iterator[str]:
    """Markdown lines on the search with a latency limit."""
    yield from ("### With a latency limit", "")
    quick = fast.result(SearchResult).candidates
    free = min(rows, key=lambda row: row.zero_shot)
    cached, limit = LATENCY["length"], f"at most {study.args.latency} of the parent's time"
    yield f"Decoding with {cached} tokens in the cache, {limit}; candidate and parent timed in alternation on"
    yield "one CPU thread, medians; the grid also has 4 layers. The choice by zero-shot loss:"
    yield ""
    yield "| | shape | zero-shot loss | of the parent's time |"
    yield "|---|---|---|---|"
    for name, row in (("without the constraint", free), ("with it", quick[0])):
        timing = study.timing(row.shape)
        share = timing.seconds / timing.parent_seconds
        yield f"| {name} | {spell(row.shape)} | {significant(row.zero_shot)} | {share:.0%} |"
    yield ""
    with_it, without = (statistics.mean(row.shape["layer"] for row in some) for some in (quick, rows))
    averages = f"have {with_it:.1f} layers on average, shapes scored without it ({len(rows)}) {without:.1f}"
    averages = f"have {with_it:.1f} layers on average, shapes scored without it ({len(rows)}) {without:.1f}"
    yield f"Shapes within the limit ({len(quick)}) {averages}. Every time is measured once"
    yield "and cached; on a busy machine, as here, a shape's share varies by some percent between measurements."


def spell(shape: Mapping[str, int]) -> str:
    """Sizes of a shape in one line."""
    return ", ".join(f"{axis} {shape[axis]}" for axis in ("layer", "hidden", "head", "ffn"))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
