"""Measure the default repair of pretrained models before any training: its gain, its price, what it leaves out.

    python scripts/real_models.py
    python scripts/real_repair_study.py --text FILE --cells qwen2.5-0.5b:hidden=768 qwen2.5-0.5b:ffn=3648
    python scripts/real_repair_study.py --text FILE                        # every cell

Each cell is a model and a shape, pruned with and without the default repair by `minitron prune` for each seed, which
draws other calibration blocks. Loss and KL to the parent are those that the verb reports: on held-out blocks by which
nothing was chosen. CPU seconds are this process's. One forward pass is that of parent and child over as much text as
the repair is fitted on, timed on eight blocks. Measured figures are kept in RUNS_DIR, so an interrupted study
continues.
"""

import argparse
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from bench_teacher import bench_data
from real_models import real_model
from studies import Figures, Study, mean_and_interval, write_page

from minitron_cli.artifacts.artifact import Artifact
from minitron_cli.artifacts.build import Context
from minitron_cli.artifacts.workspace import Workspace
from minitron_cli.checkpoint import hf
from minitron_cli.data.batches import evenly_spaced
from minitron_cli.evaluate.perplexity import final_hidden, read_batch
from minitron_cli.inputs.source_model import open_source_model
from minitron_cli.prune.config import PruneConfig
from minitron_cli.results.prune import PruneResult
from minitron_cli.stages import prune

QWEN, GEMMA = "qwen2.5-0.5b", "gemma-3-270m"
CELLS = (
    *(f"{QWEN}:{shape}" for shape in ("hidden=768", "ffn=3648", "layer=18", "head=10", "hidden=768,ffn=3648,layer=18")),
    *(f"{QWEN}:{shape}" for shape in ("hidden=640", "ffn=2432", "layer=12", "head=6", "hidden=640,ffn=2432,layer=12")),
    *(f"{GEMMA}:{shape}" for shape in ("hidden=512", "ffn=1536", "layer=12", "head=2", "hidden=512,ffn=1536,layer=12")),
    *(f"{GEMMA}:{shape}" for shape in ("hidden=448", "ffn=1024", "layer=6", "head=1", "hidden=448,ffn=1024,layer=6")),
)
TIMED_BLOCKS = 8
HEAD = (
    "| model and shape | seeds | parent | plain: loss / KL | repaired: loss / KL | KL gone | perplexity "
    "| left out | CPU s | forward passes |",
    "|---|---|---|---|---|---|---|---|---|---|",
)


@dataclass(frozen=True)
class Cell:
    """One shape of one model."""

    study: Study
    model: str
    shape: dict[str, int]
    repair_samples: int

    @property
    def name(self) -> str:
        return f"{self.model}: " + ", ".join(f"{axis} {size}" for axis, size in self.shape.items())

    def measured(self, seed: int) -> Figures:
        """Figures of one seed: the effect of the repair and its price."""
        scores = self.study.scores(seed)

        def run(repair: str) -> tuple[Artifact, float]:
            config = PruneConfig(shape=self.shape, repair=repair, repair_samples=self.repair_samples)
            start = time.process_time()
            made = prune.run(self.study.context, self.study.parent, config, scores=scores, data=self.study.data)
            return made, time.process_time() - start

        _, plain_seconds = run("none")
        child, seconds = run("auto")
        result = child.result(PruneResult)
        assert result.repair
        assert result.repair.effect
        effect = result.repair.effect
        seconds -= plain_seconds
        return {
            "parent": effect.parent_loss,
            "plain": [effect.before.loss, effect.before.kl],
            "repaired": [effect.after.loss, effect.after.kl],
            "stderr": effect.kl_difference_stderr,
            "kept": list(result.repair.repairs),
            "left_out": list(result.repair.left_out),
            "seconds": seconds,
            "passes": seconds / self.forward_seconds(child.path),
        }

    @torch.inference_mode()
    def forward_seconds(self, child: Path) -> float:
        """CPU seconds of parent and child over the text that the repair is fitted on."""
        blocks = self.study.train
        batch = read_batch(blocks, evenly_spaced(len(blocks), TIMED_BLOCKS))
        dtype = self.study.parent.dtype_in(self.study.context)
        models = [hf.load_model(path, dtype=dtype) for path in (self.study.parent.path, child)]
        start = time.process_time()
        for model in models:
            model.get_output_embeddings()(final_hidden(model, batch))
        return (time.process_time() - start) * min(self.repair_samples, len(blocks)) / len(batch.tokens_BT)

    def found(self, seed: int) -> Figures | None:
        """Stored figures of a seed."""
        return self.study.remembered(self._file(seed), dict) if self.study.path_of(self._file(seed)).is_file() else None

    def measure(self, seed: int) -> None:
        self.study.remembered(self._file(seed), lambda: self.measured(seed))

    def _file(self, seed: int) -> str:
        shape = "-".join(f"{axis}{size}" for axis, size in self.shape.items())
        return f"{shape}-{self.repair_samples}-{seed}"


def row(cell: Cell, found: Sequence[Figures]) -> str:
    """Line of the table for one cell."""

    def pair(name: str) -> str:
        return " / ".join(mean_and_interval([figures[name][i] for figures in found]) for i in (0, 1))

    gone = [100 * (1 - figures["repaired"][1] / figures["plain"][1]) for figures in found]
    perplexity = (mean_and_interval([math.exp(f[name][0]) for f in found], "{:.1f}") for name in ("plain", "repaired"))
    left_out = sorted({what for figures in found for what in figures["left_out"]})
    columns = (
        *(cell.name, str(len(found)), mean_and_interval([figures["parent"] for figures in found])),
        *(pair("plain"), pair("repaired"), mean_and_interval(gone, "{:.0f}") + " %", " to ".join(perplexity)),
        *(", ".join(left_out), mean_and_interval([figures["seconds"] for figures in found], "{:.0f}")),
        mean_and_interval([figures["passes"] for figures in found], "{:.1f}"),
    )
    return "| " + " | ".join(columns) + " |"


def page(cells: Sequence[Cell], seeds: int) -> Iterator[str]:
    """Markdown lines of the table, of the figures that exist."""
    yield from ("# Repair of pretrained models", "", *(line.strip() for line in (__doc__ or "").splitlines()[6:]), "")
    yield from HEAD
    for cell in cells:
        if found := [figures for seed in range(seeds) if (figures := cell.found(seed))]:
            yield row(cell, found)
    yield from (
        "",
        "Gemma normalizes what a block writes before adding it, and no rotation commutes with these norms, so it is",
        'fitted by least squares alone. "head" prunes query heads, "layer" the layers of lowest Block Importance.',
        "",
        "Regenerate: `make real-models && python scripts/real_repair_study.py --text TEXT`",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs-dir", type=Path, default=Path("runs/real-repair"), help="directory of workspaces")
    parser.add_argument("--text", nargs="+", required=True, metavar="FILE", help="text; a part of it is held out")
    parser.add_argument("--cells", nargs="+", default=CELLS, metavar="MODEL:AXIS=SIZE,..", help="cells to measure")
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds")
    parser.add_argument("--samples", type=int, default=32, help="blocks that importance is measured on")
    parser.add_argument("--repair-samples", type=int, default=64, help="blocks that a repair is fitted on")
    parser.add_argument("--sequence-length", type=int, default=256, help="tokens in a block")
    parser.add_argument("--write", action="store_true", help="measure nothing; write the figures that exist")
    parser.add_argument("--output", type=Path, default=Path("docs/results/real-models-repair.md"), help="page to write")
    args = parser.parse_args()

    def cell(text: str) -> Cell:
        model, _, shape = text.partition(":")
        study = Study(
            folder="repair",
            context=Context(Workspace(args.runs_dir / model)),
            parent=open_source_model(real_model(model)),
            data=bench_data(args.text, sequence_length=args.sequence_length),
            samples=args.samples,
            blocks=args.sequence_length,
        )
        sizes = dict(entry.split("=") for entry in shape.split(","))
        return Cell(study, model, {axis: int(size) for axis, size in sizes.items()}, args.repair_samples)

    cells = [cell(text) for text in args.cells]
    for seed in range(0 if args.write else args.seeds):
        for one in cells:
            one.measure(seed)
            write_page(args.output, page(cells, args.seeds))
    write_page(args.output, page(cells, args.seeds))


if __name__ == "__main__":
    main()
