"""`minitron correct`: train the original a little on the text that it is to teach on."""

from minitron_cli.cli import export, launch, session, show, training
from minitron_cli.cli.options import How, Output, RecipeOption, Seed, Text, Words
from minitron_cli.cli.training import Training


def correct(
    how: How,
    text: Text,
    training_options: Training,
    words: Words = None,
    recipe: RecipeOption = None,
    seed: Seed = None,
    output: Output = None,
) -> None:
    """Train the original on the text before it teaches on it: teacher correction.

    Worth it where the model was trained on other text than --data. `minitron distill` learns from the result.

    For example: minitron correct llama-3.1-8b --data 'corpus/*.jsonl' --tokens 1B --lr 2e-5
    """
    export.check_new(output)
    launch.if_asked(training_options.gpus)
    flags = training.flags(training_options, seed)
    with session.opened(how, "correct", words, recipe=recipe, text=text, flags=flags) as at:
        from minitron_cli.distill.config import CorrectConfig
        from minitron_cli.stages import correct as stage

        artifact = stage.run(at.context, at.parent(), at.data(), at.section(CorrectConfig, "correct"))
    export.copy(artifact, output)
    show.artifact(artifact, how)
