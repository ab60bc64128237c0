"""`minitron importance`: score heads, neurons, experts, channels and layers."""

from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from minitron_cli.cli import torchrun
from minitron_cli.cli.options import Arguments, ComputeOptions, DataOptions, RecipeOption, Seed

if TYPE_CHECKING:
    from minitron_cli.yaml_document import KeyPath


def importance(
    how: ComputeOptions,
    text: DataOptions,
    words: Arguments = None,
    recipe: RecipeOption = None,
    samples: Annotated[int | None, Option(min=1, help="Number of calibration samples.", show_default="1024")] = None,
    batch_size: Annotated[int | None, Option(min=1, help="Samples per forward pass.", show_default="8")] = None,
    layer_removal: Annotated[
        bool | None,
        Option(
            help="Also measure the perplexity with each layer removed, on removal_samples of the samples.",
            show_default="only if the recipe prunes layers",
        ),
    ] = None,
    layer_major: Annotated[
        bool | None,
        Option(
            "--layer-major/--resident",
            help="Keep one layer in memory at a time, or the whole model.",
            show_default="depends on memory",
        ),
    ] = None,
    pre_activation: Annotated[
        bool | None,
        Option("--pre-activation", help="Also score neurons before the activation function.", show_default="no"),
    ] = None,
    seed: Seed = None,
    gpus: Annotated[int, Option(min=1, help="Number of processes that share the samples, one accelerator each.")] = 1,
) -> None:
    """Score heads, neurons, experts, hidden channels and layers of MODEL.

    One pass over the calibration text scores every axis with every aggregation of the paper.

    For example: minitron importance llama-3.1-8b --data corpus.jsonl
    """
    torchrun.if_requested(gpus)
    from minitron_cli.cli import printing, sessions

    flags: dict[KeyPath, Any] = {
        ("samples",): samples,
        ("batch_size",): batch_size,
        ("layer_removal",): layer_removal,
        ("mode",): None if layer_major is None else "layer_major" if layer_major else "resident",
        ("pre_activation",): pre_activation,
        ("seed",): seed,
    }
    with sessions.opened(how, "importance", words, recipe=recipe, text=text, flags=flags) as session:
        from minitron_cli import api
        from minitron_cli.importance.config import ImportanceConfig

        config = session.section(ImportanceConfig, "importance").settled(removes_layers=session.prunes_layers())
        artifact = api.importance(session.context, session.parent(), session.data(), config)
    printing.artifact(artifact, how)
