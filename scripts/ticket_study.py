"""Measure tickets, their controls, supermasks and the landscape around them on a small Llama, with several seeds.

    python scripts/ticket_study.py            # text: source of the Python standard library
    python scripts/ticket_study.py --quick --text a.txt --output /tmp/pages

Writes tickets.md and landscape.md. Tickets are found on Python source, or on the files of --text, and those that were
rewound to the initial weights are trained again on English prose. Every training and every measurement is an artifact
in RUNS_DIR/ticket-study, so an interrupted study continues when it is started again.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from minitron_cli.artifacts.artifact import Artifact
from minitron_cli.artifacts.build import Context
from minitron_cli.artifacts.workspace import Workspace
from minitron_cli.data.sources import DataConfig, PythonHelp, PythonStdlib, TextFiles
from minitron_cli.distill.config import DistillConfig
from minitron_cli.distill.losses.cross_entropy import CrossEntropy
from minitron_cli.figures import Figure
from minitron_cli.inputs.source_model import open_source_model
from minitron_cli.landscape.config import LandscapeConfig
from minitron_cli.report import markdown
from minitron_cli.report.ticket import interval, supermask_table, tables
from minitron_cli.report.view import Cell, Table
from minitron_cli.results.landscape import LandscapeResult, ModelLandscape
from minitron_cli.results.ticket import SupermaskResult, TicketResult, TicketRow, TransferResult
from minitron_cli.stages import landscape, supermask, teacher, ticket, transfer
from minitron_cli.stages.teacher import TeacherConfig
from minitron_cli.study.comparison import Paired
from minitron_cli.ticket.config import SupermaskConfig, TicketConfig, TicketTraining, TransferConfig

CONTROLS = ("reinit", "shuffled", "random_mask")
DIFFERENCE = Figure("difference", "nats/token", style="fixed", is_change=True)


@dataclass(frozen=True)
class Size:
    """How much is trained and measured."""

    hidden: int
    layers: int
    vocab: int
    steps: int
    step: int
    """Step of late resetting."""
    rounds: int
    seeds: int
    directions: int
    length: int
    transferred: tuple[int, ...]
    """Rounds whose tickets are trained on another text."""
    transfer_steps: int
    """Steps of each of these trainings: four passes through a text that is small."""

    @property
    def middle(self) -> int:
        """Round whose arms the landscape is measured around."""
        return (self.rounds + 1) // 2


WHOLE = Size(
    hidden=96,
    layers=4,
    vocab=1024,
    steps=300,
    step=15,
    rounds=4,
    seeds=3,
    directions=20,
    length=128,
    transferred=(2, 4),
    transfer_steps=120,
)
QUICK = Size(
    hidden=32,
    layers=1,
    vocab=300,
    steps=30,
    step=2,
    rounds=1,
    seeds=2,
    directions=2,
    length=32,
    transferred=(1,),
    transfer_steps=20,
)
RATE = 0.5  # so that four rounds leave a sixteenth


@dataclass(frozen=True)
class TicketStudy:
    """Tickets of one shape on one text."""

    context: Context
    data: DataConfig
    size: Size

    @cached_property
    def shape(self) -> Path:
        """Directory of a model that gives the shape and the tokenizer; it is trained for one step."""
        size = self.size
        once = DistillConfig(steps=1, batch_size=1, warmup_steps=0, losses=(CrossEntropy(),), eval_blocks=1)
        config = TeacherConfig(
            vocab_size=size.vocab,
            hidden=size.hidden,
            ffn=size.hidden * 8 // 3,
            layers=size.layers,
            heads=size.hidden // 32,
            kv_heads=1,
            training=once,
        )
        return teacher.run(self.context, self.data, config).path

    @property
    def training(self) -> TicketTraining:
        """Every training on the text that tickets are found on."""
        return self.training_of(self.size.steps)

    def training_of(self, steps: int) -> TicketTraining:
        """A training of so many steps."""
        return TicketTraining(steps=steps, eval_every=max(10, steps // 20), warmup_steps=steps // 10)

    def supermasks(self, *, signed_constant: bool) -> SupermaskResult:
        """Weights that were never trained under masks of every criterion."""
        config = SupermaskConfig(signed_constant=signed_constant, seeds=self.size.seeds, training=self.training)
        made = supermask.run(self.context, open_source_model(self.shape), self.data, config)
        return made.result(SupermaskResult)

    def tickets(self, rewind: str, controls: Sequence[str]) -> Artifact:
        """Tickets rewound to one place, at every sparsity with every seed."""
        size = self.size
        config = TicketConfig(
            rounds=size.rounds,
            rate=RATE,
            rewind=rewind,
            controls=tuple(controls),
            seeds=size.seeds,
            training=self.training,
        )
        return ticket.run(self.context, open_source_model(self.shape), self.data, config)

    @cached_property
    def early(self) -> TicketResult:
        """Tickets rewound to the initial weights, with all controls."""
        return self.tickets("init", CONTROLS).result(TicketResult)

    @cached_property
    def late(self) -> TicketResult:
        """Tickets rewound to an early step, with those controls that this changes."""
        return self.tickets(f"step:{self.size.step}", ("shuffled",)).result(TicketResult)

    @cached_property
    def moved(self) -> TransferResult:
        """Tickets rewound to the initial weights on English prose, with all controls."""
        size, root = self.size, self.context.workspace.root
        paths = [root / row.path for number in size.transferred for row in self.early.of("ticket", number)]
        prose = DataConfig(
            sources=(PythonHelp(split="train"),),
            validation=(PythonHelp(split="validation"),),
            sequence_length=size.length,
        )
        config = TransferConfig(controls=(*CONTROLS, "own"), training=self.training_of(size.transfer_steps))
        return transfer.run(self.context, paths, prose, config).result(TransferResult)

    def around(self, paths: dict[str, str]) -> LandscapeResult:
        """Radii in units of the rows' sizes, sharpness and lines of models, by label."""
        models = {label: open_source_model(self.context.workspace.root / path) for label, path in paths.items()}
        config = LandscapeConfig(scale="filter", directions=self.size.directions, blocks=16)
        return landscape.run(self.context, models, self.data, config).result(LandscapeResult)


# Pages ----------------------------------------------------------------------------------------------------------------


def tickets_page(study: TicketStudy, command: str) -> Iterator[str]:
    yield "# Tickets"
    yield from _setting(study, command)
    yield (
        "Expected (Frankle & Carbin 2019; Frankle et al. 2020): a ticket is no worse than its controls at every "
        "sparsity, and late resetting is no worse than rewinding to the initial weights. For language models of this "
        "size only the first is safe to expect."
    )
    for found in (study.early, study.late):
        yield from markdown.tables(list(tables(found)))
    yield "## Differences by seed"
    yield (
        "Held-out loss of the control minus that of the ticket with the same seed, and of rewinding to the initial "
        "weights minus late resetting: mean and 95 % interval (Student's t). Above 0 is as expected."
    )
    yield markdown.table(_differences(study))
    yield from _transfer(study)
    yield "## Supermasks"
    yield (
        "Expected (Zhou et al. 2019; Ramanujan et al. 2020): learned scores are lowest, then masks by final weights of "
        "the same sign, then by all final weights; random masks change little. Published for image classifiers; that "
        "any of them beats the frequencies of tokens is not."
    )
    masks = [study.supermasks(signed_constant=signed_constant) for signed_constant in (False, True)]
    yield from markdown.tables([supermask_table(one) for one in masks])


def _transfer(study: TicketStudy) -> Iterator[str]:
    yield "## Transfer to prose"
    yield (
        "The tickets that were rewound to the initial weights, with their masks, on the English of Python's help "
        f"({study.size.transfer_steps:,} steps of 16 blocks). Expected (Morcos et al. 2019): a ticket of another text "
        "is no worse than controls of its sparsity, and no better than one that was found on its own."
    )
    yield from markdown.tables(list(tables(study.moved)))
    orders = [*((arm, "transferred") for arm in CONTROLS), ("transferred", "ticket")]  # the last: of its own text
    pairs = [(*order, number) for number in study.size.transferred for order in orders]
    yield markdown.table(Table("", COMPARED, [_difference(study.moved, *pair) for pair in pairs]))


def _difference(found: TicketResult, higher: str, lower: str, number: int) -> tuple[Cell, ...]:
    return _paired(higher, lower, found.of(higher, number), found.of(lower, number))


def _differences(study: TicketStudy) -> Table:
    rows = []
    for number in range(1, study.size.rounds + 1):
        early, late = study.early.of("ticket", number), study.late.of("ticket", number)
        rows += [_paired(f"{arm} (init)", "ticket (init)", study.early.of(arm, number), early) for arm in CONTROLS]
        rows.append(_paired("shuffled (late)", "ticket (late)", study.late.of("shuffled", number), late))
        rows.append(_paired("ticket (init)", "ticket (late)", early, late))
    return Table("", COMPARED, rows)


COMPARED = (
    Figure("expected higher"),
    Figure("expected lower"),
    Figure("weights left", style="share"),
    DIFFERENCE,
    Figure("as expected"),
)


def _paired(higher: str, lower: str, above: Sequence[TicketRow], below: Sequence[TicketRow]) -> tuple[Cell, ...]:
    """Held-out losses of two arms, compared seed by seed."""
    pair = Paired(tuple(a.loss - b.loss for a, b in zip(above, below, strict=True)))
    return (higher, lower, below[0].density, interval(pair.differences), _expected(pair))


def _expected(pair: Paired) -> str:
    return f"{pair.as_expected} of {len(pair.differences)}"


def landscape_page(study: TicketStudy, command: str) -> Iterator[str]:
    yield "# Landscape"
    yield from _setting(study, command)
    yield (
        f"Around the models of round {study.size.middle}, rewound to the initial weights: radii at +0.1 nats per token "
        f"in {study.size.directions} directions scaled by the rows' sizes, sharpness at 0.05; means and 95 % intervals "
        "over seeds. Expected: the ticket's minimum is at least as wide as its controls'. Volumes compare only among "
        "models with as many free weights, and mean little where few directions carry them."
    )
    arms = ("ticket", *CONTROLS)
    found = [study.around({arm: _path(study, arm, seed, study.size.middle) for arm in arms}) for seed in _seeds(study)]
    dense = [study.around({"dense": _path(study, "ticket", seed, 0)}) for seed in _seeds(study)]
    rows = [_around("dense", dense), *(_around(arm, found) for arm in arms)]
    yield markdown.table(Table("", AROUND, rows))
    yield "## Lines"
    yield (
        "Largest loss on the straight line minus the mean of its ends. Two trainings from unlike initial weights, or "
        "under unlike masks, are expected to have a barrier between them."
    )
    first, *others = _seeds(study)
    between = study.around({f"seed {seed}": _path(study, "ticket", seed, 0) for seed in (first, *others)})
    lines: list[tuple[Cell, ...]] = [(f"dense, {line.start} to {line.end}", line.barrier) for line in between.lines]
    for i, arm in enumerate(CONTROLS):
        barriers = [one.lines[i].barrier for one in found]
        known = [barrier for barrier in barriers if barrier is not None]
        lines.append((f"ticket to {arm}", interval(known) if known else None))
    yield markdown.table(Table("", (Figure("line"), Figure("barrier", "nats/token")), lines))


AROUND = (
    Figure("model"),
    Figure("free weights", style="count"),
    Figure("loss", "nats/token"),
    Figure("median radius"),
    Figure("sharpness", "nats/token"),
    Figure("log volume per weight", "nats"),
    Figure("effective directions"),
)


def _around(label: str, found: Sequence[LandscapeResult]) -> tuple[Cell, ...]:
    some = [one.models[label] for one in found]
    figures = (_loss, _radius, _sharpness, _volume, _effective)
    return (label, some[0].dimension, *(interval([figure(one) for one in some]) for figure in figures))


def _loss(one: ModelLandscape) -> float:
    return one.loss


def _radius(one: ModelLandscape) -> float:
    return one.median_radius


def _sharpness(one: ModelLandscape) -> float:
    return one.sharpness


def _volume(one: ModelLandscape) -> float:
    return one.log_volume_per_weight


def _effective(one: ModelLandscape) -> float:
    return one.effective_directions


def _seeds(study: TicketStudy) -> range:
    return range(study.size.seeds)


def _path(study: TicketStudy, arm: str, seed: int, number: int) -> str:
    return study.early.of(arm, number)[seed].path


def _setting(study: TicketStudy, command: str) -> Iterator[str]:
    size, parameters = study.size, open_source_model(study.shape).shape.parameters()
    yield f"    {command}"
    yield (
        f"A Llama with layers: {size.layers}, width: {size.hidden}, parameters: {parameters:,}; {size.steps:,} steps "
        f"of 16 blocks of {size.length} tokens in every training; {RATE:.0%} of the remaining weights pruned in every "
        f"round among all matrices of decoder blocks; {size.seeds} seeds, each with initial weights and an order of "
        "the text of its own."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"), help="directory of workspaces")
    parser.add_argument("--text", nargs="*", help="files to train and measure on (default: the standard library)")
    parser.add_argument("--output", type=Path, default=Path("docs/results"), help="directory of the pages")
    parser.add_argument("--quick", action="store_true", help="two seeds, one round, a few steps: does it run at all?")
    args = parser.parse_args()
    size = QUICK if args.quick else WHOLE
    sources = (TextFiles(paths=tuple(args.text)),) if args.text else (PythonStdlib(split="train"),)
    held_out = () if args.text else (PythonStdlib(split="validation"),)
    data = DataConfig(sources=sources, validation=held_out, sequence_length=size.length)
    workspace = Workspace(args.runs_dir / ("ticket-study-quick" if args.quick else "ticket-study"))
    command = f"python scripts/ticket_study.py{' --quick' * args.quick}"
    args.output.mkdir(parents=True, exist_ok=True)
    with workspace.lock():
        study = TicketStudy(Context(workspace), data, size)
        for name, page in (("tickets", tickets_page), ("landscape", landscape_page)):
            (args.output / f"{name}.md").write_text("\n\n".join(page(study, command)) + "\n")


if __name__ == "__main__":
    main()
