"""`minitron correct`: train the original a little on the text that it is to teach on."""

from minitron_cli.cli import console, copy_out, session, torchrun, training
from minitron_cli.cli.options import Arguments, ComputeOptions, DataOptions, Output, RecipeOption, Seed
from minitron_cli.cli.training import Training


def correct(
    how: ComputeOptions,
    text: DataOptions,
    training_options: Training,
    words: Arguments = None,
    recipe: RecipeOption = None,
    seed: Seed = None,
    output: Output = None,
) -> None:
    """Train the original on the text before it teaches on it: teacher correction.

    Worth it where the model was trained on other text than --data. `minitron distill` learns from the result.

    For example: minitron correct llama-3.1-8b --data 'corpus/*.jsonl' --tokens 1B --lr 2e-5
    """
    copy_out.check_new(output)
    torchrun.if_asked(training_options.gpus)
    flags = training.flags(training_options, seed)
    with session.opened(how, "correct", words, recipe=recipe, text=text, flags=flags) as at:
        from minitron_cli.distill.config import CorrectConfig
        from minitron_cli.stages import correct as stage

        artifact = stage.run(at.context, at.parent(), at.data(), at.section(CorrectConfig, "correct"))
    copy_out.copy(artifact, output)
    console.artifact(artifact, how)
