"""`minitron correct`: fine-tune the parent on the training text before it teaches."""

from minitron_cli.cli import copy_out, torchrun, training
from minitron_cli.cli.options import Arguments, ComputeOptions, DataOptions, Form, Output, RecipeOption, Seed
from minitron_cli.cli.training import Training


def correct(
    how: ComputeOptions,
    text: DataOptions,
    training_options: Training,
    words: Arguments = None,
    recipe: RecipeOption = None,
    seed: Seed = None,
    form: Form = None,
    output: Output = None,
) -> None:
    """Fine-tune the parent on --data before it teaches on it (teacher correction).

    Useful if the parent was trained on different text. `minitron distill` then uses the result as its teacher.

    For example: minitron correct llama-3.1-8b --data 'corpus/*.jsonl' --tokens 1B --lr 2e-5
    """
    from minitron_cli.cli import printing, sessions

    copy_out.check_new(output)
    torchrun.if_requested(training_options.gpus)
    flags = training.flags(training_options, seed) | {("write_as",): form}
    with sessions.opened(how, "correct", words, recipe=recipe, text=text, flags=flags) as session:
        from minitron_cli import api
        from minitron_cli.distill.config import CorrectConfig

        artifact = api.correct(
            session.context, session.parent(), session.data(), session.section(CorrectConfig, "correct")
        )
    copy_out.copy(artifact, output)
    printing.artifact(artifact, how)
