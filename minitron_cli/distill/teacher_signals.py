"""Signals that stand in for a teacher: which ones may, and what keeps the others from it."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from minitron_cli import progress
from minitron_cli.artifacts.artifact import Artifact
from minitron_cli.artifacts.workspace import Workspace
from minitron_cli.data.batches import evenly_spaced, training_ids
from minitron_cli.data.pack import Blocks
from minitron_cli.distill.config import DistillConfig
from minitron_cli.errors import InputError
from minitron_cli.inputs.source_model import SourceModel
from minitron_cli.results.teach import SplitSignals, TeachResult
from minitron_cli.signals.config import TeachConfig, passes
from minitron_cli.signals.encoding import Encoding
from minitron_cli.signals.shards import StoredSignals

STAGE, VERSION = "teach", 3
AUTO, NEVER = "auto", "never"


@dataclass(frozen=True)
class TeacherSignals:
    """A teacher's signals of a text, in place of the teacher."""

    artifact: Artifact
    result: TeachResult

    @classmethod
    def of(cls, artifact: Artifact) -> "TeacherSignals":
        """Signals in an artifact of the teach stage. ArtifactError if they are of another version."""
        return cls(artifact, artifact.result(TeachResult))

    @property
    def fingerprint(self) -> str:
        """Hash of their content."""
        return self.artifact.fingerprint

    def given(self, workspace: Workspace) -> dict[str, dict[str, str]]:
        """What `Workspace.given` records of them: their directory, unless this workspace made them."""
        path = self.artifact.path.resolve()
        return {} if path.is_relative_to(workspace.root.resolve()) else {self.fingerprint: {"signals": str(path)}}

    @cached_property
    def train(self) -> StoredSignals:
        """Those of the training text."""
        return self._stored(self.result.train)

    @cached_property
    def validation(self) -> StoredSignals:
        """Those of held-out text, of temperature 1."""
        return self._stored(self.result.validation, temperature=1.0)

    def _stored(self, split: SplitSignals, **changes: float) -> StoredSignals:
        paths = [self.artifact.path / name for name in split.shards]
        return StoredSignals(
            paths, encoding(TeachConfig(**self.artifact.manifest.config), self.result.vocab, **changes)
        )


def encoding(config: TeachConfig, vocab: int, *, temperature: float | None = None) -> Encoding:
    """Encoding of signals that are made with these settings."""
    return Encoding(config.signals, vocab, config.seed, temperature or config.temperature)


@dataclass(frozen=True)
class Student:
    """A training that signals may be read in, and the text that it reads."""

    config: DistillConfig
    teacher: SourceModel
    vocab: int
    """Entries of the student's vocabulary."""
    train: Blocks
    validation: Blocks | None
    """Text that is evaluated on the way."""

    @property
    def blocks(self) -> int:
        """Blocks that the training reads, repeated ones included."""
        return self.config.total_steps(self.train.sequence_length) * self.config.batch_size

    def signals(self, workspace: Workspace) -> TeacherSignals | None:
        """Signals to learn from; None if the teacher has to run, or is not needed.

        Where there are signals and none fits, one sentence says what keeps the last made ones from it: an InputError if
        the settings name them.
        """
        config = self.config
        if not config.needs_teacher or config.signals == NEVER:
            return None
        reason = ""
        for artifact in _candidates(workspace, config.signals):
            found = TeacherSignals.of(artifact)
            problem = next(self._problems(found), "")
            if not problem:
                progress.say(f"{config.section}: the teacher does not run: {found.result.what} in {artifact.path}")
                self._say_repeats(found)
                return found
            reason = reason or f"the signals in {artifact.path} {problem}"
        if reason and config.signals != AUTO:
            raise InputError(f"{config.section}.signals: {reason}")
        if reason:
            progress.say(f"{config.section}: the teacher runs: {reason}")
        return None

    def _problems(self, signals: TeacherSignals) -> Iterator[str]:
        """What keeps these signals from standing in for the teacher, each as the end of a sentence."""
        inputs, made = signals.artifact.manifest.inputs, signals.result
        if signals.artifact.manifest.stage_version != VERSION:
            yield "were made by another version of minitron: run `minitron teach` again"
            return
        if whole := self.config.needs_whole_teacher:
            yield whole
        for kind, temperature in self.config.temperatures.items():
            if temperature != made.temperature:
                yield f"are of temperature {made.temperature:g}, and {kind} has {temperature:g}"
        if inputs["teacher"] != self.teacher.fingerprint:
            yield f"are of another teacher than {self.teacher.name}"
        if inputs["train"] != self.train.fingerprint:
            yield "are of another training text, tokenizer, block length or loss mask"
            return
        if made.vocab > self.vocab:
            yield f"are of a vocabulary of {made.vocab:,} entries, and the student has {self.vocab:,}"
        if missing := self._missing(signals):
            yield f"lack {missing:,} of the blocks that this run reads: run `minitron teach` with tokens={self.tokens}"
        if self.validation is not None and self._lacks_held_out(signals):
            yield "are of other held-out blocks: make them with the same held-out text and eval_blocks"

    @property
    def tokens(self) -> int:
        """Length of the training."""
        return self.blocks * self.train.sequence_length

    def _missing(self, signals: TeacherSignals) -> int:
        total = len(self.train)
        if signals.result.train.blocks == total:
            return 0
        read = training_ids(self.config.seed, 0, min(self.blocks, total), total)
        return sum(block not in signals.train for block in read)

    def _lacks_held_out(self, signals: TeacherSignals) -> bool:
        assert self.validation is not None
        if signals.artifact.manifest.inputs["validation"] != self.validation.fingerprint:
            return True
        wanted = evenly_spaced(len(self.validation), self.config.eval_blocks)
        return any(block not in signals.validation for block in wanted)

    def _say_repeats(self, signals: TeacherSignals) -> None:
        count, made = passes(self.blocks, len(self.train)), signals.result
        if made.kind == "sampled" and count > made.epochs:
            progress.say(
                f"{self.config.section}: {count} passes over the text repeat the draws of {made.epochs}; make signals "
                f"with epochs={count} for draws of their own"
            )


def _candidates(workspace: Workspace, named: str) -> Iterator[Artifact]:
    """Signals that the settings name; else those of the workspace, the last made first."""
    if named != AUTO:
        artifact = Artifact.open(Path(named))
        if artifact.stage != STAGE:
            raise InputError(f"{named} holds no signals: give a directory that `minitron teach` wrote")
        yield artifact
        return
    current = workspace.current(STAGE)
    if current:
        yield current
        yield from (other for other in reversed(workspace.artifacts(STAGE)) if other.key != current.key)
