"""What a repair is worth: the gap it closes before any training, and the tokens of distillation it saves.

    python scripts/bench_teacher.py
    TEXT="--text a.txt b.txt --validation c.txt"
    python scripts/bench_teacher.py --name prose --hidden 128 --tokens 2000000 $TEXT
    python scripts/bench_teacher.py --name tied --tied --hidden 128 --tokens 2000000 $TEXT
    python scripts/repair_study.py --names bench prose tied tied:untied $TEXT --text-name "my prose"

Text, validation and its name are those of all teachers but bench. `tied:untied` is the tied teacher with a head of its
own; any other word after a colon names a directory of the workspace (uneven_teacher.py). The second and the third see
so many tokens because their validation loss rises beyond them.

For every teacher, share of non-embedding parameters kept (an even cut of hidden and ffn) and seed, the same cut is
mended in every way that the model allows and measured on held-out text; then, where the head was never tied, the plain
cut and the best repair are distilled alike. A figure that was measured is kept under runs/NAME/repair-study, so that a
stopped study goes on; `--write` makes the page of what there is. Writes docs/results/repair.md and its figures.
"""

import argparse
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import torch
from bench_teacher import bench_data
from matplotlib.ticker import EngFormatter
from studies import Figures, Study, even_cut, picture, spread, write_page
from torch import Tensor

from minitron_cli.artifacts.build import Context
from minitron_cli.artifacts.workspace import Workspace
from minitron_cli.data.batches import Batch, batch, sample_ids
from minitron_cli.distill.config import DistillConfig
from minitron_cli.evaluate.perplexity import perplexity
from minitron_cli.inputs.source_model import open_source_model
from minitron_cli.model.residual_stream import rotation_obstacle
from minitron_cli.prune.child_builder import ChildBuilder
from minitron_cli.prune.config import Ranking
from minitron_cli.prune.plan import PrunePlan
from minitron_cli.repair import closed_form
from minitron_cli.report.plots import SERIES

# B block, T token, V vocab

PLAIN, BEST = "plain", "rotate + least squares"
COMBINATIONS: dict[str, frozenset[str]] = {
    PLAIN: frozenset(),
    BEST: frozenset({"rotate", "least_squares"}),
    "rotate": frozenset({"rotate"}),
    "least squares": frozenset({"least_squares"}),
    "rotate + rescale": frozenset({"rotate", "rescale"}),
    "rescale": frozenset({"rescale"}),
}
SHARES = (0.25, 0.5, 1.0)  # of the plain cut's tokens, that the mended one is distilled with until it is as good
LEARNING_RATES = {PLAIN: (1e-3,), BEST: (2e-4, 6e-4)}  # 1e-3 takes a mended cut away from its parent first


@dataclass(frozen=True, kw_only=True)
class RepairStudy(Study):
    """One teacher's part of the grid."""

    name: str
    trained_on: str
    """Of the teacher: how much of what."""
    tokens: int
    """Of the plain cut's distillation."""
    is_distilled: bool
    may_measure: bool

    @property
    def combinations(self) -> list[str]:
        """Those that the model allows."""
        refused = {"rotate"} if rotation_obstacle(self.parent.shape) else set()
        return [name for name, repairs in COMBINATIONS.items() if not repairs & refused]

    @cached_property
    def held_out(self) -> list[tuple[Batch, Tensor]]:
        """Blocks spread over the held-out text, and what the teacher predicts of them."""
        total = len(self.validation)
        count = min(self.blocks, total)
        ids = [i * total // count for i in range(count)]
        batches = [batch(self.validation, ids[start : start + 8]) for start in range(0, count, 8)]
        return [(b, log_probabilities(self.teacher, b)) for b in batches]

    def found(self, name: str, compute: Callable[[], Figures]) -> Figures | None:
        """What was measured; None if that is still to be done and not asked for."""
        return self.remembered(name, compute) if self.may_measure or self.path_of(name).is_file() else None

    def parent_loss(self) -> float:
        found = self.found("parent", lambda: self.measured(self.teacher))
        return found["loss"] if found else float("nan")

    def parent_loss_while_distilled(self) -> float:
        """On the blocks that the training loop looks at."""

        def compute() -> Figures:
            return {"loss": perplexity(self.teacher, self.validation, max_blocks=self.blocks // 2).loss_nats}

        found = self.found("parent-of-half", compute)
        return found["loss"] if found else float("nan")

    def measured(self, model: Any) -> Figures:
        """Loss and KL to the parent, mean per token that follows another of its document."""
        loss = kl = count = 0.0
        for b, parent_BTV in self.held_out:
            own_BTV = log_probabilities(model, b)
            loss_mask_BT = b.position_ids_BT[:, 1:] != 0
            picked_BT = own_BTV.gather(-1, b.input_ids_BT[:, 1:, None])[..., 0]
            divergence_BT = (parent_BTV.exp() * (parent_BTV - own_BTV)).sum(-1)
            loss -= float(picked_BT[loss_mask_BT].double().sum())
            kl += float(divergence_BT[loss_mask_BT].double().sum())
            count += int(loss_mask_BT.sum())
        return {"loss": loss / count, "kl": kl / count}


@torch.inference_mode()
def log_probabilities(model: Any, b: Batch) -> Tensor:
    logits_BTV = model(input_ids=b.input_ids_BT, position_ids=b.position_ids_BT, use_cache=False).logits
    return logits_BTV[:, :-1].log_softmax(-1)


@dataclass(frozen=True)
class Cell:
    """One cut."""

    study: RepairStudy
    ratio: float
    seed: int

    @property
    def name(self) -> str:
        return f"{self.ratio}-{self.seed}"

    @cached_property
    def builder(self) -> ChildBuilder:
        return self.study.builder(Ranking(), self.seed)

    @cached_property
    def plan(self) -> PrunePlan:
        return self.builder.plan(even_cut(self.study.parent.shape, self.ratio))

    @cached_property
    def fit(self) -> closed_form.ClosedFormRepair:
        blocks = self.study.train
        chosen = closed_form.SampledBlocks(blocks, sample_ids(self.seed, 0, self.study.samples, len(blocks)))
        return closed_form.ClosedFormRepair(
            self.builder, chosen, self.study.directory / f"fit-{self.seed}", self.study.teacher
        )

    def mended(self, combination: str) -> tuple[PrunePlan, dict[str, float]]:
        """What does not depend on the cut is found once a seed."""
        repairs = COMBINATIONS[combination]
        plan = self.fit.repaired(self.plan, repairs, f"{self.ratio}-{combination}")
        if "rescale" not in repairs:
            return plan, {}
        return self.fit.rescaled(plan)

    def before_training(self, combination: str) -> Figures | None:
        def compute() -> Figures:
            plan, strengths = self.mended(combination)
            model = self.builder.model(plan)
            figures = self.study.measured(model) | {"strengths": strengths, "sizes": dict(plan.child.sizes)}
            return figures | {"int8": self.study.measured(to_int8_(model))}

        return self.study.found(f"{self.name}-{combination.replace(' ', '')}", compute)

    def distilled(self, combination: str, rate: float, share: float = 1.0) -> Figures | None:
        tokens = int(share * self.study.tokens)
        batch_tokens = 8 * self.study.train.sequence_length
        config = DistillConfig(
            tokens=tokens,
            batch_size=8,
            micro_batch_size=8,
            learning_rate=rate,
            min_learning_rate=rate / 10,
            warmup_steps=10,
            eval_every=max(1, tokens // (8 * batch_tokens)),
            eval_blocks=self.study.blocks // 2,
            save_every=50,
            seed=self.seed,
        )
        name = f"distilled-{tokens}-{rate:g}-{self.name}-{combination.replace(' ', '')}"

        def compute() -> Figures:
            student = self.builder.model(self.mended(combination)[0])
            return {"curve": self.study.trained(name, student, config).validation}

        return self.study.found(name, compute)

    def parity(self) -> "Parity | None":
        """The plain cut distilled, and the mended one with more and more tokens until it is as good by loss."""
        plain, mended = self.distilled(PLAIN, *LEARNING_RATES[PLAIN]), []
        for share, rate in product(SHARES, LEARNING_RATES[BEST]):
            if plain and (found := self.distilled(BEST, rate, share)):
                mended.append(found["curve"])
                if mended[-1][-1]["loss"] <= plain["curve"][-1]["loss"]:
                    break
        return Parity(plain["curve"], mended) if plain and mended else None


@dataclass(frozen=True)
class Parity:
    """Validation curves."""

    plain: list[dict[str, float]]
    mended: list[list[dict[str, float]]]
    """Each schedule's."""

    @property
    def best(self) -> list[dict[str, float]]:
        return min(self.mended, key=lambda curve: curve[-1]["loss"])

    def tokens(self, figure: str) -> float:
        """After which the mended cut is where the plain one ends, by the schedule that takes it there first."""
        return min(_reached(curve, figure, self.plain[-1][figure]) for curve in self.mended)


def _reached(curve: Sequence[dict[str, float]], figure: str, target: float) -> float:
    """Tokens after which a curve is there; between two evaluations in proportion."""
    before = None
    for point in curve:
        if point[figure] <= target:
            if before is None:
                return 0.0
            share = (before[figure] - target) / (before[figure] - point[figure])
            return before["tokens"] + share * (point["tokens"] - before["tokens"])
        before = point
    return float("inf")


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


def percent(values: Sequence[float]) -> str:
    return spread([100 * value for value in values], "{:.0f}") + " %"


def tables(study: RepairStudy, cells: dict[float, list[Cell]]) -> Iterator[str]:
    parent = study.parent_loss()
    yield from (
        f"## {study.name}: {study.parent.shape.parameters():,} parameters, loss {parent:.3f}",
        "",
        f"Trained on {study.trained_on}.",
        "",
        "| kept | repair | seeds | loss | KL | loss gap closed | KL gap closed | int8: KL |",
        "|---|---|---|---|---|---|---|---|",
    )
    for (ratio, of_ratio), combination in product(cells.items(), study.combinations):
        pairs = [(cell.before_training(PLAIN), cell.before_training(combination)) for cell in of_ratio]
        known = [(plain, found) for plain, found in pairs if plain and found]
        if not known:
            continue
        sizes = known[0][0]["sizes"]
        row = [
            f"{ratio} (hidden {sizes['hidden']}, ffn {sizes['ffn']})",
            combination,
            f"{len(known)}",
            spread([f["loss"] for _, f in known]),
            spread([f["kl"] for _, f in known]),
            "" if combination == PLAIN else percent([closed(parent, p["loss"], f["loss"]) for p, f in known]),
            "" if combination == PLAIN else percent([closed(0.0, p["kl"], f["kl"]) for p, f in known]),
            spread([f["int8"]["kl"] for _, f in known]),
        ]
        yield "| " + " | ".join(row) + " |"
    yield ""
    if study.is_distilled:
        yield from _distillation(study, cells)


def _distillation(study: RepairStudy, cells: dict[float, list[Cell]]) -> Iterator[str]:
    columns = (
        *("kept", "seeds", "plain, distilled: loss / KL", "tokens"),
        *("mended, before: loss / KL", "distilled: loss / KL", "tokens"),
        *("tokens to the plain cut's last loss", "to its last KL"),
    )
    yield from (
        f"Distilled, on half of the blocks, where the parent's loss is {study.parent_loss_while_distilled():.3f}:",
        "",
        "| " + " | ".join(columns) + " |",
        "|---" * len(columns) + "|",
    )
    for ratio, of_ratio in cells.items():
        found = [parity for cell in of_ratio if (parity := cell.parity())]
        if not found:
            continue
        total = found[0].plain[-1]["tokens"]
        row = [
            f"{ratio}",
            f"{len(found)}",
            _both([p.plain[-1] for p in found]),
            f"{total:,.0f}",
            _both([p.best[0] for p in found]),
            _both([p.best[-1] for p in found]),
            f"{found[0].best[-1]['tokens']:,.0f}",
            *(_needed([p.tokens(figure) for p in found], total) for figure in ("loss", "kl")),
        ]
        yield "| " + " | ".join(row) + " |"
    yield from ("", f"![Validation loss of {study.name}'s cuts](repair-{study.name}.svg)", "")


def _both(points: Sequence[dict[str, float]]) -> str:
    return " / ".join(spread([point[figure] for point in points]) for figure in ("loss", "kl"))


def _needed(tokens: Sequence[float], total: float) -> str:
    if max(tokens) == 0:
        return "none"
    if max(tokens) == float("inf"):
        return f"more than {total:,.0f}"
    return f"{spread(tokens, '{:,.0f}')}: {total / statistics.mean(tokens):.1f} x fewer"


def draw(study: RepairStudy, cells: dict[float, list[Cell]], path: Path) -> None:
    """Validation loss against tokens, of the first seed's cuts."""
    settings = {"svg.fonttype": "none", "svg.hashsalt": "minitron", "font.size": 9.0}
    with picture(path, (6.4, 3.6), settings) as figure:
        axes = figure.add_subplot()
        for colour, (ratio, of_ratio) in zip(SERIES, cells.items(), strict=False):
            if parity := of_ratio[0].parity():
                for curve, style, name in ((parity.plain, "--", "plain"), (parity.best, "-", "mended")):
                    x, y = [p["tokens"] for p in curve], [p["loss"] for p in curve]
                    axes.plot(x, y, style, color=colour, marker="o", markersize=3, label=f"{ratio} kept, {name}")
        axes.axhline(study.parent_loss_while_distilled(), color="black", linewidth=1, linestyle=":", label="parent")
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.set(xlabel="tokens of distillation", ylabel="validation loss (nats)", title=study.name)
        axes.grid(alpha=0.2)
        axes.legend(fontsize=8)


def measure(cells: Sequence[Cell], seeds_rescaled: int, seeds_distilled: int) -> None:
    """What matters most first."""
    by_seed = sorted(cells, key=lambda cell: cell.seed)
    ways = [(cell, name) for cell in by_seed for name in cell.study.combinations]
    for cell, name in ways:
        if "rescale" not in COMBINATIONS[name]:
            cell.before_training(name)
    for cell in by_seed:
        if cell.study.is_distilled and cell.seed < seeds_distilled:
            cell.parity()
    for cell, name in ways:
        if cell.seed < seeds_rescaled:
            cell.before_training(name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"))
    parser.add_argument("--names", nargs="+", default=["bench"], help="workspaces with a teacher")
    parser.add_argument("--text", nargs="+", metavar="FILE", help="text of all of them but bench")
    parser.add_argument("--validation", nargs="+", metavar="FILE", help="and what is held out of it")
    parser.add_argument("--text-name", metavar="TITLE", help="what that text is, for the page")
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.75, 0.5, 0.35])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rescaled", type=int, default=3, metavar="SEEDS", help="seeds that rescale is measured with")
    parser.add_argument("--distilled", type=int, default=3, metavar="SEEDS", help="seeds that are distilled")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--blocks", type=int, default=64, help="held-out blocks that are measured on")
    parser.add_argument("--tokens", type=int, default=400_000, help="of the plain cut's distillation")
    parser.add_argument("--write", action="store_true", help="measure nothing, write what there is")
    parser.add_argument("--output", type=Path, default=Path("docs/results/repair.md"))
    args = parser.parse_args()

    def study(name: str, may_measure: bool) -> RepairStudy:
        place, _, changed = name.partition(":")
        workspace = Workspace(args.runs_dir / place)
        teacher = workspace.require("teacher", f"python scripts/bench_teacher.py --name {place}")
        stored = open_source_model(workspace.root / changed if changed not in ("", "untied") else teacher.path)
        text, of_what = (None, None), "the Python standard library's source"
        if place != "bench":
            text, of_what = (args.text, args.validation), described(args.text_name, args.text, args.validation or ())
        return RepairStudy(
            folder=f"repair-study-{changed}" if changed else "repair-study",
            context=Context(workspace),
            parent=stored.untied() if changed == "untied" else stored,
            data=bench_data(*text),
            samples=args.samples,
            blocks=args.blocks,
            name=f"{place}, {changed}" if changed else place,
            trained_on=f"{teacher.manifest.config['training']['tokens']:,} tokens of {of_what}",
            tokens=args.tokens,
            is_distilled=not stored.shape.is_tied,
            may_measure=may_measure,
        )

    def cells(of: RepairStudy) -> dict[float, list[Cell]]:
        return {ratio: [Cell(of, ratio, seed) for seed in range(args.seeds)] for ratio in args.ratios}

    if not args.write:
        studies = [study(name, True) for name in args.names]
        for of in studies:
            of.parent_loss()
            of.parent_loss_while_distilled()
        every = [cell for of in studies for of_ratio in cells(of).values() for cell in of_ratio]
        measure(every, args.rescaled, args.distilled)
    lines = [*HEAD]
    for name in args.names:
        of = study(name, False)
        lines += tables(of, cells(of))
        if of.is_distilled:
            draw(of, cells(of), args.output.with_name(f"repair-{name}.svg"))
    write_page(args.output, lines)


def described(name: str | None, text: Sequence[str], validation: Sequence[str]) -> str:
    files = f"{len(text)} files" + (f"; {len(validation)} more are held out" if validation else "")
    return f"{name}, {files}" if name else files


HEAD = (
    "# What a repair is worth",
    "",
    "Even cuts of hidden and ffn to a share of the non-embedding parameters, mended without training, measured on",
    "held-out text (nats per token; KL to the parent). Mean and 95 % interval over seeds, which draw other calibration",
    "samples. int8: every matrix of the decoder layers rounded to nearest per output channel. The tied teacher untied,",
    "and its cuts, have a head more, which the share kept does not count.",
    "",
    "Distillation: forward KL, AdamW on a cosine to a tenth of its peak, 8 blocks a step. The peak is 1e-3 for the",
    "plain cut. The one mended by rotate + least squares, which 1e-3 takes away from its parent before it comes back,",
    "is given a quarter, then half, then all of the plain cut's tokens, with a peak of 2e-4, then of 6e-4, as long as",
    "it ends above the plain cut's last loss. Where it gets there, and to the plain cut's last KL, is read off these",
    "curves; the table and the figure show the one that ends lowest.",
    "",
    "Regenerate: `python scripts/repair_study.py --names bench prose tied tied:untied --text FILE ..",
    "--validation FILE ..` (its head says how the teachers are made).",
    "",
)

if __name__ == "__main__":
    main()
