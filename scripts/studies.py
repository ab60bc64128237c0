"""Base of the studies: a teacher and its text, a cache of measured figures, Markdown pages and plots."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from io import StringIO
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from real_models import MODELS, real_model

from minitron_cli import canonical_json, io, strict_json
from minitron_cli.artifacts.artifact import Artifact
from minitron_cli.artifacts.build import Context
from minitron_cli.artifacts.workspace import Workspace
from minitron_cli.checkpoint import hf
from minitron_cli.checkpoint.model_names import DEMO_TEACHER
from minitron_cli.data.pack import Blocks
from minitron_cli.data.sources import DataConfig
from minitron_cli.distill.config import DistillConfig
from minitron_cli.distill.trainer import TrainResult, train
from minitron_cli.errors import InputError
from minitron_cli.evaluate.statistics import mean_of_runs
from minitron_cli.importance.config import ImportanceConfig
from minitron_cli.inputs.source_model import SourceModel
from minitron_cli.inputs.token_blocks import blocks_of
from minitron_cli.model.shape import Shape
from minitron_cli.prune.child_builder import ChildBuilder, read_scores
from minitron_cli.prune.config import Budget, Ranking
from minitron_cli.repair.closed_form import SampledBlocks
from minitron_cli.search.feasible import feasible
from minitron_cli.stages import importance

Figures = dict[str, Any]
"""Measured values by name; a curve is a list of rows."""

RATES = (1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3)
FIRST_RATES = (3e-5, 1e-4, 3e-4)  # tried for every child; then neighbors of the best, until none is better


class SomeBlocks(SampledBlocks):
    """Some blocks of a text, which a training tells from others by their numbers."""

    @property
    def fingerprint(self) -> str:
        return f"{self.blocks.fingerprint}-{self.ids}"

    @property
    def sequence_length(self) -> int:
        """Tokens per block."""
        return self.blocks.sequence_length


@dataclass(frozen=True, kw_only=True)
class Study:
    """A teacher that is pruned and distilled, and the text that this is done and measured on."""

    folder: str
    """Directory of the workspace for measured figures."""
    context: Context
    parent: SourceModel
    """The teacher as the model that is pruned."""
    data: DataConfig
    samples: int
    """Number of calibration blocks."""
    blocks: int
    """Number of held-out blocks that results are measured on."""

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
        """Directory for the figures of this teacher and text at this number of calibration blocks."""
        name = f"{self.parent.fingerprint[:8]}-{self.samples}-{self.text_key}"
        return self.context.workspace.root / self.folder / name

    @cached_property
    def text_key(self) -> str:
        """Short name of the text."""
        return canonical_json.digest([self.train.fingerprint, self.validation.fingerprint])[:8]

    def path_of(self, name: str) -> Path:
        """File that `remembered` keeps these figures in."""
        return self.directory / f"{name}-{self.blocks}.json"

    def remembered(self, name: str, compute: Callable[[], Figures]) -> Figures:
        """Figures from `compute`, stored on disk, so that an interrupted study does not compute them again."""
        path = self.path_of(name)
        if not path.is_file():
            io.make_dirs(path.parent)
            figures = compute()
            io.replace(path, canonical_json.pretty(figures))
            print(name, {key: value for key, value in figures.items() if key != "curve"}, flush=True)
        return strict_json.load(path)

    def scores(self, seed: int = 0) -> Artifact:
        """Importance scores. Each seed draws other calibration samples."""
        config = ImportanceConfig(samples=self.samples, seed=seed, layer_removal=False)
        return importance.run(self.context, self.parent, self.data, config)

    def builder(self, ranking: Ranking, seed: int = 0) -> ChildBuilder:
        """Builder of children whose channels are ranked by the scores of a seed."""
        return ChildBuilder(self.context, self.parent, read_scores(self.scores(seed), self.parent), ranking)

    def trained(self, name: str, student: Any, config: DistillConfig) -> TrainResult:
        """Train `student` in place on the teacher's predictions. An interrupted run continues."""
        scratch = self.directory / name
        teacher = hf.load_model(self.parent.path)  # a copy, because training may cast it
        result = train(student, teacher, self.train, self.validation, config, scratch)
        io.remove_tree(scratch)
        return result


def study_model(name: str, workspace: Workspace) -> str | Path:
    """Model of a name: the teacher that ships, a pretrained model, or the teacher of bench_teacher.py in a workspace.
    InputError if that was not trained."""
    if name == DEMO_TEACHER:
        return DEMO_TEACHER
    return real_model(name) if name in MODELS else workspace.require("teacher", "python scripts/bench_teacher.py").path


def by_name(names: Sequence[str], numbers: Sequence[int], option: str) -> dict[str, int]:
    """Number of each model: one for all of them, or one each. InputError for another count."""
    if len(numbers) not in (1, len(names)):
        raise InputError(f"{option} has {len(numbers)} numbers for {len(names)} models: give one, or one for each")
    return dict(zip(names, numbers if len(numbers) == len(names) else [*numbers] * len(names), strict=True))


def evenly_pruned(parent: Shape, share: float) -> Shape:
    """Shape that keeps a share of the non-embedding parameters, with hidden and ffn pruned in proportion."""
    budget = Budget(target=int(share * parent.parameters("non_embedding")), count="non_embedding")
    return feasible(parent, {"hidden": (), "ffn": ()}, budget)[0].shape


def mean_and_interval(values: Sequence[float], form: str = "{:.3f}") -> str:
    """Mean and, for two or more values, half the width of its 95 % interval by Student's t."""
    mean, half = mean_of_runs(values)
    return form.format(mean) + ("" if half is None else f" ± {form.format(half).removeprefix('+')}")


def best_rate(kl_of: Callable[[float], float]) -> float:
    """Learning rate with the lowest KL, of `FIRST_RATES` and neighbors in `RATES` until neither of the best is better.
    `kl_of` gives the KL after a short run at a rate."""
    tried = {rate: kl_of(rate) for rate in FIRST_RATES}
    while True:
        best = min(tried, key=lambda rate: tried[rate])
        at = RATES.index(best)
        new = [rate for rate in RATES[max(at - 1, 0) : at + 2] if rate not in tried]
        if not new:
            return best
        tried |= {rate: kl_of(rate) for rate in new}


def reached(curve: Sequence[dict[str, float]], figure: str, target: float) -> float:
    """Tokens after which a curve is at the target, interpolated between evaluations; infinity if it never is."""
    before = None
    for point in curve:
        if point[figure] <= target:
            if before is None:
                return 0.0
            share = (before[figure] - target) / (before[figure] - point[figure])
            return before["tokens"] + share * (point["tokens"] - before["tokens"])
        before = point
    return float("inf")


def write_page(path: Path, lines: Iterable[str]) -> None:
    """Write lines of Markdown to a file and print them."""
    text = "\n".join(lines).rstrip() + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    print(text)


@contextmanager
def svg_figure(path: Path, size_inches: tuple[float, float], settings: Mapping[str, Any]) -> Iterator[Figure]:
    """Figure to draw in, saved as SVG when the block ends. The bytes depend only on the drawing."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(settings)
        figure, text = Figure(figsize=size_inches, layout="constrained"), StringIO()
        yield figure
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line.rstrip()}\n" for line in text.getvalue().splitlines()))
