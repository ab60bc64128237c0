"""`minitron prune`: prune a model and write the smaller checkpoint."""

import re
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from minitron_cli import progress
from minitron_cli.choices import PruneMethod, RepairName, ServingLint
from minitron_cli.cli import copy_out
from minitron_cli.cli.options import (
    Arguments,
    ComputeOptions,
    Count,
    DataOptions,
    Form,
    Output,
    RecipeOption,
    Target,
    Tolerance,
)
from minitron_cli.errors import InputError

if TYPE_CHECKING:
    from minitron_cli.yaml_document import KeyPath

MOST_LAYERS = 10_000  # more than any model has; a longer range is a typing error
BY_BLOCK_IMPORTANCE = (
    "layers are ranked by Block Importance; to rank them by the perplexity without each, run `minitron importance "
    "--layer-removal` and add ranking.layers=perplexity"
)


def prune(
    how: ComputeOptions,
    text: DataOptions,
    words: Arguments = None,
    recipe: RecipeOption = None,
    target: Target = None,
    count: Count = None,
    tolerance: Tolerance = None,
    method: Annotated[
        PruneMethod | None,
        Option(help="Prune as a published method does: prints the settings that it stands for (docs/methods.md)."),
    ] = None,
    width: Annotated[
        bool, Option("--width", help="Prune hidden channels and FFN neurons to reach the target.")
    ] = False,
    depth: Annotated[bool, Option("--depth", help="Prune layers to reach the target.")] = False,
    axes: Annotated[
        str | None,
        Option(metavar="A,B", help="Prune these axes to reach the target: hidden, ffn, head, kv_head, expert, layer."),
    ] = None,
    shape: Annotated[
        str | None, Option(metavar="AXIS=SIZE,..", help="Prune to these sizes, e.g. hidden=3072,ffn=9216.")
    ] = None,
    drop_layers: Annotated[
        str | None, Option(metavar="LAYERS", help="Remove these layers, counted from 0, e.g. 15-30 or 3,5,7.")
    ] = None,
    candidates: Annotated[
        int | None, Option(min=1, help="Number of feasible shapes to score for a target.", show_default="8")
    ] = None,
    size: Annotated[
        str | None, Option(metavar="TARGET", help="Which target of a multi-target search to prune to, e.g. 50%.")
    ] = None,
    rounds: Annotated[
        int | None,
        Option(min=1, help="Number of pruning rounds; importance is scored again before each.", show_default="1"),
    ] = None,
    repair: Annotated[
        RepairName | None,
        Option(
            help="Repair the pruned weights without training: rotate the residual stream before pruning, fit each "
            "matrix to the parent's outputs by least squares, rescale the norms, write the mean of pruned inputs to "
            "biases (FLAP), merge dropped layers into those before them (LaCo), or all (rotate and least squares). "
            "auto: what the model allows.",
            show_default="auto",
        ),
    ] = None,
    untie: Annotated[
        bool,
        Option(
            "--untie",
            help="Untie the LM head. Makes the rotation exact; the added parameters count toward the target.",
        ),
    ] = False,
    serving_lint: Annotated[
        ServingLint | None,
        Option(
            help="A child that vLLM or llama.cpp would not run although it runs the parent: refuse (keep the layer "
            "pattern, prune heads with hidden), or prune as asked and warn.",
            show_default="refuse",
        ),
    ] = None,
    form: Form = None,
    output: Output = None,
) -> None:
    """Prune MODEL to a shape or a parameter target, using the scores of `minitron importance`.

    Without a shape or a target, prunes to the best shape that `minitron search` found.

    For example: minitron prune --width --target 4B -o small
    """
    from minitron_cli.cli import printing, sessions

    copy_out.check_new(output)
    flags: dict[KeyPath, Any] = {
        ("method",): method,
        ("shape",): _sizes(shape) if shape else sessions.NULL if target else None,
        ("drop_layers",): _layers(drop_layers) if drop_layers else [] if target else None,
        ("budget",): sessions.NULL if shape or drop_layers else None,
        ("budget", "target"): target,
        ("budget", "count"): count,
        ("budget", "tolerance"): tolerance,
        ("axes",): _axes(axes, width, depth),
        ("candidates",): candidates,
        ("size",): size,
        ("rounds",): rounds,
        ("repair",): repair,
        ("untie",): untie or None,
        ("serving_lint",): serving_lint,
        ("write_as",): form,
    }
    with sessions.opened(how, "prune", words, recipe=recipe, text=text, flags=flags) as session:
        from minitron_cli import api
        from minitron_cli.prune.config import PruneConfig

        config = session.section(PruneConfig, "prune")
        if (width or depth or axes) and config.budget is None:
            raise InputError("--width, --depth and --axes choose what to prune but not how much: add --target")
        is_by_default = config.ranking.layers == "block_importance" and not config.method
        if config.budget and "layer" in config.axes and is_by_default:
            progress.say(BY_BLOCK_IMPORTANCE)
        scores = session.require("importance")
        needs_text = config.budget or config.rounds > 1 or (config.repairs and config.repair != "auto")
        chosen = config.shape or config.drop_layers or config.budget
        artifact = api.prune(
            session.context,
            session.parent(),
            config,
            scores=scores,
            data=session.data() if needs_text or (config.repairs and session.names_data) else None,
            search=None if chosen else session.workspace.current("search"),
        )
    copy_out.copy(artifact, output)
    printing.artifact(artifact, how)


def _axes(axes: str | None, width: bool, depth: bool) -> list[str] | None:
    flagged = ["hidden", "ffn"] * width + ["layer"] * depth
    named = axes.split(",") if axes else flagged
    if flagged and set(named) != set(flagged):
        flag = "--width" if width else "--depth"
        raise InputError(f"{flag} prunes {','.join(flagged)} and --axes says {axes}: leave one of them out")
    return named or None


def _sizes(text: str) -> dict[str, int]:
    found = [re.fullmatch(r"\s*(\w+)\s*=\s*(\d+)\s*", part) for part in text.split(",")]
    if None in found:
        raise InputError(f"--shape {text!r}: write AXIS=SIZE, e.g. hidden=3072,ffn=9216")
    return {axis: int(size) for axis, size in (match.groups() for match in found if match)}


def _layers(text: str) -> list[int]:
    found = [re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part) for part in text.split(",")]
    if None in found:
        raise InputError(f"--drop-layers {text!r}: write layers counted from 0, e.g. 15-30 or 3,5,7")
    ends = [(int(match[1]), int(match[2] or match[1])) for match in found if match]
    for first, last in ends:
        if first > last:
            raise InputError(f"--drop-layers {text!r}: the range {first}-{last} is empty; write {last}-{first}")
        if last >= MOST_LAYERS:
            raise InputError(f"--drop-layers {text!r}: no model has a layer {last:,}; layers are counted from 0")
    return sorted({layer for first, last in ends for layer in range(first, last + 1)})
