"""Measure what a model loses without each contiguous block of its layers: loss, and answers that it no longer finds.

    python scripts/block_removal.py
    python scripts/real_models.py
    TEXT="--text a.txt --validation b.txt"
    python scripts/block_removal.py --names demo-teacher gemma-3-270m --questions 400 100 $TEXT

A name is demo-teacher, which is measured on the Python standard library, or a pretrained model of real_models.py; the
text applies to those. Beside the blocks stand the layers that cost least one by one, as many of them. What is measured
is kept in RUNS_DIR/NAME/block-removal, so an interrupted study continues. Writes block-removal.md and its plot.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from bench_teacher import bench_data
from real_models import MODELS
from scipy.stats import binomtest, kendalltau
from studies import Figures, Study, by_name, study_model, write_page

from minitron_cli.artifacts.build import Context
from minitron_cli.artifacts.workspace import Workspace
from minitron_cli.checkpoint import hf
from minitron_cli.checkpoint.model_names import DEMO_TEACHER
from minitron_cli.data.batches import evenly_spaced
from minitron_cli.evaluate.beside_parent import BesideParent
from minitron_cli.evaluate.cloze import task_of_blocks
from minitron_cli.evaluate.config import Cloze, Task
from minitron_cli.evaluate.statistics import compare
from minitron_cli.evaluate.task_metric import TaskMetric
from minitron_cli.figures import Estimate, Figure
from minitron_cli.importance.layer_removal import layer_blocks
from minitron_cli.inputs.source_model import open_source_model
from minitron_cli.layerwise.bypass import bypassed
from minitron_cli.layerwise.observer import decoder_layers
from minitron_cli.report import markdown, plots
from minitron_cli.report.view import Cell, Line, Lines, Plot, Table

ONE_BY_ONE = "one by one"
CLOZE = Cloze()
LOSS = Figure("loss gained", "nats", style="fixed", better="lower", is_change=True)
FOUND = Figure("continuations found", style="share", better="higher")
FIRST = Figure("first layer removed", style="count")


@dataclass(frozen=True, kw_only=True)
class RemovalStudy(Study):
    """A model and text, with what is measured on them without some layers."""

    name: str
    questions: int
    """Largest number of questions of the task."""

    @cached_property
    def held_out(self) -> BesideParent:
        return BesideParent(self.teacher, self.validation, evenly_spaced(len(self.validation), self.blocks))

    @cached_property
    def calibration(self) -> BesideParent:
        return BesideParent(self.teacher, self.train, evenly_spaced(len(self.train), self.blocks))

    @cached_property
    def layers(self) -> Any:
        return decoder_layers(self.teacher, self.parent.family)

    @property
    def length(self) -> int:
        """Number of layers that are removed together."""
        return round(self.parent.shape.sizes["layer"] / 3)

    @cached_property
    def task_path(self) -> Path:
        """Directory of the task: which of four passages continues the text; the others continue it elsewhere."""
        asked = CLOZE.model_copy(update={"items": self.questions})
        scratch = self.directory / f"cloze-{self.questions}"
        return task_of_blocks(scratch, hf.load_tokenizer(self.parent.path), self.validation, asked)

    @property
    def asked(self) -> int:
        """Number of questions, of which a short text has fewer than were wanted."""
        return len((self.task_path / "cloze.jsonl").read_text().splitlines())

    @cached_property
    def task(self) -> TaskMetric:
        return TaskMetric(Task.parse("cloze"), "acc", self.task_path, "block_task")

    @torch.inference_mode()
    def without(self, name: str, removed: Sequence[int]) -> Figures:
        """Loss gained without these layers with its interval, and the share of questions that are still answered."""

        def compute() -> Figures:
            held_out = self.held_out  # measures the whole model when it is made
            with bypassed([self.layers[i] for i in removed]):
                gained = compare(held_out.of(self.teacher).loss, held_out.parent_loss())
                found = self.task(self.teacher, hf.load_tokenizer(self.parent.path))
            return {"gained": gained.difference, "low": gained.low, "high": gained.high, "found": found}

        return self.remembered(f"{name}-{self.questions}", compute)

    @torch.inference_mode()
    def least(self) -> list[int]:
        """The layers that cost least one by one on the training text, ascending."""

        def compute() -> Figures:
            losses, text = [], self.calibration
            for layer in self.layers:
                with bypassed([layer]):
                    losses.append(text.of(self.teacher).loss.mean)
            return {"losses": losses}

        losses = self.remembered("single", compute)["losses"]
        return sorted(sorted(range(len(losses)), key=lambda layer: losses[layer])[: self.length])

    def rows(self) -> dict[str, Figures]:
        """Figures of the whole model, of every block, and of the layers that cost least one by one, by name."""
        found = {"none": self.without("none", [])}
        for block in layer_blocks(len(self.layers), [self.length]):
            found[str(block.start)] = self.without(f"{self.length}-from-{block.start}", range(block.start, block.stop))
        found[ONE_BY_ONE] = self.without(ONE_BY_ONE, self.least()) | {"layers": self.least()}
        return found


def share_found(value: float, questions: int) -> Estimate:
    """Share of questions answered, with Wilson's 95 % interval."""
    ends = binomtest(round(value * questions), questions).proportion_ci(method="wilson")
    return Estimate(value, ends.low, ends.high)


def section(study: RemovalStudy, rows: dict[str, Figures]) -> Iterator[str]:
    """Table of one model, and what it says of the published statements."""
    length, blocks = study.length, {int(name): figures for name, figures in rows.items() if name.isdigit()}
    alone, first, last = rows[ONE_BY_ONE], blocks[min(blocks)], blocks[max(blocks)]
    by_loss = min(blocks, key=lambda start: blocks[start]["gained"])
    by_task = max(blocks, key=lambda start: blocks[start]["found"])
    tau = kendalltau([one["gained"] for one in blocks.values()], [-one["found"] for one in blocks.values()]).statistic
    said = {str(start): f"{start} to {start + length - 1}" for start in blocks}
    said |= {"none": "none", ONE_BY_ONE: ", ".join(map(str, alone["layers"]))}
    cells: list[tuple[Cell, ...]] = [
        (said[name], gained_loss(figures), share_found(figures["found"], study.asked)) for name, figures in rows.items()
    ]
    yield f"## {study.name}: {length} of {study.parent.shape.sizes['layer']} layers"
    yield markdown.table(Table("", (Figure("layers removed"), LOSS, FOUND), tuple(cells)))
    yield (
        f"The loss is lowest without layers {said[str(by_loss)]}, and most continuations are found without "
        f"{said[str(by_task)]}; Kendall's tau of the blocks' two orders is {tau:.2f}. The first block costs "
        f"{first['gained']:.2f} nats and the last one {last['gained']:.2f}, the best {blocks[by_loss]['gained']:.2f}. "
        f"The layers that cost least one by one cost {alone['gained']:.2f} nats together and leave "
        f"{alone['found']:.1%} of the continuations; the block that leaves most leaves {blocks[by_task]['found']:.1%}."
    )


def gained_loss(figures: Figures) -> Estimate:
    """Loss gained, with its interval."""
    return Estimate(figures["gained"], figures["low"], figures["high"])


def plot(name: str, key: str, figure: Figure, rows: dict[str, dict[str, Figures]]) -> Plot:
    """A figure against the first layer removed, a model per line."""
    curves = [[(int(s), one[key]) for s, one in found.items() if s.isdigit()] for found in rows.values()]
    lines = tuple(Line(curve, i) for i, curve in enumerate(curves))
    return Plot(name, Lines(lines, FIRST, figure), "A third of the layers removed", tuple(enumerate(rows)))


HEAD = (
    "# Blocks of layers removed",
    "Regenerate: as the docstring of `scripts/block_removal.py` says.",
    "What a model loses without each contiguous block of a third of its layers, before any training, by two measures: "
    "the loss on held-out text, with the 95 % interval of the difference between blocks of text, and how often it "
    f"finds which of {CLOZE.choices} passages of {CLOZE.continuation_words} words of a document continues "
    f"{CLOZE.context_words} words of it (`minitron eval --cloze`; by chance {1 / CLOZE.choices:.0%}; Wilson's 95 % "
    "interval). Layers that cost least one by one are chosen on the training text.",
    "Published (Sreenivas et al. 2024, section 4, half of the layers of Llama 3.1 8B, Winogrande): the first and the "
    "last layers matter most; loss and accuracy disagree; layers removed one by one leave the better loss, and one "
    "block leaves the better accuracy.",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"), help="directory of workspaces")
    parser.add_argument("--names", nargs="+", default=[DEMO_TEACHER], choices=[DEMO_TEACHER, *MODELS], help="models")
    parser.add_argument("--text", nargs="+", metavar="FILE", help="training text of all but demo-teacher")
    parser.add_argument("--validation", nargs="+", metavar="FILE", help="validation text of all but demo-teacher")
    parser.add_argument("--blocks", type=int, default=16, help="held-out blocks that the loss is measured on")
    parser.add_argument("--questions", type=int, nargs="+", default=[64], help="questions of the task, by model")
    parser.add_argument("--output", type=Path, default=Path("docs/results"), help="directory of the page")
    args = parser.parse_args()

    questions = by_name(args.names, args.questions, "--questions")

    def study(name: str) -> RemovalStudy:
        workspace = Workspace(args.runs_dir / name)
        return RemovalStudy(
            folder="block-removal",
            context=Context(workspace, dtype="float32"),
            parent=open_source_model(study_model(name, workspace)),
            data=bench_data(*((None, None) if name == DEMO_TEACHER else (args.text, args.validation))),
            samples=0,
            blocks=args.blocks,
            name=name,
            questions=questions[name],
        )

    studies = {name: study(name) for name in args.names}
    rows = {name: one.rows() for name, one in studies.items()}
    sections = (line for name in rows for line in section(studies[name], rows[name]))
    image = "![Loss gained and continuations found](block-removal.svg)"
    write_page(args.output / "block-removal.md", ["\n\n".join([*HEAD, image, *sections])])
    both = [plot("loss", "gained", LOSS, rows), plot("task", "found", FOUND, rows)]
    (args.output / "block-removal.svg").write_text(plots.sheet(both))


if __name__ == "__main__":
    main()
