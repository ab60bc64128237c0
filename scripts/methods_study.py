"""Compare pruning methods at equal sparsity: before training, after least squares, and after the same distillation.

    TEXT="--text a.txt --validation b.txt"
    python scripts/bench_teacher.py --name prose --tokens 2000000 $TEXT
    python scripts/real_models.py
    SIZES="--samples 128 128 16 16 --blocks 64 64 16 16"
    NAMES="demo-teacher prose qwen2.5-0.5b gemma-3-270m"
    python scripts/methods_study.py --names $NAMES $TEXT $SIZES --distilled demo-teacher --distilled-seeds 3

A name is demo-teacher, which ships and is measured on the Python standard library, a workspace with a teacher of
bench_teacher.py, or a pretrained model of real_models.py; the text applies to those. All run in fp32. Every cell is a
method of `minitron_cli/methods.py`, an amount and a seed, which draws other calibration blocks. Figures are of held-out
blocks on which nothing was fitted. They are kept in RUNS_DIR/NAME/methods-study, so an interrupted study continues, and
`--write` writes the page from those that exist. Writes docs/results/methods.md.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path

from bench_teacher import bench_data
from studies import Figures, Study, by_name, mean_and_interval, study_model, write_page

from minitron_cli import canonical_json, io, methods
from minitron_cli.artifacts.artifact import Artifact
from minitron_cli.artifacts.build import Context
from minitron_cli.artifacts.workspace import Workspace
from minitron_cli.checkpoint import hf
from minitron_cli.checkpoint.model_names import DEMO_TEACHER
from minitron_cli.data.batches import evenly_spaced
from minitron_cli.distill.config import DistillConfig
from minitron_cli.errors import CheckpointError
from minitron_cli.evaluate.beside_parent import BesideParent
from minitron_cli.importance.config import ImportanceConfig
from minitron_cli.inputs.source_model import open_source_model
from minitron_cli.model.shape import Shape
from minitron_cli.prune.config import Budget, PruneConfig
from minitron_cli.results.sparsify import SparsifyResult
from minitron_cli.search.feasible import feasible
from minitron_cli.sparse.config import SparsifyConfig
from minitron_cli.stages import distill, importance, prune, sparsify

SHARES = {"25%": 0.25, "50%": 0.5}  # of the parameters that are pruned, other than the embedding's
PATTERNS = ("25%", "50%", "4:8", "2:4")
PLAIN, OWN, FITTED = "plain", "own", "fitted"  # without a repair, with the method's, with least squares
LEFT_OUT = ("llm-streamline", "sheared-llama")
"""The first stands for the same keys as replaceme; the masks of the second are trained, for one shape each."""
MEASURED = [name for name in methods.METHODS if name not in LEFT_OUT]
NEAR = 0.01  # of the parent's parameters: how far a child may be from the share, if there is such a child
DISTILLED = ("50%", "2:4")
STATES = {
    "plain": (PLAIN, False),
    "least squares": (FITTED, False),
    "plain, distilled": (PLAIN, True),
    "least squares, distilled": (FITTED, True),
}
"""Column -> repair, and whether it was distilled."""
PUBLISHED = (
    ("2:4", "wanda", "magnitude"),
    ("2:4", "sparsegpt", "wanda"),
    ("50%", "wanda", "magnitude"),
    ("50%", "sparsegpt", "wanda"),
    ("50%", "wanda", "minitron-width"),
    ("50%", "wanda", "flap"),
    ("50%", "wanda", "minitron-depth"),
)
"""Amount, a method, and one that is published as farther from the parent at this amount."""
LEARNING_RATE = {PLAIN: 1e-3, FITTED: 3e-4}  # a repaired child moves away from its parent at the larger one


@dataclass(frozen=True, kw_only=True)
class MethodsStudy(Study):
    """A model and text, with what is measured on them."""

    name: str
    tokens: int
    """Tokens of a distillation."""

    @cached_property
    def held_out(self) -> BesideParent:
        return BesideParent(self.teacher, self.validation, evenly_spaced(len(self.validation), self.blocks))

    def scores(self, seed: int = 0) -> Artifact:
        """Importance scores, with those that rank layers and blocks of layers."""
        layers = self.parent.shape.sizes["layer"]
        lengths = tuple(round(layers * share) for share in SHARES.values())
        some = max(1, self.samples // 2)
        config = ImportanceConfig(
            samples=self.samples,
            seed=seed,
            layer_removal=True,
            removal_samples=some,
            block_distances=lengths,
            collapse=2,
        )
        return importance.run(self.context, self.parent, self.data, config)

    def measured(self, path: Path) -> Figures:
        """Loss and KL of a checkpoint in nats per token."""
        found = self.held_out.of(hf.load_model(path, dtype="float32"))
        return {"loss": found.loss.mean, "kl": found.kl.mean}

    def child(self, axes: Sequence[str], share: float) -> Shape:
        """Shape without a share of the parameters, other than the embedding's; of layers alone, their number counts."""
        parent = self.parent.shape
        if axes == ("layer",):
            layers = parent.sizes["layer"]
            return parent.resize(layer=layers - round(layers * share))
        whole = parent.parameters("non_embedding")
        target = int((1 - share) * whole)
        space = {axis: steps(parent.sizes[axis]) if axis in ("hidden", "ffn") else () for axis in axes}
        found = feasible(parent, space, Budget(target=target, count="non_embedding"))
        near = [one for one in found if abs(one.shape.parameters("non_embedding") - target) <= NEAR * whole]
        return (near or found)[0].shape  # the first is that which prunes all axes most evenly


def steps(size: int) -> tuple[int, ...]:
    """Sizes from a quarter of an axis to all of it, by sixteenths."""
    return tuple(range(size // 4, size + 1, size // 16))


@dataclass(frozen=True)
class Cell:
    """A method, an amount and a seed."""

    study: MethodsStudy
    method: str
    amount: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.method}-{self.amount.replace(':', 'of').replace('%', '')}-{self.seed}"

    def found(self, what: str, compute: Callable[[], Figures] | None) -> Figures | None:
        """Stored figures, or those that `compute` measures; None if there are none and nothing is measured."""
        name = f"{what}-{self.name}"
        if compute is None and not self.study.path_of(name).is_file():
            return None
        return self.study.remembered(name, compute or dict)

    def before_training(self, *, measure: bool) -> Figures | None:
        """Loss and KL without a repair, with the method's own, and with least squares."""
        is_sparse = methods.METHODS[self.method].section == "sparsify"
        return self.found("before", (self._sparse if is_sparse else self._smaller) if measure else None)

    def _sparsify(self, repair: str, effect_blocks: int = 0) -> Artifact:
        config = SparsifyConfig(
            method=self.method,
            pattern=self.amount,
            repair=repair,
            samples=self.study.samples,
            seed=self.seed,
            effect_blocks=effect_blocks,
        )
        return sparsify.run(self.study.context, self.study.parent, config, self.study.data)

    def _sparse(self) -> Figures:
        start = time.process_time()
        made = self._sparsify("least_squares", self.study.blocks)
        result, seconds = made.result(SparsifyResult), time.process_time() - start
        io.remove_tree(made.path)
        assert result.effect
        before, after = ({"loss": f.loss, "kl": f.kl} for f in (result.effect.before, result.effect.after))
        return {PLAIN: before, FITTED: after, "pruned": result.sparsity, "seconds": seconds}

    def _prune(self, repair: str | None) -> Artifact:
        study = self.study
        config = PruneConfig(method=self.method, repair_samples=study.samples, serving_lint="warn")  # none is served
        if repair:  # without the name of the method, which may stand for a repair
            config = config.model_copy(update={"method": None, "repair": repair})
        shape = study.child(config.axes, SHARES[self.amount])
        sizes = {axis: shape.sizes[axis] for axis in config.axes}
        config = config.model_copy(update={"shape": sizes})
        data = None if config.repair == "none" else study.data
        return prune.run(study.context, study.parent, config, scores=study.scores(self.seed), data=data)

    def _smaller(self) -> Figures:
        start, parent = time.process_time(), self.study.parent.shape
        repairs: dict[str, str | None] = {PLAIN: "none", OWN: None, FITTED: "auto"}
        if PruneConfig(method=self.method).repair in ("none", "least_squares"):  # the last is the third
            del repairs[OWN]
        figures: Figures = {}
        for what, repair in repairs.items():
            try:
                made = self._prune(repair)
            except CheckpointError:  # the family has no place for the method's own repair
                continue
            figures[what] = self.study.measured(made.path)
            shape = open_source_model(made.path).shape
            io.remove_tree(made.path)
        left = shape.parameters("non_embedding") / parent.parameters("non_embedding")
        return figures | {"pruned": 1 - left, "seconds": time.process_time() - start}

    def kl(self, state: str) -> float | None:
        """KL to the parent in one of STATES; None if it was not measured."""
        what, trained = STATES[state]
        if trained:
            found = self.distilled(what, measure=False)
        else:
            found = (self.before_training(measure=False) or {}).get(what)
        return found["kl"] if found else None

    def distilled(self, what: str, *, measure: bool) -> Figures | None:
        """Loss and KL after distillation of the child without a repair, or of the one with least squares."""
        return self.found(f"{what}-distilled-{self.study.tokens}", (lambda: self._distilled(what)) if measure else None)

    def _distilled(self, what: str) -> Figures:
        is_sparse, study = methods.METHODS[self.method].section == "sparsify", self.study
        if is_sparse:
            student = self._sparsify("none" if what == PLAIN else "least_squares")
        else:
            student = self._prune("none" if what == PLAIN else "auto")
        weights = {name: record for name, record in student.manifest.files.items() if name.endswith(".safetensors")}
        name = f"student-{canonical_json.digest(weights)[:12]}-{what}-{study.tokens}-{self.seed}"
        figures = study.remembered(name, lambda: self._trained(student, LEARNING_RATE[what]))
        io.remove_tree(student.path)
        return figures

    def _trained(self, student: Artifact, learning_rate: float) -> Figures:
        """Loss and KL of a student after distillation: one for all methods that leave out the same layers."""
        study = self.study
        config = DistillConfig(
            tokens=study.tokens,
            batch_size=8,
            micro_batch_size=8,
            learning_rate=learning_rate,
            min_learning_rate=learning_rate / 10,
            warmup_steps=10,
            eval_every=max(1, study.tokens // (4 * 8 * study.train.sequence_length)),
            eval_blocks=16,
            save_every=50,
            seed=self.seed,
        )
        trained = distill.run(study.context, study.parent, student.path, study.data, config)
        figures = study.measured(trained.path)
        io.remove_tree(trained.path)
        return figures


def cells(study: MethodsStudy, seeds: int, wanted: Sequence[str], amounts: Sequence[str] = PATTERNS) -> list[Cell]:
    """Cells of a study, those of the first seed first, then in the order of the amounts."""
    found = [(name, amount) for name in methods.names("sparsify") for amount in PATTERNS]
    found += [(name, amount) for name in methods.names("prune") if name in MEASURED for amount in SHARES]
    chosen = [(name, amount) for name, amount in found if (not wanted or name in wanted) and amount in amounts]
    chosen.sort(key=lambda one: amounts.index(one[1]))
    return [Cell(study, name, amount, seed) for seed in range(seeds) for name, amount in chosen]


def measure(study: MethodsStudy, wanted: Sequence[Cell], seeds_distilled: int) -> None:
    """Measure the cells, what no training is needed for first, so that an interrupted study has a page."""
    study.remembered("parent", lambda: {"loss": study.held_out.parent_loss().mean})
    for cell in wanted:
        cell.before_training(measure=True)
    for cell, what in product(wanted, (FITTED, PLAIN)):
        if cell.seed < seeds_distilled and cell.amount in DISTILLED:
            cell.distilled(what, measure=True)


def both(found: Sequence[Figures | None]) -> str:
    """Loss and KL of the seeds that are measured."""
    known = [figures for figures in found if figures]
    if not known:
        return ""
    return " / ".join(mean_and_interval([figures[name] for figures in known]) for name in ("loss", "kl"))


def own_repair(found: Sequence[Figures]) -> str:
    """Loss and KL with the method's own repair; a repair that does not gain leaves the plain child as it was."""
    repaired = [figures.get(OWN) for figures in found]
    if all(repaired) and repaired == [figures[PLAIN] for figures in found]:
        return "left out: no gain"
    return both(repaired)


def section(study: MethodsStudy, every: Sequence[Cell]) -> Iterator[str]:
    """Markdown lines of a model's section."""
    parent = study.remembered("parent", dict)["loss"] if study.path_of("parent").is_file() else float("nan")
    yield from (f"## {study.name}: {study.parent.shape.parameters():,} parameters, loss {parent:.3f}", "")
    columns: tuple[str, ...] = (
        "amount",
        "method",
        "pruned",
        "seeds",
        "plain: loss / KL",
        "its own repair",
        "least squares",
    )
    is_distilled = any(cell.distilled(what, measure=False) for cell in every for what in (PLAIN, FITTED))
    columns += ("plain, distilled", "least squares, distilled") if is_distilled else ()
    yield from ("| " + " | ".join(columns) + " |", "|---" * len(columns) + "|")
    for amount in PATTERNS:
        for method in dict.fromkeys(cell.method for cell in every):
            of_row = [cell for cell in every if (cell.method, cell.amount) == (method, amount)]
            if found := [f for cell in of_row if (f := cell.before_training(measure=False))]:
                distilled = [[cell.distilled(what, measure=False) for cell in of_row] for what in (PLAIN, FITTED)]
                row = [amount, method, f"{100 * found[0]['pruned']:.0f} %", f"{len(found)}"]
                row += [both([figures.get(PLAIN) for figures in found]), own_repair(found)]
                row += [both([figures.get(FITTED) for figures in found])]
                row += [both(each) for each in distilled] if is_distilled else []
                yield "| " + " | ".join(row) + " |"
    yield ""
    yield from directions(every)


def directions(every: Sequence[Cell]) -> Iterator[str]:
    """Markdown lines with the differences in KL that were published, paired by seed."""
    known = {(cell.amount, cell.method, cell.seed): cell for cell in every if cell.before_training(measure=False)}
    rows = []
    for amount, nearer, farther in PUBLISHED:
        pairs = [
            (known[amount, nearer, seed], known[amount, farther, seed])
            for seed in sorted({cell.seed for cell in every})
            if {(amount, nearer, seed), (amount, farther, seed)} <= known.keys()
        ]
        if pairs:
            cells = [_apart(pairs, state) for state in STATES]
            rows.append(f"| {amount} | {nearer} - {farther} | " + " | ".join(cells) + " |")
    if rows:
        yield "KL of the method that is published as nearer to its parent, less that of the other one:"
        yield from (
            "",
            "| amount | difference | " + " | ".join(STATES) + " |",
            "|---" * (2 + len(STATES)) + "|",
            *rows,
            "",
        )


def _apart(pairs: Sequence[tuple[Cell, Cell]], state: str) -> str:
    """Mean and interval of the differences of pairs that are measured in this state."""
    found = [(first.kl(state), second.kl(state)) for first, second in pairs]
    apart = [own - other for own, other in found if own is not None and other is not None]
    return mean_and_interval(apart, "{:+.3f}") if apart else ""


HEAD = (
    "# Methods at equal sparsity",
    "",
    "Every method that has a name ([methods.md](../methods.md), where sheared-llama is, which trains masks for one",
    "shape), on held-out text: nats per token, and KL to the parent; mean and 95 % interval over seeds, which draw",
    "other calibration blocks. Sparse methods make a share of the weights of the blocks' matrices zero; the others",
    "leave out as large a share of the parameters, embedding and LM head aside, and methods for depth a share of",
    "the layers. Before any training: plain, with the repair that belongs to the method, and with this tool's least",
    "squares in its place (`prune.repair: auto`, `sparsify.repair: least_squares`; it is replaceme's own, and llm-",
    "streamline stands for the same keys). What does not gain on other held-out text is left out, as by the",
    "program. After training: on the same {tokens:,} tokens by forward KL, with a peak learning rate of 1e-3 for",
    "plain children and 3e-4 for repaired ones, which move away from their parent at the larger one.",
    "",
    "Regenerate: as the docstring of `scripts/methods_study.py` says. The figures of all runs are in",
    "[methods/](methods/); copied to RUNS_DIR/NAME/methods-study, what is missing is measured.",
    "",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"), help="directory of workspaces")
    parser.add_argument("--names", nargs="+", default=[DEMO_TEACHER], help="models (see above)")
    parser.add_argument("--text", nargs="+", metavar="FILE", help="training text of all but demo-teacher")
    parser.add_argument("--validation", nargs="+", metavar="FILE", help="validation text of all but demo-teacher")
    parser.add_argument("--methods", nargs="+", default=[], choices=MEASURED, help="methods (default: all)")
    parser.add_argument("--amounts", nargs="+", default=PATTERNS, choices=PATTERNS, help="amounts, in this order")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    parser.add_argument("--samples", type=int, nargs="+", default=[128], help="calibration blocks, by model")
    parser.add_argument("--blocks", type=int, nargs="+", default=[64], help="held-out blocks to measure on, by model")
    parser.add_argument("--distilled", nargs="*", default=[], help="models whose children are distilled as well")
    parser.add_argument("--distilled-seeds", type=int, default=1, help="number of their seeds")
    parser.add_argument("--tokens", type=int, default=200_000, help="tokens of a distillation")
    parser.add_argument("--write", action="store_true", help="measure nothing; write the figures that exist")
    parser.add_argument("--output", type=Path, default=Path("docs/results/methods.md"), help="page to write")
    args = parser.parse_args()

    samples, blocks = (by_name(args.names, getattr(args, name), f"--{name}") for name in ("samples", "blocks"))

    def study(name: str) -> MethodsStudy:
        workspace = Workspace(args.runs_dir / name)
        return MethodsStudy(
            folder="methods-study",
            context=Context(workspace, dtype="float32"),
            parent=open_source_model(study_model(name, workspace)),
            data=bench_data(*((None, None) if name == DEMO_TEACHER else (args.text, args.validation))),
            samples=samples[name],
            blocks=blocks[name],
            name=name,
            tokens=args.tokens,
        )

    studies = [study(name) for name in args.names]
    for one in studies if not args.write else ():
        measure(
            one,
            cells(one, args.seeds, args.methods, args.amounts),
            args.distilled_seeds if one.name in args.distilled else 0,
        )
    sections = [line for one in studies for line in section(one, cells(one, args.seeds, ()))]
    write_page(args.output, [*(line.format(tokens=args.tokens) for line in HEAD), *sections])


if __name__ == "__main__":
    main()
