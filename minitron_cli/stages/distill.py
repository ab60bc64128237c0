"""Distill stage: trains a student on the predictions of a teacher."""

from pathlib import Path

from minitron_cli import process_rank
from minitron_cli.artifacts.artifact import Artifact
from minitron_cli.artifacts.build import Context, StageBuild, produce
from minitron_cli.data.pack import Blocks
from minitron_cli.data.sources import DataConfig
from minitron_cli.distill import short_runs, training_run
from minitron_cli.distill.config import DistillConfig
from minitron_cli.distill.hidden_state_losses import StatePair, relation_pairs, shared_norms, state_pairs
from minitron_cli.distill.teacher_signals import Student, TeacherSignals
from minitron_cli.inputs import tokenizers
from minitron_cli.inputs.source_model import SourceModel, open_source_model
from minitron_cli.inputs.token_blocks import blocks_of, given_texts
from minitron_cli.price.offer import offered_training
from minitron_cli.results.training import TrainingResult

STAGE, VERSION = "distill", 4


def run(
    context: Context,
    teacher: SourceModel,
    student: str | Path,
    data: DataConfig,
    config: DistillConfig,
    *,
    label: str = "distilled",
) -> Artifact:
    """Train the model `student` on the teacher's predictions; it keeps its shape, tensor names and dtypes."""
    training_run.check(config)
    start = open_source_model(student, offline=context.offline).written_as(config.write_as)
    tokenizers.require_same(start, teacher)
    training_run.check_masks(start, config)
    train_blocks = blocks_of(context, data, "train", start.path)
    validation_blocks = blocks_of(context, data, "validation", start.path)
    length, parameters = train_blocks.sequence_length, start.shape.parameters()
    config = short_runs.fit(config, length, len(train_blocks), parameters, process_rank.process_count())
    pairs = _pairs(config, teacher, start)
    signals = signals_for(context, config, teacher, start, train_blocks, validation_blocks)

    def build(work: StageBuild) -> TrainingResult:
        models = training_run.load(context, start, teacher, config, signals)
        result = training_run.run_loop(
            context, work, models, train_blocks, validation_blocks, config, pairs, name=label, kind=TrainingResult
        )
        training_run.write(work, start, models, config)
        return result

    inputs = {
        "teacher": teacher.fingerprint,
        "student": start.fingerprint,
        "train": train_blocks.fingerprint,
        "validation": validation_blocks.fingerprint,
        **({"signals": signals.fingerprint} if signals else _teacher_dtype(context)),
        **training_run.key_inputs(config, start.shape),
    }
    runs = None if signals else teacher
    named = {teacher.fingerprint: teacher.name}
    if not start.path.is_relative_to(context.workspace.root):
        named[start.fingerprint] = start.name
    of_signals = signals.given(context.workspace) if signals else {}
    made = produce(
        context,
        stage=STAGE,
        version=VERSION,
        config=config,
        inputs=inputs,
        build=build,
        label=label,
        price=lambda: offered_training(context, start, runs, config, train_blocks, len(validation_blocks)),
        given=lambda: {**named, **of_signals, **given_texts(data, (train_blocks, validation_blocks))},
        together=True,
    )
    training_run.warn_if_worse(made.result(TrainingResult), config.section)
    return made


def _teacher_dtype(context: Context) -> dict[str, str]:
    """Dtype in which the teacher runs, as an input, if it is not the stored one."""
    return {} if context.dtype == "auto" else {"dtype": context.dtype}


def signals_for(
    context: Context,
    config: DistillConfig,
    teacher: SourceModel,
    start: SourceModel,
    train: Blocks,
    validation: Blocks | None,
) -> TeacherSignals | None:
    """Signals that the student learns from in place of the teacher; None if the teacher has to run."""
    return Student(config, teacher, start.shape.sizes["vocab"], train, validation).signals(context.workspace)


def _pairs(config: DistillConfig, teacher: SourceModel, student: SourceModel) -> tuple[StatePair, ...]:
    if config.hidden is None:
        return ()
    norms = shared_norms(config.hidden, teacher.family, student.family)
    shapes = teacher.shape, student.shape
    return (
        *state_pairs(config.hidden, norms, *(shape.sizes["layer"] for shape in shapes)),
        *relation_pairs(config.hidden, *shapes),
    )
