"""`minitron families check`: the table that a checkpoint needs, beside the nearest that there is."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument

from minitron_cli.cli.options import Show

if TYPE_CHECKING:
    from minitron_cli.inputs.family_check import FamilyCheck
    from minitron_cli.report.view import Table

HELP = "Compare checkpoints with the tables of model families."


def check(
    shown: Show,
    directory: Annotated[Path, Argument(metavar="DIR", help="Directory of a checkpoint of any model type.")],
) -> None:
    """Print the table that the checkpoint in DIR needs, tensor by tensor, beside the nearest family's.

    Reads the config and the headers of files only. A layout of a tensor that the nearest table lacks is made of the
    axes whose sizes fit, with "or" between several; docs/extending.md says what a table needs besides.

    For example: minitron families check models/new-type
    """
    from minitron_cli.cli import console
    from minitron_cli.inputs.family_check import family_check

    found = family_check(directory)
    rows = [row._asdict() for row in found.rows]
    facts = {"model_type": found.model_type, "family": found.family, "fitting": found.fitting, "tensors": found.tensors}
    console.show(shown, facts | {"rows": rows}, [_table(found)])


def _table(found: "FamilyCheck") -> "Table":
    from minitron_cli.report.view import Table

    title = f"{found.model_type}: {found.fitting:,} of {found.tensors:,} tensors are as in the table of {found.family}"
    rows = ((r.template, r.layout, str(list(r.shape)), f"{r.tensors:,}", r.state) for r in found.rows)
    return Table.of_words(title, ("name", "layout", "shape", "tensors", f"in the table of {found.family}"), rows)
