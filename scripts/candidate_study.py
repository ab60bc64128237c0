"""Compare ways to choose among the shapes that a budget admits: the loss of what each chooses, and its CPU time.

    python scripts/bench_teacher.py
    TEXT="--text a.txt b.txt --validation c.txt"
    python scripts/bench_teacher.py --name prose --hidden 128 --tokens 2000000 $TEXT
    python scripts/candidate_study.py --names bench prose $TEXT
    python scripts/candidate_study.py --names gemma --models ~/gemma-3-270m $TEXT --targets 75% --most 3

The text options apply to all models except bench; `--models` gives the directories of models that are no teachers of
`bench_teacher.py`, one for each of the last names. Of every target, the shapes that scale all axes most evenly and
those that retain most importance are built plain, rotated and repaired in full, and scored on 64 held-out blocks. Then
each way chooses; the children it chose, repaired in full, are compared on other blocks. Measured figures are kept in
runs/NAME/candidate-study, so an interrupted study continues. Writes docs/results/candidates.md.
"""

import argparse
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from bench_teacher import bench_data
from studies import Figures, Study, write_page

from minitron_cli.artifacts.build import Context
from minitron_cli.artifacts.workspace import Workspace
from minitron_cli.data.batches import evenly_spaced
from minitron_cli.evaluate.perplexity import perplexity
from minitron_cli.evaluate.statistics import Items, compare
from minitron_cli.importance.config import ImportanceConfig
from minitron_cli.inputs.source_model import open_source_model
from minitron_cli.model.residual_stream import rotation_obstacle
from minitron_cli.prune.child_builder import ChildBuilder
from minitron_cli.prune.config import Budget, PruneConfig, Ranking, RepairName
from minitron_cli.repair import repaired_plan
from minitron_cli.repair.closed_form import SampledBlocks
from minitron_cli.search.feasible import Candidate, feasible
from minitron_cli.search.rank import kendall_tau
from minitron_cli.search.retained_importance import RetainedImportance

BLOCKS = 64  # held-out blocks of the longest look, and as many others that the choices are compared on
FEW = 8  # blocks of a cheap look
LOOKS: dict[str, RepairName] = {"plain": "none", "rotated": "rotate", "repaired": "auto"}
AXES = {"hidden": (), "ffn": ()}


@dataclass(frozen=True)
class Way:
    """Way to choose: shapes that are scored, their repair before that, and the number of blocks."""

    shortlist: str
    look: str
    blocks: int

    @property
    def name(self) -> str:
        """Description in a table."""
        return f"{self.shortlist}, {self.look}, {self.blocks} blocks"


TODAY = Way("even", "repaired", BLOCKS)
WAYS = (
    TODAY,
    *(Way("even", look, FEW) for look in LOOKS),
    *(Way("retaining", look, blocks) for look in LOOKS for blocks in (FEW, BLOCKS)),
    Way("all", "repaired", BLOCKS),
)


@dataclass(frozen=True, kw_only=True)
class CandidateStudy(Study):
    """A model, its text and a target, with what is measured of every shape."""

    name: str
    """Name of the model on the page."""
    target: str
    most: int
    """Number of shapes in each of the two short lists."""

    @cached_property
    def plain(self) -> ChildBuilder:
        """Builder of plain children."""
        return self.builder(Ranking())

    @cached_property
    def looks(self) -> dict[str, ChildBuilder]:
        """Builders of candidates by look, those that the model allows. What serves all candidates is done already."""
        obstacle = rotation_obstacle(self.parent.shape)
        return {look: self._looking(repair) for look, repair in LOOKS.items() if not (obstacle and repair == "rotate")}

    def _looking(self, repair: RepairName) -> ChildBuilder:
        if repair == "none":
            return self.plain
        config = PruneConfig(repair=repair, repair_samples=self.samples)
        calibration = ImportanceConfig(samples=self.samples)
        scratch = self.directory / "repair"
        builder = repaired_plan.with_repair(self.plain, config, "all", calibration, self.train, scratch)
        if repair == "rotate":
            assert builder.repair
            builder.repair(builder.plan(next(iter(self.candidates.values())).shape))
        return builder

    @cached_property
    def shortlists(self) -> dict[str, list[str]]:
        """Names of the shapes of each short list."""
        admitted = feasible(self.parent.shape, AXES, Budget(target=self.target))
        ordered = RetainedImportance(self.parent.shape, self.plain.scores, Ranking()).order(admitted)
        lists = {"even": admitted[: self.most], "retaining": ordered[: self.most]}
        names = {title: [candidate.name for candidate in some] for title, some in lists.items()}
        return {**names, "all": list(dict.fromkeys(name for some in names.values() for name in some))}

    @cached_property
    def candidates(self) -> dict[str, Candidate]:
        """Shapes of all short lists by name."""
        admitted = feasible(self.parent.shape, AXES, Budget(target=self.target))
        return {c.name: c for c in admitted if c.name in self.shortlists["all"]}

    @cached_property
    def scored(self) -> SampledBlocks:
        """Blocks that candidates are scored on, evenly spaced; a cheap look takes some of them."""
        return SampledBlocks(self.validation, evenly_spaced(len(self.validation), BLOCKS))

    @cached_property
    def others(self) -> SampledBlocks:
        """Blocks that choices are compared on, none of which a candidate is scored on."""
        rest = sorted(set(range(len(self.validation))) - set(self.scored.ids))
        return SampledBlocks(self.validation, [rest[i] for i in evenly_spaced(len(rest), BLOCKS)])

    def of(self, name: str) -> Figures:
        """Scores and CPU seconds of a shape under every look, and its loss on the other blocks."""
        safe = name.replace(" ", "").replace(",", "-").replace("=", "")
        return self.remembered(f"{safe}-{self.target}", lambda: self._measured(name))

    def _measured(self, name: str) -> Figures:
        found: Figures = {}
        for look, builder in self.looks.items():
            child, build_seconds = clocked(lambda b=builder: b.candidate(self.candidates[name].shape))
            scores = {}
            for blocks in (FEW, BLOCKS):
                result, seconds = clocked(lambda c=child, n=blocks: perplexity(c, self.scored, max_blocks=n))
                scores[str(blocks)] = {"loss": result.loss_nats, "seconds": seconds}
            found[look] = {"build_seconds": build_seconds, "scores": scores}
            if look == "repaired":
                items = perplexity(child, self.others).items
                found["others"] = {"values": items.values, "weights": items.weights, "groups": items.groups}
        return found

    def chosen(self, way: Way) -> str:
        """Name of the shape that a way chooses: the lowest loss."""
        return min(self.shortlists[way.shortlist], key=lambda name: self._loss(name, way))

    def _loss(self, name: str, way: Way) -> float:
        return float(self.of(name)[way.look]["scores"][str(way.blocks)]["loss"])

    def seconds(self, way: Way) -> float:
        """CPU seconds of a choice, without what is done once for the child as well."""
        looks = [self.of(name)[way.look] for name in self.shortlists[way.shortlist]]
        return sum(look["build_seconds"] + look["scores"][str(way.blocks)]["seconds"] for look in looks)

    def others_of(self, name: str) -> Items:
        """Loss of a shape's repaired child on the other blocks."""
        return Items(**self.of(name)["others"], part="block")

    def ways(self) -> list[Way]:
        """Ways that the model allows."""
        return [way for way in WAYS if way.look in self.looks]


def clocked(compute: Callable[[], Any]) -> tuple[Any, float]:
    """Value of `compute`, and the CPU seconds that it took."""
    started = time.process_time()
    value = compute()
    return value, time.process_time() - started


def page(studies: Sequence[CandidateStudy], command: str) -> Iterator[str]:
    """Lines of the Markdown page."""
    yield from (
        "# Choosing among the shapes that a budget admits",
        "",
        "The shapes that scale hidden and ffn most evenly (*even*) and those that retain most importance",
        f"(*retaining*) are built plain, rotated, and repaired in full, and scored on {FEW} and on {BLOCKS} held-out",
        "blocks. A way to choose takes the lowest loss; the first way is the choice before candidates were looked at",
        f"cheaply, and *retaining, rotated, {FEW} blocks* is the default.",
        "",
        "- Loss and regret: of the child that a way chooses, repaired in full, on as many other blocks, in nats per",
        "  token; regret is the difference from the first way's choice, with its 95 % interval over documents.",
        "- CPU seconds: of the choice, with the repair of every candidate where there is one; without what the child",
        "  needs in any case, its repair and the second moments that all rotations share.",
        "",
        f"Regenerate: `{command}`",
    )
    for study in studies:
        yield from ("", f"## {study.name}, {study.target}", "", *table(study), "", *agreement(study))


def table(study: CandidateStudy) -> Iterator[str]:
    """Table with a row for each way to choose."""
    count = study.parent.shape.parameters()
    yield f"{count:,} parameters; {len(study.shortlists['all'])} shapes, at most {study.most} in each list."
    yield from ("", "| way to choose | chooses | loss | regret | CPU s |", "|---|---|---|---|---|")
    first = study.others_of(study.chosen(TODAY))
    for way in study.ways():
        name = study.chosen(way)
        items = study.others_of(name)
        yield f"| {way.name} | {name} | {items.mean:.4f} | {regret(items, first)} | {study.seconds(way):.1f} |"


def regret(items: Items, first: Items) -> str:
    """Difference of two means with its interval; 0 for the same child."""
    found = compare(items, first)
    if found.difference == 0:
        return "0"
    half = "" if found.high is None else f" ± {(found.high - found.difference):.4f}"
    return f"{found.difference:+.4f}{half}"


def agreement(study: CandidateStudy) -> Iterator[str]:
    """Kendall's tau of each look with the loss of the repaired children on the other blocks, over all shapes."""
    names = study.shortlists["all"]
    goal = [study.others_of(name).mean for name in names]
    retained = RetainedImportance(study.parent.shape, study.plain.scores, Ranking())
    kept = [-retained(study.candidates[name].shape) for name in names]
    taus = {"importance kept": kendall_tau(kept, goal)}
    for look in study.looks:
        for blocks in (FEW, BLOCKS):
            losses = [study._loss(name, Way("all", look, blocks)) for name in names]
            taus[f"{look}, {blocks} blocks"] = kendall_tau(losses, goal)
    spread = max(goal) - min(goal)
    yield "Kendall's tau with the loss of the repaired children on the other blocks, over all shapes:"
    yield ""
    yield from (f"- {name}: {tau if tau is not None else math.nan:+.2f}" for name, tau in taus.items())
    yield ""
    yield f"Best and worst shape are {spread:.4f} nats apart."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", nargs="+", default=["bench"], help="workspaces in --runs-dir")
    parser.add_argument("--models", nargs="*", default=[], help="directories of models, for the last names")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"), help="directory of workspaces")
    parser.add_argument("--text", nargs="*", help="files to calibrate on, for all names but bench")
    parser.add_argument("--validation", nargs="*", help="files to measure on (default: a part of the text)")
    parser.add_argument("--targets", nargs="+", default=["75%", "50%"], help="sizes of the child")
    parser.add_argument("--most", type=int, default=8, help="number of shapes in each short list")
    parser.add_argument("--samples", type=int, default=128, help="number of calibration blocks")
    parser.add_argument("--output", type=Path, default=Path("docs/results/candidates.md"), help="page to write")
    args = parser.parse_args()
    teachers = args.names[: len(args.names) - len(args.models)]
    models = dict(zip(args.names[len(teachers) :], args.models, strict=True))
    studies = [study_of(args, name, models.get(name), target) for name in args.names for target in args.targets]
    for study in studies:
        for name in study.candidates:
            study.of(name)
    given = f"--names {' '.join(args.names)} --targets {' '.join(args.targets)} --most {args.most}"
    write_page(args.output, page(studies, f"python scripts/candidate_study.py {given}"))


def study_of(args: argparse.Namespace, name: str, model: str | None, target: str) -> CandidateStudy:
    """Study of one model and target."""
    workspace = Workspace(args.runs_dir / name)
    path = Path(model) if model else workspace.require("teacher", "make bench-teacher").path
    data = bench_data(None) if name == "bench" else bench_data(args.text, args.validation)
    return CandidateStudy(
        folder="candidate-study",
        context=Context(workspace),
        parent=open_source_model(path),
        data=data,
        samples=args.samples,
        blocks=BLOCKS,
        name=name,
        target=target,
        most=args.most,
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
