r"""Does a search that retrains its candidates find a better shape than scaling evenly, or than zero-shot scores alone?

    python scripts/bench_teacher.py && python scripts/search_study.py

Searches the bench teacher at half of its parameters without embeddings, over a grid that the evenly scaled shape is not
in; then trains three shapes in full, with three seeds each: the search's winner, the one with the best zero-shot score,
and the evenly scaled one. A further search, zero-shot, has to keep a latency that is measured here. Whatever is true is
written to docs/results/search.md. What was stopped continues.

    python scripts/search_study.py --candidates 24 --top 6 --repair auto --learning-rate 4e-4 \
        --output docs/results/search-mended.md

does the same with cuts that are mended, in the search too, without the latency, which knows no weights.
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from bench_teacher import bench_data

from minitron_cli.checkpoint.artifact import Artifact
from minitron_cli.checkpoint.workspace import Workspace
from minitron_cli.cli.tables import number
from minitron_cli.distill.config import DistillConfig
from minitron_cli.importance.config import ImportanceConfig
from minitron_cli.report import plots
from minitron_cli.search.config import Retrain, SearchConfig
from minitron_cli.search.constraints.base import Timing, Workload
from minitron_cli.search.rank import kendall_tau
from minitron_cli.stages import candidates, distill, importance, prune, search
from minitron_cli.stages.cut import Cutter, read_scores
from minitron_cli.stages.parent import Parent, open_parent
from minitron_cli.stages.produce import Context
from minitron_cli.stages.stopwatch import Stopwatch
from minitron_cli.trim.spec import Budget, PruneConfig, Ranking, RepairName

SPACE = {
    "layer": (5, 6, 7, 8),
    "hidden": (112, 128, 144, 160, 176, 192),
    "head": (4, 6),
    "ffn": tuple(range(192, 513, 32)),
}
FAST_SPACE = {**SPACE, "layer": (4, 5, 6, 7, 8)}  # time goes with layers here, and five of eight take 63 %
EVEN = {"hidden": 126, "ffn": 344}  # two thirds of both, as far as six heads divide: half of the parameters
BUDGET = Budget(target="50%", count="non_embedding")
LATENCY = {"phase": "decode", "batch": 1, "length": 128, "repeats": 9}
NOT_YET = ("## After full distillation", "", "Not measured yet: run the command to its end; it continues.", "")
PLAIN = "Cuts are plain: `repair: none`."
MENDED = (
    "Cuts are mended before they are scored and trained ([repair.md](repair.md)); plain ones: [search.md](search.md)."
)
Finals = Mapping[str, list[dict[str, float]]]  # shape's name -> loss and KL of each seed
SVG_COLOURS = ("#2563eb", "#c2410c", "#0f766e", "#be185d", "#7c3aed", "#64748b")


@dataclass(frozen=True)
class Study:
    context: Context
    parent: Parent
    args: argparse.Namespace

    @property
    def data(self) -> Any:
        return bench_data(None)

    def cut(self, **options: Any) -> PruneConfig:
        return PruneConfig(repair=self.args.repair, **options)

    def scores(self) -> Artifact:
        config = ImportanceConfig(samples=128, layer_removal=False)
        return importance.run(self.context, self.parent, self.data, config)

    def found(self, scores: Artifact) -> Artifact:
        """The search in question."""
        retrain = Retrain(
            top=self.args.top,
            tokens=self.args.retrain_tokens,
            batch_size=16,
            micro_batch_size=16,
            learning_rate=self.args.learning_rate,
            warmup_steps=2,
        )
        config = SearchConfig(
            budget=BUDGET, space=SPACE, candidates=self.args.candidates, score_blocks=self.args.blocks, retrain=retrain
        )
        with self.timed("search"):
            return search.run(self.context, self.parent, scores, self.data, config, cut=self.cut())

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add up the CPU seconds of a part, over all runs that it took."""
        started = time.process_time()
        try:
            yield
        finally:
            spent = self.cpu | {name: self.cpu.get(name, 0.0) + time.process_time() - started}
            self.cpu_path.write_text(json.dumps(spent))

    @property
    def cpu_path(self) -> Path:
        return self.context.workspace.root / "cpu-seconds.json"

    @property
    def cpu(self) -> dict[str, float]:
        return json.loads(self.cpu_path.read_text()) if self.cpu_path.is_file() else {}

    def fast(self, scores: Artifact, share: str) -> Artifact:
        """The same without retraining, of shapes that are fast enough here."""
        config = SearchConfig(
            budget=BUDGET,
            space=FAST_SPACE,
            candidates=self.args.fast_candidates,
            score_blocks=self.args.blocks,
            constraints=({"kind": "latency", **LATENCY, "at_most": share},),
            retrain=None,
        )
        return search.run(self.context, self.parent, scores, self.data, config)

    def timing(self, scores: Artifact, shape: Mapping[str, int]) -> Timing:
        """As the search measured it, or would."""
        cutter = Cutter(self.context, self.parent, read_scores(scores, self.parent), Ranking())
        return Stopwatch(cutter)(self.parent.shape.resize(**shape), Workload(**LATENCY))

    def trained(self, scores: Artifact, shape: Mapping[str, int], seed: int) -> dict[str, float]:
        """Held-out loss and KL to the teacher after full distillation."""
        sizes = {axis: size for axis, size in shape.items() if size != self.parent.shape.sizes[axis]}
        child = prune.run(self.context, self.parent, self.cut(shape=sizes), scores=scores, data=self.data)
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
        after = distill.run(self.context, self.parent, child.path, self.data, config).summary["after"]
        print(sizes, seed, after, flush=True)
        return {name: after[name] for name in ("loss", "kl")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"))
    parser.add_argument("--candidates", type=int, default=32, help="shapes scored zero-shot")
    parser.add_argument("--fast-candidates", type=int, default=4, help="of the search with a latency")
    parser.add_argument("--latency", default="60%", help="of the parent's, at most")
    parser.add_argument("--top", type=int, default=8, help="shapes retrained")
    parser.add_argument("--blocks", type=int, default=32, help="validation blocks of a score")
    parser.add_argument("--final-blocks", type=int, default=96, help="validation blocks of the last measure")
    parser.add_argument("--retrain-tokens", type=int, default=131_072)
    parser.add_argument("--tokens", type=int, default=163_840, help="of a full distillation")
    parser.add_argument("--seeds", type=int, default=3, help="orders of the data in full distillation")
    parser.add_argument("--repair", choices=get_args(RepairName), default="none", help="how cuts are mended")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="of all retraining; mended cuts want less")
    parser.add_argument("--search-only", action="store_true", help="no latency, no full distillation")
    parser.add_argument("--output", type=Path, default=Path("docs/results/search.md"))
    args = parser.parse_args()
    own_options = {name: value for name, value in vars(args).items() if value != parser.get_default(name)}
    options = [f"--{name.replace('_', '-')} {value}" for name, value in own_options.items() if name != "runs_dir"]
    args.command = " ".join(["python scripts/search_study.py", *options])
    workspace = Workspace(args.runs_dir / "bench")
    parent = open_parent(workspace.require("teacher", "make bench-teacher").path)
    own = Workspace(args.runs_dir / "search-study")  # others may be at work in the teacher's
    with own.lock():
        study = Study(Context(own), parent, args)
        scores = study.scores()
        found = study.found(scores)
        rows = candidates.read(found)["candidates"]
        shapes = {
            "search's winner": rows[0]["shape"],
            "best zero-shot": min(rows, key=lambda row: row["zero_shot"])["shape"],
            "scaled evenly": dict(parent.shape.prunable) | EVEN,
        }
        finals: dict[str, list[dict[str, float]]] = {name: [] for name in shapes}
        fast = None if args.search_only or args.repair != "none" else study.fast(scores, args.latency)
        tell(study, scores, found, fast, shapes, finals)
        for seed in range(0 if args.search_only else args.seeds):
            for name, shape in shapes.items():
                finals[name].append(study.trained(scores, shape, seed))
            tell(study, scores, found, fast, shapes, finals)


def tell(
    study: Study,
    scores: Artifact,
    found: Artifact,
    fast: Artifact | None,
    shapes: Mapping[str, Any],
    finals: Finals,
) -> None:
    """Write what is known so far."""
    write(study.args.output, page(study, scores, found, fast, shapes, finals), curves(found))


def write(output: Path, text: str, svg: str) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(text)
    output.with_suffix(".svg").write_text(svg)
    print(text)


def curves(found: Artifact) -> str:
    """The rungs as a picture that stands alone."""
    told = candidates.read(found)
    lines = [
        ((0, *told["rung_tokens"][: len(row["rungs"])]), (row["zero_shot"], *row["rungs"]), i == 0)
        for i, row in enumerate(told["candidates"])
        if row["rungs"]
    ]
    svg = plots.halving_curves("halving", lines, "loss (nats)").replace("currentColor", "#334155")
    for i, colour in enumerate(SVG_COLOURS):
        svg = svg.replace(f"var(--series-{i})", colour)
    names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" font-family="sans-serif"'
    return svg.replace("<svg ", f'<svg {names} style="background:#fff" ', 1) + "\n"


def page(
    study: Study,
    scores: Artifact,
    found: Artifact,
    fast: Artifact | None,
    shapes: Mapping[str, Any],
    finals: Finals,
) -> str:
    parent, args = study.parent.shape, study.args
    told = candidates.read(found)
    rows = told["candidates"]
    lines = [
        "# A search that retrains its candidates",
        "",
        f"The teacher of `make bench-teacher` ({parent.parameters():,} parameters), to 50 % ± 5 % of its",
        f"{parent.parameters('non_embedding'):,} parameters without embeddings, by depth and width together. "
        f"{found.summary['feasible']} shapes of the grid are",
        f"feasible; {len(rows)} were scored on {args.blocks} held-out blocks, {args.top} retrained on "
        f"{' / '.join(f'{n:,}' for n in told['rung_tokens'])} tokens. The",
        f"evenly scaled shape is not in the grid. The search took {study.cpu['search'] / 60:.1f} minutes of one CPU "
        "thread.",
        "",
        MENDED if args.repair != "none" else PLAIN,
        "",
        f"Regenerate: `make bench-teacher && {args.command}`",
        "",
        *(after_distillation(study, shapes, finals) if any(finals.values()) else NOT_YET),
        "## The candidates",
        "",
        *candidate_table(rows),
        "",
        f"![loss of every retrained candidate, rung by rung]({args.output.stem}.svg)",
        "",
        "## How stable the order is",
        "",
        *stability(found, rows),
        *(latency(study, scores, rows, fast) if fast else ()),
    ]
    return "\n".join(lines) + "\n"


def after_distillation(study: Study, shapes: Mapping[str, Any], finals: Finals) -> Iterator[str]:
    args, seeds = study.args, len(next(iter(finals.values())))
    yield from ("## After full distillation", "")
    yield f"{args.tokens:,} tokens, {args.final_blocks} held-out blocks; mean ± standard deviation over {seeds} seeds"
    yield from ("(another order of the data).", "")
    yield from final_table(study, shapes, finals)
    yield ""
    yield from paired(finals)
    yield ""


def final_table(study: Study, shapes: Mapping[str, Any], finals: Finals) -> Iterator[str]:
    yield "| shape | | without embeddings | loss | KL to the teacher |"
    yield "|---|---|---|---|---|"
    for name, shape in shapes.items():
        count = study.parent.shape.resize(**shape).parameters("non_embedding")
        loss, kl = (spread([one[figure] for one in finals[name]]) for figure in ("loss", "kl"))
        yield f"| {name} | {spelled(shape)} | {count:,} | {loss} | {kl} |"


def paired(finals: Finals) -> Iterator[str]:
    first, *others = finals
    for other in others:
        gaps = [a["loss"] - b["loss"] for a, b in zip(finals[first], finals[other], strict=True)]
        if any(gaps):
            text = ", ".join(f"{gap:+.4f}" for gap in gaps)
            yield f"The {first} against {other}, seed by seed: {text} nats (negative: the {first} is better)."
        else:
            yield f"The {first} and {other} are one shape."


def candidate_table(rows: list[dict[str, Any]]) -> Iterator[str]:
    rungs = max(len(row["rungs"]) for row in rows)
    yield (
        "| | shape | parameters | importance kept | zero-shot | "
        + " | ".join(f"rung {i + 1}" for i in range(rungs))
        + " |"
    )
    yield "|---|---|---|---|---|" + "---|" * rungs
    for i, row in enumerate(rows):
        reached = [*map(number, row["rungs"]), *[""] * (rungs - len(row["rungs"]))]
        mass = f"{math.exp(row['costs']['mass']):.1%}"
        cells = [str(i + 1), spelled(row["shape"]), f"{row['parameters']:,}", mass, number(row["zero_shot"]), *reached]
        yield "| " + " | ".join(cells) + " |"


def stability(found: Artifact, rows: list[dict[str, Any]]) -> Iterator[str]:
    yield "| from | to | candidates | Kendall's tau |"
    yield "|---|---|---|---|"
    mass = kendall_tau([-row["costs"]["mass"] for row in rows], [row["zero_shot"] for row in rows])
    yield f"| importance kept | zero-shot | {len(rows)} | {mass:+.2f} |"
    for row in next(iter(found.summary["winners"].values()))["stability"]:
        yield f"| {row['from']} | {row['to']} | {row['candidates']} | {row['tau']:+.2f} |"


def latency(study: Study, scores: Artifact, rows: list[dict[str, Any]], fast: Artifact) -> Iterator[str]:
    yield from ("", "## With a latency to keep", "")
    quick = candidates.read(fast)["candidates"]
    free = min(rows, key=lambda row: row["zero_shot"])
    yield f"One token more at a time, {LATENCY['length']} in the cache, at most {study.args.latency} of the parent's"
    yield "time; candidate and parent timed in turn on this CPU, one thread, medians; the grid with 4 layers too. By"
    yield "zero-shot loss the choice is:"
    yield ""
    yield "| | shape | zero-shot loss | of the parent's time |"
    yield "|---|---|---|---|"
    for name, row in (("without the constraint", free), ("with it", quick[0])):
        timing = study.timing(scores, row["shape"])
        share = timing.seconds / timing.parent_seconds
        yield f"| {name} | {spelled(row['shape'])} | {number(row['zero_shot'])} | {share:.0%} |"
    yield ""
    with_it, without = (statistics.mean(row["shape"]["layer"] for row in some) for some in (quick, rows))
    yield f"Shapes that keep it ({len(quick)}) have {with_it:.1f} layers on average, those scored without it"
    yield f"({len(rows)}) {without:.1f}. Every time is measured once and cached; where the machine is busy with other"
    yield "work, as here, a shape's share moves by some percent from one measurement to the next."


def spelled(shape: Mapping[str, int]) -> str:
    return ", ".join(f"{axis} {shape[axis]}" for axis in ("layer", "hidden", "head", "ffn"))


def spread(values: list[float]) -> str:
    error = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.4f}{error}"


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
