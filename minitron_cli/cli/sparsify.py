"""`minitron sparsify`: make single weights of a model zero, in a pattern."""

from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from minitron_cli.choices import MaskRepair, MetricName, SparseMethod
from minitron_cli.cli import copy_out, torchrun
from minitron_cli.cli.options import Arguments, ComputeOptions, DataOptions, Form, Output, RecipeOption
from minitron_cli.errors import InputError

if TYPE_CHECKING:
    from minitron_cli.yaml_document import KeyPath


def sparsify(
    how: ComputeOptions,
    text: DataOptions,
    words: Arguments = None,
    recipe: RecipeOption = None,
    method: Annotated[
        SparseMethod | None,
        Option(help="Prune as a published method does: prints the settings that it stands for (docs/methods.md)."),
    ] = None,
    pattern: Annotated[
        str | None,
        Option(
            metavar="N:M|SHARE",
            help="Keep N of M consecutive inputs, such as 2:4; or make a share of the weights zero, such as 50%.",
            show_default="2:4",
        ),
    ] = None,
    metric: Annotated[
        MetricName | None,
        Option(
            help="Score by which weights are kept: their size; that times the norm of their input; what their loss "
            "costs when others make up for it. The first needs no text.",
            show_default="wanda",
        ),
    ] = None,
    repair: Annotated[
        MaskRepair | None,
        Option(
            help="Fit the weights that are left by least squares to what the whole matrix computes.",
            show_default="none",
        ),
    ] = None,
    layer_amounts: Annotated[
        str | None,
        Option(
            metavar="uniform|owl|AMOUNT,..",
            help="Zeros of each layer: uniform, the pattern's for all; owl, less where outliers are many (Yin et al. "
            "2023); or a share for each layer, such as 0.4,0.5,0.6 with --pattern 50%, or N:M of the pattern's M.",
            show_default="uniform",
        ),
    ] = None,
    rounds: Annotated[
        int | None,
        Option(
            min=1,
            help="Prune in so many rounds, with a training between two as the recipe's section distill says, or of "
            "round_tokens=N tokens. What is pruned once stays pruned.",
            show_default="1",
        ),
    ] = None,
    samples: Annotated[
        int | None,
        Option(min=1, help="Number of calibration samples.", show_default="128"),
    ] = None,
    gpus: Annotated[
        int, Option(min=1, help="Number of processes of the training between rounds, one accelerator each.")
    ] = 1,
    form: Form = None,
    output: Output = None,
) -> None:
    """Make weights of MODEL's decoder blocks zero: a sparse model of the same shape, with its masks beside it.

    Takes the model that is given, else the one that `minitron prune` made. No serving program of today runs such a
    model faster; `minitron distill` keeps its zeros.

    For example: minitron sparsify llama-3.1-8b --pattern 2:4 --metric sparsegpt --repair least_squares --data a.txt
    """
    from minitron_cli.cli import printing, sessions

    copy_out.check_new(output)
    torchrun.if_requested(gpus)
    flags: dict[KeyPath, Any] = {
        ("method",): method,
        ("pattern",): pattern,
        ("metric",): metric,
        ("repair",): repair,
        ("rounds",): rounds,
        ("samples",): samples,
        ("write_as",): form,
        ("layer_amounts",): _amounts(layer_amounts) if layer_amounts else None,
    }
    with sessions.opened(how, "sparsify", words, recipe=recipe, text=text, flags=flags) as session:
        from minitron_cli import api
        from minitron_cli.cli import training
        from minitron_cli.distill.config import DistillConfig
        from minitron_cli.sparse.config import SparsifyConfig

        config = session.section(SparsifyConfig, "sparsify")
        if gpus > 1 and config.rounds == 1:
            raise InputError(
                "--gpus is for the training between rounds, and there is one round: drop it, or set --rounds"
            )
        pruned = None if sessions.split(words or ())[0] else session.workspace.current("prune")
        artifact = api.sparsify(
            session.context,
            pruned or session.parent(),
            config,
            data=session.data() if config.needs_text or config.rounds > 1 else None,
            teacher=training.teacher(session, None) if config.rounds > 1 else None,
            training=session.section(DistillConfig, "distill"),
        )
    copy_out.copy(artifact, output)
    printing.artifact(artifact, how)


def _amounts(text: str) -> str | list[str]:
    return [part.strip() for part in text.split(",")] if "," in text else text
