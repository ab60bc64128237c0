"""`minitron prune`: cut a model, and write a smaller checkpoint."""

import re
from typing import Annotated, Any

from typer import Option

from minitron_cli.cli import console, copy_out, session
from minitron_cli.cli.options import (
    Arguments,
    ComputeOptions,
    Count,
    DataOptions,
    Output,
    RecipeOption,
    Target,
    Tolerance,
)
from minitron_cli.errors import InputError
from minitron_cli.prune.config import RepairName
from minitron_cli.yaml_document import KeyPath


def prune(
    how: ComputeOptions,
    text: DataOptions,
    words: Arguments = None,
    recipe: RecipeOption = None,
    target: Target = None,
    count: Count = None,
    tolerance: Tolerance = None,
    width: Annotated[bool, Option("--width", help="Let the target cut hidden channels and neurons.")] = False,
    depth: Annotated[bool, Option("--depth", help="Let the target cut layers.")] = False,
    axes: Annotated[
        str | None, Option(metavar="A,B", help="Let the target cut these: hidden, ffn, head, kv_head, expert, layer.")
    ] = None,
    shape: Annotated[
        str | None, Option(metavar="AXIS=SIZE,..", help="Cut to these sizes, such as hidden=3072,ffn=9216.")
    ] = None,
    drop_layers: Annotated[
        str | None, Option(metavar="LAYERS", help="Remove these layers, counted from 0, such as 15-30 or 3,5,7.")
    ] = None,
    candidates: Annotated[int | None, Option(min=1, help="Shapes that a target scores.", show_default="8")] = None,
    size: Annotated[
        str | None, Option(metavar="TARGET", help="Of a search for several sizes, the one to cut, such as 50%.")
    ] = None,
    rounds: Annotated[
        int | None, Option(min=1, help="Cut in so many rounds, scoring again before each.", show_default="1")
    ] = None,
    repair: Annotated[
        RepairName | None,
        Option(
            help="Mend the cut without training: keep the directions of the residual stream that matter instead of "
            "channels, fit each matrix to what the parent computes, or both (all). auto: as far as the model allows.",
            show_default="auto",
        ),
    ] = None,
    untie: Annotated[
        bool,
        Option(
            "--untie",
            help="Give a tied model a head of its own, which makes a rotation exact and is counted.",
        ),
    ] = False,
    output: Output = None,
) -> None:
    """Cut MODEL to a shape or a target, by the scores of `minitron importance`.

    Without a shape or a target, what `minitron search` found best is cut.

    For example: minitron prune --width --target 4B -o small
    """
    copy_out.check_new(output)
    flags: dict[KeyPath, Any] = {
        ("shape",): _sizes(shape) if shape else session.NULL if target else None,
        ("drop_layers",): _layers(drop_layers) if drop_layers else [] if target else None,
        ("budget",): session.NULL if shape or drop_layers else None,
        ("budget", "target"): target,
        ("budget", "count"): count,
        ("budget", "tolerance"): tolerance,
        ("axes",): _axes(axes, width, depth),
        ("candidates",): candidates,
        ("size",): size,
        ("rounds",): rounds,
        ("repair",): repair,
        ("untie",): untie or None,
    }
    with session.opened(how, "prune", words, recipe=recipe, text=text, flags=flags) as at:
        from minitron_cli.prune.config import PruneConfig
        from minitron_cli.stages import prune as stage

        config = at.section(PruneConfig, "prune")
        if (width or depth or axes) and config.budget is None:
            raise InputError("--width, --depth and --axes say what to cut, not how much: add --target")
        scores = at.require("importance")
        needs_text = config.budget or config.rounds > 1 or (config.repairs and config.repair != "auto")
        chosen = config.shape or config.drop_layers or config.budget
        artifact = stage.run(
            at.context,
            at.parent(),
            config,
            scores=scores,
            data=at.data() if needs_text or (config.repairs and at.names_data) else None,
            search=None if chosen else at.workspace.current("search"),
        )
    copy_out.copy(artifact, output)
    console.artifact(artifact, how)


def _axes(axes: str | None, width: bool, depth: bool) -> list[str] | None:
    named = axes.split(",") if axes else []
    named += ["hidden", "ffn"] * width + ["layer"] * depth
    return list(dict.fromkeys(named)) or None


def _sizes(text: str) -> dict[str, int]:
    found = [re.fullmatch(r"\s*(\w+)\s*=\s*(\d+)\s*", part) for part in text.split(",")]
    if None in found:
        raise InputError(f"--shape {text!r}: write AXIS=SIZE, such as hidden=3072,ffn=9216")
    return {axis: int(size) for axis, size in (match.groups() for match in found if match)}


def _layers(text: str) -> list[int]:
    found = [re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part) for part in text.split(",")]
    if None in found:
        raise InputError(f"--drop-layers {text!r}: write layers counted from 0, such as 15-30 or 3,5,7")
    ranges = (range(int(match[1]), int(match[2] or match[1]) + 1) for match in found if match)
    return sorted({layer for layers in ranges for layer in layers})
