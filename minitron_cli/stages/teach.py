"""Teach stage: reads a teacher and a text, stores what the teacher says of it for any number of students."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from minitron_cli import progress
from minitron_cli.artifacts import file_hashes, manifest
from minitron_cli.artifacts.artifact import Artifact
from minitron_cli.artifacts.build import Context, StageBuild, produce
from minitron_cli.checkpoint import hf
from minitron_cli.cost.compute import model_size
from minitron_cli.data.batches import evenly_spaced, training_ids
from minitron_cli.data.pack import Blocks
from minitron_cli.data.sources import DataConfig
from minitron_cli.data.split import SplitName
from minitron_cli.distill import short_runs, teacher_signals
from minitron_cli.distill.config import DistillConfig
from minitron_cli.distill.distributed import ProcessGroup, resolve_precision
from minitron_cli.distill.teaching import MadeShard, Piece, ShardStore, Teacher, pieces
from minitron_cli.errors import ArtifactError, RecipeError
from minitron_cli.inputs.source_model import SourceModel
from minitron_cli.inputs.token_blocks import blocks_of, given_texts
from minitron_cli.price import subject
from minitron_cli.price import teach as work_of
from minitron_cli.price.offer import compute_dtype, offered
from minitron_cli.results.price import Price
from minitron_cli.results.teach import SplitSignals, TeachResult
from minitron_cli.signals.config import Sampled, TeachConfig, passes
from minitron_cli.signals.encoding import Encoding

STAGE, VERSION, LABEL = teacher_signals.STAGE, teacher_signals.VERSION, "signals"
SPLITS: tuple[SplitName, ...] = ("train", "validation")


def run(
    context: Context,
    teacher: SourceModel,
    data: DataConfig,
    config: TeachConfig,
    *,
    training: DistillConfig | None = None,
) -> Artifact:
    """Store a teacher's signals of the training text, and of the held-out text that students are evaluated on.

    `training`: the distillation that they are for, which gives what the settings leave out.
    """
    texts = {split: blocks_of(context, data, split, teacher.path) for split in SPLITS}
    config = _resolved(config, training, texts["train"])
    making = _Making(context, teacher, config, texts)
    return produce(
        context,
        stage=STAGE,
        version=VERSION,
        config=config,
        inputs=making.inputs,
        build=making.build,
        label=LABEL,
        forecast=making.forecast,
        price=making.price,
        given=lambda: {teacher.fingerprint: teacher.name, **given_texts(data, texts.values())},
        together=True,
    )


def _resolved(config: TeachConfig, training: DistillConfig | None, blocks: Blocks) -> TeachConfig:
    """Settings whose length is that of whole steps; what they leave out is taken from the training, if one is given."""
    if training is None and config.tokens is None:
        return config
    own = {"tokens": config.tokens, "steps": None, "warmup_steps": 0} if config.tokens else {}
    if training and config.tokens:
        _check_fills_a_step(config.tokens, training, blocks.sequence_length)
    asked = (training or DistillConfig()).model_copy(update=own)
    fitted, _ = short_runs.fitted(asked, blocks.sequence_length, len(blocks))
    tokens = fitted.total_steps(blocks.sequence_length) * fitted.batch_size * blocks.sequence_length
    given: dict[str, Any] = {}
    if training:
        temperature = next(iter(training.temperatures.values()), config.temperature)
        given = {"seed": training.seed, "eval_blocks": training.eval_blocks, "temperature": temperature}
    left_out = {name: value for name, value in given.items() if name not in config.model_fields_set}
    return config.model_copy(update={"tokens": tokens, **left_out})


def _check_fills_a_step(tokens: int, training: DistillConfig, length: int) -> None:
    """RecipeError if the training that signals are for is less than one step of the batch that is set."""
    batch = training.batch_size
    if "batch_size" in training.model_fields_set and batch > 1 and tokens < batch * length:
        raise RecipeError(
            f"teach.tokens {tokens:,} is less than one step of distill.batch_size {batch:,} x {length:,} tokens: raise "
            "teach.tokens, or leave it out to have signals for the whole training"
        )


@dataclass(frozen=True)
class _Making:
    """Making one teacher's signals."""

    context: Context
    teacher: SourceModel
    config: TeachConfig
    texts: Mapping[SplitName, Blocks]

    @property
    def inputs(self) -> dict[str, str]:
        fingerprints: dict[str, str] = {split: blocks.fingerprint for split, blocks in self.texts.items()}
        return {"teacher": self.teacher.fingerprint, **fingerprints, "dtype": self.context.dtype}

    @property
    def _length(self) -> int:
        return self.texts["train"].sequence_length

    @cached_property
    def _blocks(self) -> dict[SplitName, list[int]]:
        """Blocks of each split that the teacher reads."""
        total, held_out = (len(self.texts[split]) for split in SPLITS)
        read = total if self.config.tokens is None else min(total, -(-self.config.tokens // self._length))
        ids = list(range(total)) if read == total else sorted(training_ids(self.config.seed, 0, read, total))
        return {"train": ids, "validation": evenly_spaced(held_out, self.config.eval_blocks)}

    @cached_property
    def _epochs(self) -> int:
        """Passes with draws of their own."""
        if not isinstance(self.config.signals, Sampled):
            return 1
        total = len(self.texts["train"])
        read = -(-self.config.tokens // self._length) if self.config.tokens else total
        return self.config.epochs or passes(read, total)

    def _encoding(self, split: str) -> Encoding:
        """Encoding of a split; held-out text is always evaluated at a temperature of 1."""
        vocab, temperature = self.teacher.shape.sizes["vocab"], None if split == "train" else 1.0
        return teacher_signals.encoding(self.config, vocab, temperature=temperature)

    @cached_property
    def _pieces(self) -> list[Piece]:
        epochs = {"train": self._epochs, "validation": 1}
        return [p for split in SPLITS for p in pieces(split, self._blocks[split], self._length, epochs[split])]

    def _work(self) -> work_of.Teaching:
        return work_of.Teaching(
            teacher=subject.of_source(self.teacher, self.context.dtype),
            config=self.config,
            length=self._length,
            blocks=len(self._blocks["train"]),
            held_out_blocks=len(self._blocks["validation"]),
            epochs=self._epochs,
            compute_dtype=compute_dtype(self.config, self.context.device),
        )

    def forecast(self) -> dict[str, Any]:
        """What is stored, for a dry run."""
        making = self._work()
        return {
            "signals": str(self.config.signals),
            "passes with draws of their own": self._epochs,
            "blocks": making.blocks,
            "about bytes per token": round(making.token_bytes, 1),
            "about gigabytes": round(making.size_bytes / 1e9, 3),
            "cheaper than a live teacher from pass": work_of.pays_from(self.price()),
        }

    @cached_property
    def _price(self) -> Price:
        return offered(self.context, STAGE, work_of.work(self._work()))

    def price(self) -> Price:
        """What it takes."""
        return self._price

    def build(self, work: StageBuild) -> TeachResult:
        """Make every shard that is not there yet, each in one of the processes."""
        group = ProcessGroup(self.context.device)
        store = ShardStore(work.scratch / "shards")
        if group.rank == 0 and not self.context.overwrite:
            self._keep_sound_ones(store)
        group.barrier()
        self._make(store, group)
        group.barrier()
        made = [self._found(store, piece) for piece in self._pieces]
        group.barrier()
        for shard in made if group.rank == 0 else []:  # what the others write is discarded
            work.link(shard.path, work.path / shard.path.name, shard.record)
        group.barrier()  # the first process removes the scratch directory
        return self._result(made)

    def _make(self, store: ShardStore, group: ProcessGroup) -> None:
        """Make this process's shards."""
        mine = [p for p in self._pieces[group.rank :: group.size] if not store.find(p)]
        if not mine:
            return
        precision = resolve_precision(self.config.precision, group.device)
        model = hf.load_model(self.teacher.path, device=str(group.device), dtype=self.context.dtype)
        teacher = Teacher(model, group.device, precision, self.config.batch_size)
        with progress.track("teach", sum(len(piece.blocks) for piece in mine), "blocks") as step:
            for piece in mine:
                encoding = self._encoding(piece.split)
                blocks = self.texts["train" if piece.split == "train" else "validation"]
                store.put(piece, teacher.signals(blocks, piece, encoding, step), encoding)

    def _keep_sound_ones(self, store: ShardStore) -> None:
        """Keep the undamaged shards of a damaged artifact of the same settings and inputs."""
        key = manifest.key_of(STAGE, VERSION, self.config.model_dump(mode="json"), self.inputs)
        directory = self.context.workspace.stage_dir(STAGE) / f"{LABEL}-{key[:8]}"
        try:
            old = manifest.read(directory)
        except ArtifactError:
            return
        for piece in self._pieces if old.key == key else []:
            path = directory / piece.name
            if path.is_file() and file_hashes.records([path]) == [old.files.get(piece.name)] and not store.find(piece):
                store.take(piece, path, self._encoding(piece.split))

    def _found(self, store: ShardStore, piece: Piece) -> MadeShard:
        found = store.find(piece)
        assert found
        return found

    def _result(self, made: list[MadeShard]) -> TeachResult:
        signals, train = self.config.signals, self._encoding("train")
        splits = {
            split: [shard for shard, piece in zip(made, self._pieces, strict=True) if piece.split == split]
            for split in SPLITS
        }
        return TeachResult(
            teacher=model_size(self.teacher.shape, self._length),
            kind=signals.kind,
            count=signals.draws if isinstance(signals, Sampled) else train.top_k,
            epochs=self._epochs,
            temperature=self.config.temperature,
            vocab=train.vocab,
            sequence_length=self._length,
            train=_split(splits["train"], len(self._blocks["train"])),
            validation=_split(splits["validation"], len(self._blocks["validation"])),
        )


def _split(shards: list[MadeShard], blocks: int) -> SplitSignals:
    return SplitSignals(
        blocks=blocks,
        positions=sum(shard.positions for shard in shards),
        ids=sum(shard.ids for shard in shards),
        size_bytes=sum(shard.record.size_bytes for shard in shards),
        shards=tuple(shard.path.name for shard in shards),
    )
