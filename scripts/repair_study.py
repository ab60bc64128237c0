"""Measure repairs: the gap to the parent they close before any training, and the distillation tokens they save.

    python scripts/bench_teacher.py
    TEXT="--text a.txt b.txt --validation c.txt"
    python scripts/bench_teacher.py --name prose --hidden 128 --tokens 2000000 $TEXT
    python scripts/bench_teacher.py --name tied --tied --hidden 128 --tokens 2000000 $TEXT
    python scripts/repair_study.py --names bench prose tied tied:untied $TEXT --text-name "my prose"

The text options apply to all teachers except bench. `tied:untied` is the tied teacher with an LM head of its own; any
other word after a colon names a directory in the workspace (see uneven_teacher.py). The prose and the tied teacher
train on 2,000,000 tokens because their validation loss rises after that.

For every teacher, seed and share of kept non-embedding parameters (hidden and ffn pruned in proportion), the child is
repaired in every way the model allows and measured on held-out text. If the teacher's head is not tied, the plain child
and the one with the best repair are then distilled. Measured figures are kept in runs/NAME/repair-study, so an
interrupted study continues; `--write` writes the page from the figures that exist. Writes docs/results/repair.md and
its figures.
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
from studies import Figures, Study, evenly_pruned, mean_and_interval, reached, svg_figure, write_page
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
SHARES = (0.25, 0.5, 1.0)  # of the plain child's tokens; tried in turn until the repaired child is as good
LEARNING_RATES = {PLAIN: (1e-3,), BEST: (2e-4, 6e-4)}  # at 1e-3 a repaired child first moves away from its parent


@dataclass(frozen=True, kw_only=True)
class RepairStudy(Study):
    """Teacher and text, with what is measured on them."""

    name: str
    """Title of the teacher's section on the page."""
    trained_on: str
    """Description of the teacher's training text."""
    tokens: int
    """Tokens that the plain child is distilled on."""
    is_distilled: bool
    """Whether children are distilled after the repair."""
    may_measure: bool
    """Whether figures that are not stored yet are measured; if not, they are left out."""

    @property
    def combinations(self) -> list[str]:
        """Names of the combinations of repairs that the model allows."""
        refused = {"rotate"} if rotation_obstacle(self.parent.shape) else set()
        return [name for name, repairs in COMBINATIONS.items() if not repairs & refused]

    @cached_property
    def held_out(self) -> list[tuple[Batch, Tensor]]:
        """Batches of blocks spread over the held-out text, each with the teacher's log-probabilities [B, T-1, V]."""
        total = len(self.validation)
        count = min(self.blocks, total)
        ids = [i * total // count for i in range(count)]
        batches = [batch(self.validation, ids[start : start + 8]) for start in range(0, count, 8)]
        return [(b, log_probabilities(self.teacher, b)) for b in batches]

    def found(self, name: str, compute: Callable[[], Figures]) -> Figures | None:
        """Stored figures, or those that `compute` measures; None if they are missing and nothing may be measured."""
        return self.remembered(name, compute) if self.may_measure or self.path_of(name).is_file() else None

    def parent_loss(self) -> float:
        """Loss of the teacher in nats per token; NaN if it is not measured."""
        found = self.found("parent", lambda: self.measured(self.teacher))
        return found["loss"] if found else float("nan")

    def parent_loss_while_distilled(self) -> float:
        """Loss of the teacher on the blocks that training evaluates on; NaN if it is not measured."""

        def compute() -> Figures:
            return {"loss": perplexity(self.teacher, self.validation, max_blocks=self.blocks // 2).loss_nats}

        found = self.found("parent-of-half", compute)
        return found["loss"] if found else float("nan")

    def measured(self, model: Any) -> Figures:
        """Mean loss and KL to the parent in nats per token, without the first token of each document."""
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
    """Log-probabilities of every next token, [B, T-1, V]."""
    logits_BTV = model(input_ids=b.input_ids_BT, position_ids=b.position_ids_BT, use_cache=False).logits
    return logits_BTV[:, :-1].log_softmax(-1)


@dataclass(frozen=True)
class Cell:
    """One share and seed of a study."""

    study: RepairStudy
    ratio: float
    """Share of the non-embedding parameters that is kept."""
    seed: int

    @property
    def name(self) -> str:
        return f"{self.ratio}-{self.seed}"

    @cached_property
    def builder(self) -> ChildBuilder:
        return self.study.builder(Ranking(), self.seed)

    @cached_property
    def plan(self) -> PrunePlan:
        """Plan without repairs."""
        return self.builder.plan(evenly_pruned(self.study.parent.shape, self.ratio))

    @cached_property
    def fit(self) -> closed_form.ClosedFormRepair:
        """Repairs fitted on the calibration samples of this seed. What no shape changes is computed once per seed."""
        blocks = self.study.train
        chosen = closed_form.SampledBlocks(blocks, sample_ids(self.seed, 0, self.study.samples, len(blocks)))
        return closed_form.ClosedFormRepair(
            self.builder, chosen, self.study.directory / f"fit-{self.seed}", self.study.teacher
        )

    def repaired(self, combination: str) -> tuple[PrunePlan, dict[str, float]]:
        """Plan with a combination of repairs, and the strength of each rescaled norm."""
        repairs = COMBINATIONS[combination]
        plan = self.fit.repaired(self.plan, repairs, f"{self.ratio}-{combination}")
        if "rescale" not in repairs:
            return plan, {}
        return self.fit.rescaled(plan)

    def before_training(self, combination: str) -> Figures | None:
        """Figures of the child with a combination of repairs, and of the same child rounded to int8."""

        def compute() -> Figures:
            plan, strengths = self.repaired(combination)
            model = self.builder.model(plan)
            figures = self.study.measured(model) | {"strengths": strengths, "sizes": dict(plan.child.sizes)}
            return figures | {"int8": self.study.measured(to_int8_(model))}

        return self.study.found(f"{self.name}-{combination.replace(' ', '')}", compute)

    def distilled(self, combination: str, rate: float, share: float = 1.0) -> Figures | None:
        """Validation curve of a distillation at a peak learning rate on a share of the study's tokens."""
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
            student = self.builder.model(self.repaired(combination)[0])
            return {"curve": self.study.trained(name, student, config).validation}

        return self.study.found(name, compute)

    def parity(self) -> "Parity | None":
        """Curves of the plain child, and of the repaired one on more and more tokens until its loss is as low."""
        plain, repaired = self.distilled(PLAIN, *LEARNING_RATES[PLAIN]), []
        for share, rate in product(SHARES, LEARNING_RATES[BEST]):
            if plain and (found := self.distilled(BEST, rate, share)):
                repaired.append(found["curve"])
                if repaired[-1][-1]["loss"] <= plain["curve"][-1]["loss"]:
                    break
        return Parity(plain["curve"], repaired) if plain and repaired else None


@dataclass(frozen=True)
class Parity:
    """Validation curves of the plain and of the repaired child."""

    plain: list[dict[str, float]]
    repaired: list[list[dict[str, float]]]
    """One curve per number of tokens and learning rate."""

    @property
    def best(self) -> list[dict[str, float]]:
        """Curve of the repaired child with the lowest final loss."""
        return min(self.repaired, key=lambda curve: curve[-1]["loss"])

    def tokens(self, figure: str) -> float:
        """Fewest tokens after which the repaired child reaches the plain one's final loss or KL."""
        return min(reached(curve, figure, self.plain[-1][figure]) for curve in self.repaired)


@torch.no_grad()
def to_int8_(model: Any) -> Any:
    """Round every matrix of the decoder layers to the nearest of 255 steps per output channel, in place."""
    for module in model.get_decoder().layers.modules():
        if isinstance(module, torch.nn.Linear):
            step = module.weight.abs().amax(dim=1, keepdim=True).clamp_min(1e-12) / 127
            module.weight.copy_((module.weight / step).round() * step)
    return model


def closed(parent: float, plain: float, repaired: float) -> float:
    """Share of the gap between plain child and parent that the repair closes."""
    return (plain - repaired) / (plain - parent)


def percent(values: Sequence[float]) -> str:
    """Mean and interval of fractions, in percent."""
    return mean_and_interval([100 * value for value in values], "{:.0f}") + " %"


def tables(study: RepairStudy, cells: dict[float, list[Cell]]) -> Iterator[str]:
    """Markdown lines of a study's section. `cells` are those of each share."""
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
            mean_and_interval([f["loss"] for _, f in known]),
            mean_and_interval([f["kl"] for _, f in known]),
            "" if combination == PLAIN else percent([closed(parent, p["loss"], f["loss"]) for p, f in known]),
            "" if combination == PLAIN else percent([closed(0.0, p["kl"], f["kl"]) for p, f in known]),
            mean_and_interval([f["int8"]["kl"] for _, f in known]),
        ]
        yield "| " + " | ".join(row) + " |"
    yield ""
    if study.is_distilled:
        yield from _distillation(study, cells)


def _distillation(study: RepairStudy, cells: dict[float, list[Cell]]) -> Iterator[str]:
    columns = (
        *("kept", "seeds", "plain, distilled: loss / KL", "tokens"),
        *("repaired, before: loss / KL", "distilled: loss / KL", "tokens"),
        *("tokens to the plain child's final loss", "to its final KL"),
    )
    yield from (
        f"After distillation, on half of the blocks (parent's loss {study.parent_loss_while_distilled():.3f}):",
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
    yield from ("", f"![Validation loss of {study.name}'s children](repair-{study.name}.svg)", "")


def _both(points: Sequence[dict[str, float]]) -> str:
    return " / ".join(mean_and_interval([point[figure] for point in points]) for figure in ("loss", "kl"))


def _needed(tokens: Sequence[float], total: float) -> str:
    if max(tokens) == 0:
        return "none"
    if max(tokens) == float("inf"):
        return f"more than {total:,.0f}"
    return f"{mean_and_interval(tokens, '{:,.0f}')}: {total / statistics.mean(tokens):.1f} x fewer"


def draw(study: RepairStudy, cells: dict[float, list[Cell]], path: Path) -> None:
    """Plot validation loss against distillation tokens for the children of the first seed."""
    settings = {"svg.fonttype": "none", "svg.hashsalt": "minitron", "font.size": 9.0}
    with svg_figure(path, (6.4, 3.6), settings) as figure:
        axes = figure.add_subplot()
        for color, (ratio, of_ratio) in zip(SERIES, cells.items(), strict=False):
            if parity := of_ratio[0].parity():
                for curve, style, name in ((parity.plain, "--", "plain"), (parity.best, "-", "repaired")):
                    x, y = [p["tokens"] for p in curve], [p["loss"] for p in curve]
                    axes.plot(x, y, style, color=color, marker="o", markersize=3, label=f"{ratio} kept, {name}")
        axes.axhline(study.parent_loss_while_distilled(), color="black", linewidth=1, linestyle=":", label="parent")
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.set(xlabel="tokens of distillation", ylabel="validation loss (nats)", title=study.name)
        axes.grid(alpha=0.2)
        axes.legend(fontsize=8)


def measure(cells: Sequence[Cell], seeds_rescaled: int, seeds_distilled: int) -> None:
    """Measure the cells, the most important figures first, so that an interrupted study has a page."""
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
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"), help="directory of workspaces")
    parser.add_argument("--names", nargs="+", default=["bench"], help="names of workspaces with a teacher")
    parser.add_argument("--text", nargs="+", metavar="FILE", help="training text of all teachers except bench")
    parser.add_argument("--validation", nargs="+", metavar="FILE", help="validation text of all teachers except bench")
    parser.add_argument("--text-name", metavar="TITLE", help="name of that text on the page")
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.75, 0.5, 0.35], help="shares to keep")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    parser.add_argument(
        "--rescaled", type=int, default=3, metavar="SEEDS", help="number of seeds that rescale is measured with"
    )
    parser.add_argument("--distilled", type=int, default=3, metavar="SEEDS", help="number of seeds that are distilled")
    parser.add_argument("--samples", type=int, default=128, help="number of calibration blocks")
    parser.add_argument("--blocks", type=int, default=64, help="number of held-out blocks that results are measured on")
    parser.add_argument("--tokens", type=int, default=400_000, help="tokens that the plain child is distilled on")
    parser.add_argument("--write", action="store_true", help="measure nothing; write the figures that exist")
    parser.add_argument("--output", type=Path, default=Path("docs/results/repair.md"), help="page to write")
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
    """Description of a text for the page."""
    files = f"{len(text)} files" + (f"; {len(validation)} more are held out" if validation else "")
    return f"{name}, {files}" if name else files


HEAD = (
    "# Effect of repairs",
    "",
    "Children keep a share of the non-embedding parameters, with hidden and ffn pruned in proportion. They are",
    "repaired without training and measured on held-out text (nats per token; KL to the parent). Mean and 95 %",
    "interval over seeds, which draw other calibration samples. int8: every matrix of the decoder layers is rounded",
    "to nearest per output channel. The tied teacher that is untied, and its children, have an LM head more, which",
    "the kept share does not count.",
    "",
    "Distillation: forward KL, AdamW with a cosine schedule to a tenth of the peak, 8 blocks per step. The peak",
    "learning rate is 1e-3 for the plain child. At 1e-3 the child repaired by rotate + least squares first moves away",
    "from its parent, so it is distilled with peaks of 2e-4 and 6e-4, on a quarter, then half, then all of the plain",
    "child's tokens, until its final loss is as low as the plain child's. The tokens after which it reaches the plain",
    "child's final loss and KL are read off these curves; the table and the figure show the curve with the lowest",
    "final loss.",
    "",
    "Regenerate: `python scripts/repair_study.py --names bench prose tied tied:untied --text FILE ..",
    "--validation FILE ..` (its docstring says how the teachers are made).",
    "",
)

if __name__ == "__main__":
    main()
