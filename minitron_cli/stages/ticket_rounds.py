"""Trainings of tickets and of their controls, each an artifact that a killed run goes on with.

Round 0 is the dense training from w_0. Round r prunes the smallest weights of the model that round r - 1 has trained,
returns the others to w_k and trains them as long as the dense model, from the first step of the schedule on.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

from minitron_cli.artifacts.artifact import Artifact
from minitron_cli.artifacts.build import Context, StageBuild, produce
from minitron_cli.checkpoint import hf
from minitron_cli.data.pack import Blocks
from minitron_cli.data.sources import DataConfig
from minitron_cli.distill import short_runs, training_run
from minitron_cli.distill.trainer import train
from minitron_cli.errors import DataError, DryRunStop
from minitron_cli.inputs.source_model import SourceModel, open_source_model
from minitron_cli.inputs.token_blocks import blocks_of
from minitron_cli.price import estimate, subject
from minitron_cli.price import training as training_work
from minitron_cli.price.estimate import Place
from minitron_cli.price.offer import compute_dtype, offered
from minitron_cli.price.work import Work
from minitron_cli.results.price import Price
from minitron_cli.results.ticket import RoundResult, StartResult
from minitron_cli.results.training import TrainingResult
from minitron_cli.sparse.mask_file import MASKS, MaskFile
from minitron_cli.ticket import masks as ticket_masks
from minitron_cli.ticket.config import Arm, RoundConfig, StartConfig, TicketConfig, TicketTraining
from minitron_cli.ticket.masks import Masks

if TYPE_CHECKING:
    from transformers import PreTrainedModel

T = TypeVar("T")
START, ROUND, VERSION = "ticket_start", "ticket_round", 2
OTHER_SEED = 10_000
"""Added to a repetition's seed for the weights of `reinit` and the draws of the random masks."""


def texts(context: Context, model: SourceModel, data: DataConfig) -> tuple[Blocks, Blocks]:
    """Training and held-out blocks. DataError if nothing is held out."""
    train_blocks, held_out = (blocks_of(context, data, split, model.path) for split in ("train", "validation"))
    if not len(held_out):
        raise DataError("the held-out data do not fill a block: hold out more text, or lower --sequence-length")
    return train_blocks, held_out


def fitted(training: TicketTraining, blocks: Blocks) -> TicketTraining:
    """Settings that fit the text and the length of the training."""
    training_run.check(training)
    return short_runs.fit(training, blocks.sequence_length, len(blocks))


@dataclass
class Pricing:
    """Price of trainings of one kind: of all that are left, said before the first of them, and of each."""

    context: Context
    model: SourceModel
    training: TicketTraining
    blocks: Blocks
    held_out: Blocks
    left: int
    """Trainings that are neither made nor found."""
    is_said: bool = False

    def of_next(self) -> Price:
        """Price of the next training."""
        if not self.is_said:
            self.is_said = True
            self.of_all()
        return self._one

    def of_all(self) -> Price:
        """Price of all that are left. EnvironmentFault if one of them cannot fit into memory."""
        return offered(self.context, TicketConfig.section, self._work.repeated(self.left, "trainings"))

    @cached_property
    def _one(self) -> Price:
        return estimate.price(self._work, Place(self.context.device, self.context.workspace.root))

    @cached_property
    def _work(self) -> Work:
        shape, shapes = self.model.shape, self.model.shape.tensors()
        return training_work.work(
            subject.of_source(self.model, "float32"),
            None,
            self.training,
            self.blocks.sequence_length,
            len(self.held_out),
            compute_dtype=compute_dtype(self.training, self.context.device),
            device=self.context.device,
            masked=sum(math.prod(shapes[name]) for name in ticket_masks.prunable(shape)),
        )


def collected(made: Iterable[T], pricing: Pricing) -> list[T]:
    """All of what trainings make. DryRunStop says how many are left, of how many steps, and what they take."""
    try:
        return list(made)
    except DryRunStop as stop:
        steps = pricing.training.total_steps(pricing.blocks.sequence_length)
        forecast = {"trainings": pricing.left, "steps of each": steps}
        raise DryRunStop(stop.stage, stop.path, stop.changed, forecast, pricing.of_all()) from None


@dataclass(frozen=True)
class Round:
    """A finished training of an arm."""

    artifact: Artifact
    seed: int
    result: RoundResult

    @classmethod
    def of(cls, artifact: Artifact) -> "Round":
        """The training that an artifact holds."""
        config = RoundConfig.model_validate(artifact.manifest.config)
        return cls(artifact, config.training.seed, artifact.result(RoundResult))

    @property
    def masks(self) -> Masks:
        return ticket_masks.read(MaskFile.open(self.artifact.file(MASKS)))

    @property
    def source(self) -> SourceModel:
        return open_source_model(self.artifact.path)


MakeMasks = Callable[[], Masks]


@dataclass(frozen=True)
class Tickets:
    """The trainings of all seeds, in the order in which they need each other."""

    context: Context
    model: SourceModel
    train_blocks: Blocks
    held_out: Blocks
    config: TicketConfig
    pricing: Pricing

    def rounds(self, seed: int) -> Iterator[Round]:
        """The dense training, then every round's ticket and its controls."""
        training, step = self._training(seed), self.config.rewind_step
        first, dense = self.dense(seed)
        yield dense
        rewound = self._start(training, step) if step else None if step is None else first
        for start, ticket in self.pruned(first, dense, rewound):
            yield ticket
            for control in self.config.controls:
                yield self.control(control, first if control == "random_mask" else start, ticket)

    def dense(self, seed: int) -> tuple[SourceModel, Round]:
        """Initial weights, and the dense training."""
        training = self._training(seed)
        first = self._start(training, 0)
        return first, self.whole(first, training)

    def whole(self, start: SourceModel, training: TicketTraining) -> Round:
        """The training of all weights."""
        every = ticket_masks.all_kept(self.model.shape)
        return self.trained("ticket", 0, training, start, lambda: every, {})

    def pruned(
        self, first: SourceModel, dense: Round, rewound: SourceModel | None
    ) -> Iterator[tuple[SourceModel, Round]]:
        """The weights that each round's ticket begins with, and its training. None: survivors stay as trained."""
        before, before_start = dense, first
        for number in range(1, self.config.rounds + 1):
            start = rewound or before.source
            ticket = self._ticket(number, self._training(dense.seed), start, before, before_start)
            yield start, ticket
            before, before_start = ticket, start

    def _training(self, seed: int) -> TicketTraining:
        return self.config.training.model_copy(update={"seed": seed})

    def _start(self, training: TicketTraining, step: int) -> SourceModel:
        """The dense model after so many steps, as a checkpoint in fp32."""
        config = StartConfig(start=self.config.start, step=step, training=training)

        def build(work: StageBuild) -> StartResult:
            model = self._new(training.seed)
            if step:
                scratch, device = work.scratch / "checkpoints", self.context.device
                blocks = self.train_blocks, self.held_out
                train(model, None, *blocks, training, scratch, resume=work.resume, device=device, until=step)
            hf.write_model(model, self.model.shape.tensors(), work.path)
            hf.copy_files(self.model.path, work.path, hf.side_files(self.model.checkpoint.without_wrapper))
            return StartResult(step=step, seed=training.seed)

        made = produce(
            self.context,
            stage=START,
            version=VERSION,
            config=config,
            inputs={"model": self.model.fingerprint, **self._texts, **(self._rules if step else {})},
            build=build,
            label=f"step-{step}-seed-{training.seed}",
        )
        return open_source_model(made.path)

    def _new(self, seed: int) -> "PreTrainedModel":
        if self.config.start == "model":
            return hf.load_model(self.model.path, device=self.context.device, dtype="float32")
        return hf.new_model(self.model.config, seed=seed).to(self.context.device)

    @property
    def _texts(self) -> dict[str, str]:
        return {"train": self.train_blocks.fingerprint, "validation": self.held_out.fingerprint}

    @property
    def _rules(self) -> dict[str, str]:
        return training_run.key_inputs(self.config.training, self.model.shape)

    def _ticket(
        self, number: int, training: TicketTraining, start: SourceModel, before: Round, before_start: SourceModel
    ) -> Round:
        """Prune what the round before has trained, and train what is left from `start`."""
        trained, config = before.source.checkpoint.read, self._config("ticket", number, training)

        def make() -> Masks:
            last = dict.fromkeys(ticket_masks.last_layer(start.shape), config.last_lost_share)
            return ticket_masks.by_magnitude(trained, before.masks, config.lost_share, config.scope, last)

        def moved(kept: Masks) -> dict[str, float | None]:
            had = before.masks
            lost = {name: had[name] & ~mask for name, mask in kept.items()}
            initial = before_start.checkpoint.read
            parts = {"moved_kept": kept, "moved_lost": lost}
            return {name: ticket_masks.moved(initial, trained, part) for name, part in parts.items()}

        return self.trained(
            "ticket", number, training, start, make, {"before": before.artifact.fingerprint}, moved=moved
        )

    def control(self, arm: Arm, start: SourceModel, ticket: Round) -> Round:
        """A control of a ticket, or with the arm `transferred` the ticket's own mask, trained from `start`."""
        training, number = self._training(ticket.seed), ticket.result.round
        seed = training.seed + OTHER_SEED + number

        def make() -> Masks:
            if arm == "shuffled":
                return ticket_masks.shuffled(ticket.masks, seed)
            return ticket_masks.random_like(ticket.masks, seed) if arm == "random_mask" else ticket.masks

        inputs = {"ticket": ticket.artifact.fingerprint}
        return self.trained(arm, number, training, start, make, inputs, new=seed if arm == "reinit" else None)

    def _config(self, arm: Arm, number: int, training: TicketTraining) -> RoundConfig:
        # The dense training prunes nothing: it is one for all rates and scopes.
        config = self.config if number else TicketConfig()
        return RoundConfig(arm=arm, round=number, rate=config.rate, scope=config.scope, training=training)

    def trained(
        self,
        arm: Arm,
        number: int,
        training: TicketTraining,
        start: SourceModel,
        make: MakeMasks,
        inputs: Mapping[str, str],
        *,
        moved: Callable[[Masks], dict[str, float | None]] = lambda kept: {},
        new: int | None = None,
    ) -> Round:
        """Train the weights of `start`, or new ones of a seed, under the masks that `make` returns."""
        label = f"{arm}-{number:02d}-seed-{training.seed}".replace("_", "-")

        def build(work: StageBuild) -> RoundResult:
            kept = make()
            masks = ticket_masks.written(kept, work.scratch / MASKS, start.shape)
            model = self._new(new) if new is not None else _loaded(start, self.context.device)
            ticket_masks.apply_(model, masks)
            loaded = training_run.LoadedModels(model, masks=masks)
            trained = training_run.run_loop(
                self.context, work, loaded, self.train_blocks, self.held_out, training, name=label, kind=TrainingResult
            )
            training_run.write(work, start, loaded, training)
            weights, left = (sum(n) for n in zip(*((m.numel(), int(m.sum())) for m in kept.values()), strict=True))
            facts = {"arm": arm, "round": number, "weights": weights, "kept": left, **moved(kept)}
            return RoundResult.model_validate({**facts, "training": trained})

        made = produce(
            self.context,
            stage=ROUND,
            version=VERSION,
            config=self._config(arm, number, training),
            inputs={"start": start.fingerprint, **inputs, **self._texts, **self._rules},
            build=build,
            label=label,
            price=self.pricing.of_next,
        )
        self.pricing.left -= 1
        return Round(made, training.seed, made.result(RoundResult))


def _loaded(start: SourceModel, device: str) -> "PreTrainedModel":
    return hf.load_model(start.path, device=device, dtype="float32")
