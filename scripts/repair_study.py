"""What a repair is worth: the gap it closes before any training, and the tokens of distillation it saves.

    python scripts/bench_teacher.py && python scripts/bench_teacher.py --name prose --text book.txt --hidden 128
    python scripts/repair_study.py --names bench prose --text prose=book.txt

For every teacher, share of non-embedding parameters kept (an even cut of hidden and ffn) and seed, the same cut is
mended in every way and measured on held-out text; then the plain cut and the best repair are distilled alike. A figure
that was measured is kept under runs/NAME/repair-study, so that a stopped study goes on. Writes docs/results/repair.md.
"""

import argparse
import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from bench_teacher import bench_data

from minitron_cli import io
from minitron_cli.checkpoint import hf
from minitron_cli.checkpoint.workspace import Workspace
from minitron_cli.data.batches import sample_ids
from minitron_cli.data.pack import Blocks
from minitron_cli.data.sources import DataConfig
from minitron_cli.distill.config import DistillConfig
from minitron_cli.distill.loop import train
from minitron_cli.evaluate.perplexity import kl_to_parent, perplexity
from minitron_cli.importance.config import ImportanceConfig
from minitron_cli.search.feasible import feasible
from minitron_cli.stages import importance, repair
from minitron_cli.stages.cut import Cutter, read_scores
from minitron_cli.stages.parent import Parent, open_parent
from minitron_cli.stages.produce import Context
from minitron_cli.stages.tokens import blocks_of
from minitron_cli.trim.plan import PrunePlan
from minitron_cli.trim.spec import Budget, Ranking

COMBINATIONS: dict[str, frozenset[str]] = {
    "plain": frozenset(),
    "rescale": frozenset({"rescale"}),
    "least squares": frozenset({"least_squares"}),
    "rotate": frozenset({"rotate"}),
    "rotate + rescale": frozenset({"rotate", "rescale"}),
    "rotate + least squares": frozenset({"rotate", "least_squares"}),
    "all": frozenset({"rotate", "least_squares", "rescale"}),
}
DISTILLED = ("plain", "all")
Figures = dict[str, Any]


@dataclass(frozen=True)
class Study:
    """One teacher's part of the grid."""

    name: str
    context: Context
    parent: Parent
    data: DataConfig
    samples: int
    blocks: int
    tokens: int

    @cached_property
    def teacher(self) -> Any:
        return hf.load_model(self.parent.path, dtype="float32")

    @cached_property
    def train(self) -> Blocks:
        return blocks_of(self.context, self.data, "train", self.parent.path)

    @cached_property
    def validation(self) -> Blocks:
        return blocks_of(self.context, self.data, "validation", self.parent.path)

    @property
    def directory(self) -> Path:
        """Of this teacher and so many samples."""
        return self.context.workspace.root / "repair-study" / f"{self.parent.fingerprint[:8]}-{self.samples}"

    def remembered(self, name: str, compute: Callable[[], Figures]) -> Figures:
        path = self.directory / f"{name}-{self.blocks}.json"
        if not path.is_file():
            io.make_dirs(path.parent)
            io.replace(path, io.pretty_json(compute()))
        return json.loads(path.read_text())

    def parent_loss(self) -> float:
        found = self.remembered("parent", lambda: {"loss": self._loss(self.teacher)})
        return found["loss"]

    def cell(self, ratio: float, seed: int) -> "Cell":
        config = ImportanceConfig(samples=self.samples, seed=seed, layer_removal=False)
        scores = read_scores(importance.run(self.context, self.parent, self.data, config), self.parent)
        budget = Budget(target=int(ratio * self.parent.shape.parameters("non_embedding")), count="non_embedding")
        shape = feasible(self.parent.shape, {"hidden": (), "ffn": ()}, budget)[0].shape
        cutter = Cutter(self.context, self.parent, scores, Ranking())
        return Cell(self, cutter, cutter.plan(shape), ratio, seed)

    def _loss(self, model: Any) -> float:
        return perplexity(model, self.validation, max_blocks=self.blocks).loss_nats

    def measured(self, model: Any) -> Figures:
        kl = kl_to_parent(model, self.teacher, self.validation, max_blocks=self.blocks).kl_nats
        return {"loss": self._loss(model), "kl": kl}


@dataclass(frozen=True)
class Cell:
    """One cut."""

    study: Study
    cutter: Cutter
    plan: PrunePlan
    ratio: float
    seed: int

    @property
    def name(self) -> str:
        return f"{self.ratio}-{self.seed}"

    @cached_property
    def chosen(self) -> repair.Chosen:
        blocks = self.study.train
        return repair.Chosen(blocks, sample_ids(self.seed, 0, self.study.samples, len(blocks)))

    @cached_property
    def findings(self) -> repair.Findings:
        scratch = self.study.directory / f"findings-{self.name}"
        every = COMBINATIONS["all"]
        return repair.find(self.cutter, self.plan, every, self.chosen, scratch, model=self.study.teacher)

    def mended(self, combination: str) -> tuple[PrunePlan, dict[str, float]]:
        repairs = COMBINATIONS[combination]
        if not repairs:
            return self.plan, {}
        plan = repair.mended(self.plan, self.findings, repairs, self.study.parent)
        if "rescale" not in repairs:
            return plan, {}
        few = repair.Chosen(self.study.train, self.chosen.ids[: repair.KL_BLOCKS])
        return repair.rescaled(self.cutter, plan, self.findings, self.study.teacher, few)

    def before_training(self, combination: str) -> Figures:
        def compute() -> Figures:
            plan, strengths = self.mended(combination)
            model = self.cutter.model(plan)
            figures = self.study.measured(model) | {"strengths": strengths, "sizes": dict(plan.child.sizes)}
            return figures | {"int8": self.study.measured(to_int8_(model))}

        return self.study.remembered(f"{self.name}-{combination.replace(' ', '')}", compute)

    def distilled(self, combination: str) -> Figures:
        tokens = self.study.tokens
        config = DistillConfig(
            tokens=tokens,
            batch_size=8,
            micro_batch_size=8,
            learning_rate=1e-3,
            min_learning_rate=1e-4,
            warmup_steps=20,
            eval_every=max(1, tokens // (40 * 8 * self.study.train.sequence_length)),
            eval_blocks=self.study.blocks,
            save_every=50,
            seed=self.seed,
        )
        name = f"distilled-{tokens}-{self.name}-{combination.replace(' ', '')}"

        def compute() -> Figures:
            student = self.cutter.model(self.mended(combination)[0])
            scratch = self.study.directory / name
            result = train(student, self.study.teacher, self.study.train, self.study.validation, config, scratch)
            io.remove_tree(scratch)
            return {"curve": result.validation}

        return self.study.remembered(name, compute)


@torch.no_grad()
def to_int8_(model: Any) -> Any:
    """Every matrix of the decoder layers rounded to the nearest of 255 steps per output channel."""
    for module in model.get_decoder().layers.modules():
        if isinstance(module, torch.nn.Linear):
            step = module.weight.abs().amax(dim=1, keepdim=True).clamp_min(1e-12) / 127
            module.weight.copy_((module.weight / step).round() * step)
    return model


def closed(parent: float, plain: float, mended: float) -> float:
    """Share of the gap to the parent that is gone."""
    return (plain - mended) / (plain - parent)


def tokens_to_reach(curve: Sequence[dict[str, float]], loss: float) -> float:
    """Tokens after which a curve is at or below a loss, between two evaluations in proportion."""
    before = None
    for point in curve:
        if point["loss"] <= loss:
            if before is None:
                return 0.0
            share = (before["loss"] - loss) / (before["loss"] - point["loss"])
            return before["tokens"] + share * (point["tokens"] - before["tokens"])
        before = point
    return float("inf")


def spread(values: Sequence[float], form: str = "{:.3f}") -> str:
    """Mean and, of several, half the 95 % interval by Student's t."""
    mean = form.format(statistics.mean(values))
    if len(values) < 2:
        return mean
    t = {2: 12.71, 3: 4.303, 4: 3.182, 5: 2.776}.get(len(values), 2.0)
    return f"{mean} ± {form.format(t * statistics.stdev(values) / len(values) ** 0.5)}"


def percent(values: Sequence[float]) -> str:
    return spread([100 * value for value in values], "{:.0f}") + " %"


def tables(study: Study, ratios: Sequence[float], seeds: int, distil: bool) -> Iterator[str]:
    parent = study.parent_loss()
    yield from (
        f"## {study.name}: {study.parent.shape.parameters():,} parameters, loss {parent:.3f}",
        "",
        "| kept | repair | loss | KL | loss gap closed | KL gap closed | int8 KL | strengths |",
        "|---|---|---|---|---|---|---|---|",
    )
    cells = {ratio: [study.cell(ratio, seed) for seed in range(seeds)] for ratio in ratios}
    for ratio, of_ratio in cells.items():
        plain = [cell.before_training("plain") for cell in of_ratio]
        sizes = plain[0]["sizes"]
        for combination in COMBINATIONS:
            found = [cell.before_training(combination) for cell in of_ratio]
            pairs = list(zip(plain, found, strict=True))
            row = [
                f"{ratio} (hidden {sizes['hidden']}, ffn {sizes['ffn']})",
                combination,
                spread([f["loss"] for f in found]),
                spread([f["kl"] for f in found]),
                percent([closed(parent, p["loss"], f["loss"]) for p, f in pairs]),
                percent([closed(0.0, p["kl"], f["kl"]) for p, f in pairs]),
                spread([f["int8"]["kl"] for f in found]),
                " ".join(f"{strength:g}" for strength in found[0]["strengths"].values()),
            ]
            print(study.name, *row, flush=True)
            yield "| " + " | ".join(row) + " |"
    yield ""
    if distil:
        yield from _distillation(cells)


def _distillation(cells: dict[float, list[Cell]]) -> Iterator[str]:
    yield "| kept | plain, distilled: loss | mended, distilled: loss | tokens to the plain cut's final loss | fewer |"
    yield "|---|---|---|---|---|"
    for ratio, of_ratio in cells.items():
        curves = {name: [cell.distilled(name)["curve"] for cell in of_ratio] for name in DISTILLED}
        last = {name: [curve[-1]["loss"] for curve in of_name] for name, of_name in curves.items()}
        needed = [tokens_to_reach(c, loss) for c, loss in zip(curves["all"], last["plain"], strict=True)]
        total = curves["plain"][0][-1]["tokens"]
        fewer = f"{total / max(needed):.1f} x" if max(needed) > 0 else "all of them"
        row = [
            f"{ratio}",
            spread(last["plain"]),
            spread(last["all"]),
            f"{spread(needed, '{:,.0f}')} of {total:,}",
            fewer,
        ]
        print(*row, flush=True)
        yield "| " + " | ".join(row) + " |"
    yield ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"))
    parser.add_argument("--names", nargs="+", default=["bench"], help="workspaces with a teacher")
    parser.add_argument("--text", action="append", default=[], metavar="NAME=FILE", help="a teacher's own text")
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.75, 0.5, 0.35])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--blocks", type=int, default=128, help="held-out blocks that are measured on")
    parser.add_argument("--tokens", type=int, default=400_000, help="of each distillation; 0 for none")
    parser.add_argument("--output", type=Path, default=Path("docs/results/repair.md"))
    args = parser.parse_args()
    texts: dict[str, list[str]] = {}
    for name, _, file in (text.partition("=") for text in args.text):
        texts.setdefault(name, []).append(file)
    lines = [*HEAD]
    for name in args.names:
        workspace = Workspace(args.runs_dir / name)
        teacher = workspace.require("teacher", f"python scripts/bench_teacher.py --name {name}")
        with workspace.lock():
            study = Study(
                name,
                Context(workspace),
                open_parent(teacher.path),
                bench_data(texts.get(name)),
                args.samples,
                args.blocks,
                args.tokens,
            )
            lines += tables(study, args.ratios, args.seeds, args.tokens > 0)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text("\n".join(lines).rstrip() + "\n")
    print(args.output.read_text())


HEAD = (
    "# What a repair is worth",
    "",
    "Even cuts of hidden and ffn to a share of the non-embedding parameters, mended without training, measured on",
    "held-out text (nats per token; KL to the parent). Mean and 95 % interval over seeds, which draw other calibration",
    "samples. int8: every matrix of the decoder layers rounded to nearest per output channel. Strengths: the powers of",
    "the rescale that calibration chose for each kind of norm. Distillation: forward KL, AdamW 1e-3 to 1e-4, 8 blocks",
    "a step; tokens until the mended cut is at the loss that the plain cut ends with.",
    "",
    "Regenerate: `python scripts/repair_study.py` (its head says how the teachers are made)",
    "",
)

if __name__ == "__main__":
    main()
