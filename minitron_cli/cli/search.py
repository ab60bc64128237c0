"""`minitron search`: find the best child shape for a parameter target."""

from typing import TYPE_CHECKING, Annotated, Any, get_args

from typer import Option

from minitron_cli.choices import Preset
from minitron_cli.cli import torchrun
from minitron_cli.cli.options import Arguments, ComputeOptions, Count, DataOptions, RecipeOption, Seed, Tolerance
from minitron_cli.errors import InputError

if TYPE_CHECKING:
    from minitron_cli.yaml_document import KeyPath


def search(
    how: ComputeOptions,
    text: DataOptions,
    words: Arguments = None,
    recipe: RecipeOption = None,
    target: Annotated[
        list[str] | None,
        Option(
            metavar="COUNT",
            help="Parameters of the child, e.g. 4B, or 50% of the parent's. Repeat for several targets.",
        ),
    ] = None,
    count: Count = None,
    tolerance: Tolerance = None,
    axes: Annotated[
        str | None, Option(metavar="A,B", help="Axes that may be pruned.", show_default="hidden,ffn")
    ] = None,
    space: Annotated[
        str | None, Option(metavar="NAME", help=f"A published search space: {', '.join(get_args(Preset))}.")
    ] = None,
    objective: Annotated[
        str | None,
        Option(metavar="NAME", help="Score to rank by: loss, kl, or a task such as winogrande:5.", show_default="loss"),
    ] = None,
    candidates: Annotated[
        int | None, Option(min=1, help="Number of feasible shapes to score.", show_default="16")
    ] = None,
    top: Annotated[int | None, Option(min=1, help="Number of candidates to retrain.", show_default="4")] = None,
    retrain_tokens: Annotated[
        str | None,
        Option(metavar="COUNT", help="Retraining tokens per candidate; 0 skips retraining.", show_default="1.8B"),
    ] = None,
    rungs: Annotated[int | None, Option(min=1, help="Number of successive-halving rungs.", show_default="3")] = None,
    learning_rate: Annotated[
        float | None, Option("--lr", help="Peak learning rate of retraining.", show_default="2e-4")
    ] = None,
    batch_size: Annotated[int | None, Option(min=1, help="Sequences per retraining step.", show_default="1152")] = None,
    seed: Seed = None,
    gpus: Annotated[
        int, Option(min=1, help="Number of processes that share the candidates, one accelerator each.")
    ] = 1,
) -> None:
    """Find the best child shape for one or more parameter targets.

    The feasible shapes that retain the most importance are scored zero-shot; the best few are retrained briefly and
    ranked again. Limits on memory, FLOPs, latency or throughput are set with constraints=[..], see docs/search.md.

    For example: minitron search --target 75% --target 50% --retrain-tokens 100M
    """
    torchrun.if_requested(gpus)
    from minitron_cli.cli import printing, sessions

    if space and axes:
        raise InputError("--space and --axes both say what is searched: leave one of them out")
    if retrain_tokens == "0":
        given = {"--top": top, "--rungs": rungs, "--lr": learning_rate, "--batch-size": batch_size}
        if unused := [flag for flag, value in given.items() if value is not None]:
            raise InputError(
                f"{unused[0]} is about retraining, which --retrain-tokens 0 leaves out: remove one of them"
            )
    first, further = (target[0], target[1:]) if target else (None, None)
    flags: dict[KeyPath, Any] = {
        ("budget", "target"): first,
        ("targets",): further,
        ("budget", "count"): count,
        ("budget", "tolerance"): tolerance,
        ("space",): space or ({axis: [] for axis in axes.split(",")} if axes else None),
        ("objective",): objective,
        ("candidates",): candidates,
        ("retrain", "top"): top,
        ("retrain", "tokens"): retrain_tokens,
        ("retrain", "rungs"): rungs,
        ("retrain", "learning_rate"): learning_rate,
        ("retrain", "batch_size"): batch_size,
        ("seed",): seed,
    }
    if retrain_tokens == "0":
        flags = {place: value for place, value in flags.items() if place[0] != "retrain"} | {
            ("retrain",): sessions.NULL
        }
    with sessions.opened(how, "search", words, recipe=recipe, text=text, flags=flags) as session:
        from minitron_cli import api
        from minitron_cli.prune.config import PruneConfig
        from minitron_cli.search.config import SearchConfig

        config, pruning = session.section(SearchConfig, "search"), session.section(PruneConfig, "prune")
        scores = session.require("importance")
        artifact = api.search(session.context, session.parent(), session.data(), config, scores=scores, prune=pruning)
    printing.artifact(artifact, how)
