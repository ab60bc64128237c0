"""How far importance rankings of pretrained models depend on how much text they are measured on, and on which.

    make real-models
    python scripts/calibration_study.py gemma-3-270m qwen2.5-0.5b --text prose.txt

The first half of the text ranks with the most samples; its ranking is what others are compared with: those of fewer
samples of the other half, whose articles are others, and of another kind of text, the source of the Python standard
library. Scores are those of `minitron importance` with its defaults. Each seed draws other samples. Rankings are kept
in RUNS_DIR, so an interrupted study continues. Writes docs/results/real-models-rankings.md.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from real_models import MODELS
from scipy.stats import kendalltau
from studies import mean_and_interval, study_model, write_page
from torch import Tensor

from minitron_cli.artifacts.build import Context
from minitron_cli.artifacts.workspace import Workspace
from minitron_cli.checkpoint.model_names import DEMO_TEACHER
from minitron_cli.data.sources import DataConfig, PythonStdlib, Source, TextFiles
from minitron_cli.importance.config import ImportanceConfig
from minitron_cli.inputs.source_model import SourceModel, open_source_model
from minitron_cli.prune.child_builder import read_scores
from minitron_cli.scores.scores import Scores
from minitron_cli.stages import importance

SEEDS = 3
PRUNED = 0.25  # share of an axis whose members are compared
AXES = {"hidden": "channels", "ffn": "neurons", "head": "heads", "layer": "layers"}
PROSE, OTHER_ARTICLES, PYTHON = "first half", "the other half: other articles", "Python source"


@dataclass(frozen=True)
class Rankings:
    """Scores of one model by text, number of samples and seed."""

    context: Context
    parent: SourceModel
    texts: dict[str, Source]
    length: int
    """Tokens per sample."""
    samples: Sequence[int]
    """Numbers of samples, ascending. The last gives the ranking that others are compared with."""

    def of(self, text: str, samples: int, seed: int) -> Scores:
        """Scores by the verb's defaults, on samples of a text that the seed draws."""
        data = DataConfig(sources=(self.texts[text],), sequence_length=self.length)
        config = ImportanceConfig(samples=samples, seed=seed)
        made = importance.run(self.context, self.parent, data, config)
        print(f"{self.context.workspace.name}: {samples} samples of {text}, seed {seed}", flush=True)
        return read_scores(made, self.parent)

    def rows(self) -> Iterator[str]:
        """Lines of the table: agreement with the scores of the most samples of the first half."""
        reference = by_axis(self.of(PROSE, self.samples[-1], 0))
        yield "| text | samples | seeds | " + " | ".join(AXES.values()) + " |"
        yield "|---|---|---|" + "---|" * len(AXES)
        for text in (OTHER_ARTICLES, PYTHON):
            for samples in self.samples:
                seeds = range(1 if samples == self.samples[-1] else SEEDS)
                found = [by_axis(self.of(text, samples, seed)) for seed in seeds]
                cells = (agreement(reference[axis], [one[axis] for one in found]) for axis in AXES)
                yield f"| {text} | {samples:,} | {len(seeds)} | " + " | ".join(cells) + " |"


def by_axis(scores: Scores) -> dict[str, Tensor]:
    """Scores [rows, members] of each axis: one row for each layer that has members of its own, else one."""
    layers = scores.layers("block_importance")
    return {axis: layers[None] if axis == "layer" else torch.atleast_2d(scores.by_layer(axis)) for axis in AXES}


def agreement(reference: Tensor, found: Sequence[Tensor]) -> str:
    """Cell of the table: Kendall's tau, and the share of the reference's lowest quarter that is found, over seeds."""
    taus = [mean_tau(reference, one) for one in found]
    shares = [100 * shared_lowest(reference, one) for one in found]
    return f"{mean_and_interval(taus, '{:.2f}')}, {mean_and_interval(shares, '{:.0f}')} %"


def mean_tau(a_LC: Tensor, b_LC: Tensor) -> float:
    """Kendall's tau of the members' two orders, averaged over rows."""
    rows = zip(a_LC.double().numpy(), b_LC.double().numpy(), strict=True)
    return float(sum(kendalltau(a_C, b_C).statistic for a_C, b_C in rows) / len(a_LC))


def shared_lowest(a_LC: Tensor, b_LC: Tensor) -> float:
    """Share of the members with the lowest scores in one that have the lowest in the other as well, over all rows."""
    count = max(1, round(PRUNED * a_LC.shape[1]))
    lowest_a, lowest_b = (scores_LC.argsort(dim=1, stable=True)[:, :count] for scores_LC in (a_LC, b_LC))
    both = [len(set(a.tolist()) & set(b.tolist())) for a, b in zip(lowest_a, lowest_b, strict=True)]
    return sum(both) / (count * len(both))


def page(studies: Sequence[Rankings]) -> Iterator[str]:
    """Markdown lines of all models."""
    yield from (
        "# How much text a ranking needs",
        "",
        f"Agreement with the ranking by {studies[0].samples[-1]:,} samples of the first half of a text, samples of "
        f"{studies[0].length} tokens. In each cell: Kendall's tau of the two orders, averaged over layers, and the "
        f"share of the {100 * PRUNED:.0f} % with the lowest scores, which a pruning to {100 * (1 - PRUNED):.0f} % "
        f"removes, that both have (by chance {100 * PRUNED:.0f} %), ± half a 95 % interval over seeds. Channels are "
        "shared by all layers; neurons and heads are ranked in each; layers are ranked by Block Importance.",
    )
    for study in studies:
        yield from ("", f"## {study.context.workspace.name}", "", *study.rows())
    names = " ".join(study.context.workspace.name for study in studies)
    yield from (
        "",
        f"Regenerate: `make real-models && python scripts/calibration_study.py {names} --text TEXT "
        f"--sequence-length {studies[0].length}`",
    )


def halves(path: Path, directory: Path) -> dict[str, Source]:
    """The two halves of a text file, split between lines and written to files of a directory."""
    lines = path.read_text().splitlines(keepends=True)
    middle = len("".join(lines)) // 2
    directory.mkdir(parents=True, exist_ok=True)
    texts: dict[str, Source] = {PYTHON: PythonStdlib(split="train")}
    parts: dict[str, list[str]] = {PROSE: [], OTHER_ARTICLES: []}
    read = 0
    for line in lines:
        parts[PROSE if read < middle else OTHER_ARTICLES].append(line)
        read += len(line)
    for i, (name, part) in enumerate(parts.items()):
        half = directory / f"half-{i}.txt"
        half.write_text("".join(part))
        texts[name] = TextFiles(paths=(str(half),))
    return texts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", choices=[DEMO_TEACHER, *MODELS], help="models to rank the parts of")
    parser.add_argument("--text", type=Path, required=True, help="file of at least 1 MB")
    parser.add_argument("--samples", type=int, nargs="+", default=[32, 128, 1024], help="numbers of samples, ascending")
    parser.add_argument("--sequence-length", type=int, default=128, help="tokens in a sample")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs/calibration-study"), help="directory of workspaces")
    parser.add_argument(
        "--output", type=Path, default=Path("docs/results/real-models-rankings.md"), help="page to write"
    )
    args = parser.parse_args()
    texts = halves(args.text, args.runs_dir)

    def study(name: str) -> Rankings:
        workspace = Workspace(args.runs_dir / name)
        parent = open_source_model(study_model(name, workspace))
        return Rankings(Context(workspace), parent, texts, args.sequence_length, args.samples)

    write_page(args.output, page([study(name) for name in args.models]))


if __name__ == "__main__":
    main()
