"""`minitron landscape`: how wide the minimum of a model is, and what lies between two models."""

from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from minitron_cli.choices import DirectionScale, Subspace
from minitron_cli.cli.options import Arguments, ComputeOptions, DataOptions, Seed

if TYPE_CHECKING:
    from minitron_cli.yaml_document import KeyPath


def landscape(
    how: ComputeOptions,
    text: DataOptions,
    words: Arguments = None,
    cutoff: Annotated[
        float | None,
        Option(help="Rise of the loss, in nats per token, at which the basin ends.", show_default="0.1"),
    ] = None,
    directions: Annotated[
        int | None, Option(min=2, help="Random directions in which the distance to it is measured.", show_default="100")
    ] = None,
    blocks: Annotated[
        int | None, Option(min=1, help="Held-out blocks on which the loss is measured.", show_default="16")
    ] = None,
    scale: Annotated[
        DirectionScale | None,
        Option(
            help="Length of a step in each weight. none: one; filter: the size of its row (Li et al. 2018), for models "
            "of other weight norms; curvature: one over the root of the mean squared gradient, for steadier volumes.",
            show_default="none",
        ),
    ] = None,
    subspace: Annotated[
        Subspace | None,
        Option(
            help="Weights that are moved: all; last, those of the last decoder layer; kept, those that no mask of any "
            "model zeroes, by which a dense model and a sparse one compare.",
            show_default="all",
        ),
    ] = None,
    plane: Annotated[
        int | None,
        Option(
            min=2,
            help="Measure the loss on the plane through the first three models, with this many points from one to the "
            "next.",
            show_default="no plane",
        ),
    ] = None,
    seed: Seed = None,
) -> None:
    """Measure the loss around models of one shape, and on the line from the first to each other one.

    The volume of the basin is estimated from random directions, in logarithms; the effective number of directions says
    whether the estimate means anything, and for whole models it seldom does. Models of unlike size are refused. The
    models stay as they are.

    For example: minitron landscape runs/small/sparsify/4e2a runs/small/distill/9b1c --data 'corpus/*.jsonl'
    """
    from minitron_cli.cli import printing, sessions
    from minitron_cli.cli.evaluate import labels

    flags: dict[KeyPath, Any] = {
        ("cutoff",): cutoff,
        ("directions",): directions,
        ("blocks",): blocks,
        ("scale",): scale,
        ("subspace",): subspace,
        ("plane",): plane,
        ("seed",): seed,
    }
    models, changes = sessions.split(words or ())
    with sessions.opened(how, "landscape", [*models[:1], *changes], text=text, flags=flags) as session:
        from minitron_cli import api
        from minitron_cli.landscape.config import LandscapeConfig

        config = session.section(LandscapeConfig, "landscape")
        given = models or [session.model()]
        named = dict(zip(labels(given), map(sessions.absolute, given), strict=True))
        artifact = api.landscape(session.context, named, session.data(), config)
    printing.artifact(artifact, how)
