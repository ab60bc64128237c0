"""`minitron search`: find the best shape within a budget."""

from typing import Annotated, Any

from typer import Option

from minitron_cli.cli import session, show
from minitron_cli.cli.options import Count, How, RecipeOption, Seed, Target, Text, Tolerance, Words
from minitron_cli.document import Place


def search(
    how: How,
    text: Text,
    words: Words = None,
    recipe: RecipeOption = None,
    target: Target = None,
    count: Count = None,
    tolerance: Tolerance = None,
    axes: Annotated[str | None, Option(metavar="A,B", help="What may be cut.", show_default="hidden,ffn")] = None,
    candidates: Annotated[int | None, Option(min=1, help="Feasible shapes to score.", show_default="16")] = None,
    top: Annotated[int | None, Option(min=1, help="How many of them to retrain.", show_default="4")] = None,
    retrain_tokens: Annotated[
        str | None, Option(metavar="COUNT", help="Tokens to retrain each one on; 0 for none.", show_default="1.8B")
    ] = None,
    learning_rate: Annotated[float | None, Option("--lr", help="Peak of the retraining.", show_default="2e-4")] = None,
    batch_size: Annotated[int | None, Option(min=1, help="Sequences per retraining step.", show_default="1152")] = None,
    seed: Seed = None,
) -> None:
    """Find the best shape within a budget.

    Feasible shapes are scored zero-shot; the best few are retrained lightly, which settles their order.

    For example: minitron search --target 6B --retrain-tokens 100M
    """
    flags: dict[Place, Any] = {
        ("budget", "target"): target,
        ("budget", "count"): count,
        ("budget", "tolerance"): tolerance,
        ("space",): {axis: [] for axis in axes.split(",")} if axes else None,
        ("candidates",): candidates,
        ("retrain", "top"): top,
        ("retrain", "tokens"): retrain_tokens,
        ("retrain", "learning_rate"): learning_rate,
        ("retrain", "batch_size"): batch_size,
        ("seed",): seed,
    }
    if retrain_tokens == "0":
        flags = {place: value for place, value in flags.items() if place[0] != "retrain"} | {("retrain",): session.NULL}
    with session.opened(how, "search", words, recipe=recipe, text=text, flags=flags) as at:
        from minitron_cli.search.config import SearchConfig
        from minitron_cli.stages import search as stage

        config = at.section(SearchConfig, "search")
        scores = at.require("importance")
        artifact = stage.run(at.context, at.parent(), scores, at.data(), config)
    show.artifact(artifact, how)
