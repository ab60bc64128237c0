"""Correct stage: trains the teacher on the text before it teaches.

A teacher that was not trained on similar text predicts it worse, and so does its student (Sreenivas et al. 2024, sec.
2.2). The training loop is the student's, with cross-entropy and without a teacher.
"""

from minitron_cli import process_rank, progress
from minitron_cli.artifacts.artifact import Artifact
from minitron_cli.artifacts.build import Context, StageBuild, produce
from minitron_cli.data.sources import DataConfig
from minitron_cli.distill import short_runs, training_run
from minitron_cli.distill.config import CorrectConfig
from minitron_cli.inputs.source_model import SourceModel
from minitron_cli.inputs.token_blocks import blocks_of, given_texts
from minitron_cli.price.offer import offered_training
from minitron_cli.results.training import CorrectionResult

STAGE, VERSION = "correct", 3
LABEL = "corrected"


def run(context: Context, parent: SourceModel, data: DataConfig, config: CorrectConfig) -> Artifact:
    """Train the parent on the text; the trained model has the same shape, tensor names and dtypes."""
    training_run.check(config)
    parent = parent.written_as(config.write_as)
    training_run.check_masks(parent, config)
    train_blocks = blocks_of(context, data, "train", parent.path)
    validation_blocks = blocks_of(context, data, "validation", parent.path)
    length, parameters = train_blocks.sequence_length, parent.shape.parameters()
    config = short_runs.fit(config, length, len(train_blocks), parameters, process_rank.process_count())

    def build(work: StageBuild) -> CorrectionResult:
        models = training_run.load(context, parent, None, config)
        result = training_run.run_loop(
            context, work, models, train_blocks, validation_blocks, config, name=LABEL, kind=CorrectionResult
        )
        training_run.write(work, parent, models, config)
        return result

    inputs = {
        "model": parent.fingerprint,
        "train": train_blocks.fingerprint,
        "validation": validation_blocks.fingerprint,
        **training_run.key_inputs(config, parent.shape),
    }
    made = produce(
        context,
        stage=STAGE,
        version=VERSION,
        config=config,
        inputs=inputs,
        build=build,
        label=LABEL,
        price=lambda: offered_training(context, parent, None, config, train_blocks, len(validation_blocks)),
        given=lambda: {parent.fingerprint: parent.name, **given_texts(data, (train_blocks, validation_blocks))},
        together=True,
    )
    training_run.warn_if_worse(made.result(CorrectionResult), config.section)
    return made


def of(context: Context, parent: SourceModel) -> Artifact | None:
    """Corrected teacher of the workspace; None if there is none, or none of this parent that is better than it."""
    found = context.workspace.current(STAGE)
    return found if found and found.manifest.inputs["model"] == parent.fingerprint and is_better(found) else None


def is_better(corrected: Artifact) -> bool:
    """Whether a corrected teacher is better than its parent on held-out text; warns if it is worse."""
    worse = corrected.result(CorrectionResult).worse
    if worse and worse.is_above_start:
        progress.warn(f"{corrected.path} is worse than its parent, which teaches instead; see --teacher")
        return False
    return True
