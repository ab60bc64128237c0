"""What the studies share: a teacher and its text, figures that are kept once measured, pages and pictures of them."""

import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from io import StringIO
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from minitron_cli import canonical_json, io, strict_json
from minitron_cli.artifacts.artifact import Artifact
from minitron_cli.artifacts.build import Context
from minitron_cli.checkpoint import hf
from minitron_cli.data.pack import Blocks
from minitron_cli.data.sources import DataConfig
from minitron_cli.distill.config import DistillConfig
from minitron_cli.distill.trainer import TrainResult, train
from minitron_cli.importance.config import ImportanceConfig
from minitron_cli.inputs.source_model import SourceModel
from minitron_cli.inputs.token_blocks import blocks_of
from minitron_cli.model.shape import Shape
from minitron_cli.prune.child_builder import ChildBuilder, read_scores
from minitron_cli.prune.config import Budget, Ranking
from minitron_cli.search.feasible import feasible
from minitron_cli.stages import importance

Figures = dict[str, Any]
T_95 = {2: 12.71, 3: 4.303, 4: 3.182, 5: 2.776}  # Student's t, two-sided, by the number of values


@dataclass(frozen=True, kw_only=True)
class Study:
    """One teacher, one text, and how much of it is looked at."""

    folder: str
    """Of the workspace, for what was measured."""
    context: Context
    parent: SourceModel
    data: DataConfig
    samples: int
    """Calibration blocks."""
    blocks: int
    """Held-out blocks that results are measured on."""

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
        return self.context.workspace.root / self.folder / f"{self.parent.fingerprint[:8]}-{self.samples}"

    def path_of(self, name: str) -> Path:
        return self.directory / f"{name}-{self.blocks}.json"

    def remembered(self, name: str, compute: Callable[[], Figures]) -> Figures:
        """What `compute` returns, once whatever happens to the process."""
        path = self.path_of(name)
        if not path.is_file():
            io.make_dirs(path.parent)
            figures = compute()
            io.replace(path, canonical_json.pretty(figures))
            print(name, {key: value for key, value in figures.items() if key != "curve"}, flush=True)
        return strict_json.load(path)

    def scores(self, seed: int = 0) -> Artifact:
        """A seed draws calibration samples of its own."""
        config = ImportanceConfig(samples=self.samples, seed=seed, layer_removal=False)
        return importance.run(self.context, self.parent, self.data, config)

    def builder(self, ranking: Ranking, seed: int = 0) -> ChildBuilder:
        return ChildBuilder(self.context, self.parent, read_scores(self.scores(seed), self.parent), ranking)

    def trained(self, name: str, student: Any, config: DistillConfig) -> TrainResult:
        """`student`, trained in place by the teacher; a run that was stopped continues."""
        scratch = self.directory / name
        teacher = hf.load_model(self.parent.path)  # of this run alone, as training may cast it
        result = train(student, teacher, self.train, self.validation, config, scratch)
        io.remove_tree(scratch)
        return result


def even_cut(parent: Shape, share: float) -> Shape:
    """Width cut evenly (hidden and ffn) to this share of the parameters without embeddings."""
    budget = Budget(target=int(share * parent.parameters("non_embedding")), count="non_embedding")
    return feasible(parent, {"hidden": (), "ffn": ()}, budget)[0].shape


def spread(values: Sequence[float], form: str = "{:.3f}") -> str:
    """Mean and, of several, half the 95 % interval by Student's t."""
    mean = form.format(statistics.mean(values))
    if len(values) < 2:
        return mean
    half = T_95.get(len(values), 2.0) * statistics.stdev(values) / len(values) ** 0.5
    return f"{mean} ± {form.format(half).removeprefix('+')}"


def mean_and_deviation(values: Sequence[float], form: str = "{:.3f}") -> str:
    """Mean and, of several, the standard deviation."""
    mean = form.format(statistics.mean(values))
    return f"{mean} ± {form.format(statistics.stdev(values))}" if len(values) > 1 else mean


def write_page(path: Path, lines: Iterable[str]) -> None:
    """A page of Markdown, shown on the terminal too."""
    text = "\n".join(lines).rstrip() + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    print(text)


@contextmanager
def picture(path: Path, size_inches: tuple[float, float], settings: Mapping[str, Any]) -> Iterator[Figure]:
    """A figure to draw in, and then an SVG whose bytes follow from what was drawn."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(settings)
        figure, text = Figure(figsize=size_inches, layout="constrained"), StringIO()
        yield figure
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line.rstrip()}\n" for line in text.getvalue().splitlines()))
