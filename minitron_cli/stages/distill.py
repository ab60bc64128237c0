"""The distill stage: a teacher, a student and text in, the trained student out."""

from pathlib import Path

from minitron_cli.checkpoint import fingerprint
from minitron_cli.checkpoint.artifact import Artifact
from minitron_cli.data.sources import DataConfig
from minitron_cli.distill import trackers
from minitron_cli.distill.config import DistillConfig
from minitron_cli.distill.hidden import Norms, StatePair, relation_pairs, state_pairs
from minitron_cli.distill.objective import check_vocab
from minitron_cli.stages import training
from minitron_cli.stages.parent import Parent, open_parent
from minitron_cli.stages.produce import Build, Context, produce
from minitron_cli.stages.tokens import blocks_of

STAGE, VERSION = "distill", 2


def run(
    context: Context,
    teacher: Parent,
    student: Path,
    data: DataConfig,
    config: DistillConfig,
    *,
    label: str = "distilled",
) -> Artifact:
    """Train the checkpoint at `student` on the teacher's predictions; the result has its shape, names and dtypes."""
    trackers.check(config.trackers)
    start = open_parent(student, offline=context.offline)
    check_vocab(
        teacher.config, start.config, fingerprint.of_tokenizer(teacher.path), fingerprint.of_tokenizer(start.path)
    )
    train_blocks = blocks_of(context, data, "train", teacher.path)
    validation_blocks = blocks_of(context, data, "validation", teacher.path)
    pairs = _pairs(config, teacher, start)

    def build(work: Build) -> None:
        models = training.load(context, start, teacher, config)
        work.summary |= training.run_loop(
            context, work, models, train_blocks, validation_blocks, config, pairs, name=label
        )
        training.write(work, start, models.student)

    inputs = {
        "teacher": teacher.fingerprint,
        "student": start.fingerprint,
        "train": train_blocks.fingerprint,
        "validation": validation_blocks.fingerprint,
    }
    return produce(
        context, stage=STAGE, version=VERSION, config=config, inputs=inputs, build=build, label=label, together=True
    )


def _pairs(config: DistillConfig, teacher: Parent, student: Parent) -> tuple[StatePair, ...]:
    if config.hidden is None:
        return ()
    norms = Norms.of(norm.removesuffix(".weight") for norm in teacher.family.links)
    sizes = teacher.shape.sizes, student.shape.sizes
    return (
        *state_pairs(config.hidden, norms, *(s["layer"] for s in sizes)),
        *relation_pairs(config.hidden, teacher.family, *sizes),
    )
