"""`minitron study`: run the arms of a study with several seeds and compare them."""

import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from minitron_cli import canonical_json
from minitron_cli.cli import output_file
from minitron_cli.cli.options import ComputeOptions, DataOptions

if TYPE_CHECKING:
    from minitron_cli.study.definition import StudyDefinition

QUICK_STEPS, QUICK_SEEDS = 20, 2


def study(
    how: ComputeOptions,
    text: DataOptions,
    name: Annotated[
        str | None,
        Argument(metavar="[STUDY]", help="A shipped study or a YAML file. Default: list those that ship."),
    ] = None,
    model: Annotated[
        str | None,
        Argument(metavar="[MODEL]", help="The parent. Default: the workspace's.", show_default=False),
    ] = None,
    seeds: Annotated[int | None, Option(min=2, help="Runs of each arm.", show_default="the study's, 3 or 5")] = None,
    blocks: Annotated[int, Option(min=2, help="Held-out blocks; half of them choose, half are reported.")] = 64,
    quick: Annotated[
        bool, Option("--quick", help="Two seeds and 20 steps: whether all of it runs, not what comes out.")
    ] = False,
    output: Annotated[
        Path | None,
        Option("--output", "-o", metavar="FILE", help="Also write the page to this file, with the figures beside it."),
    ] = None,
) -> None:
    """Answer a question of the papers on MODEL: recipes that differ in one choice, several seeds, paired differences.

    Finished runs are kept in the workspace, so that an interrupted study continues.

    For example: minitron study losses models/small --data corpus.txt --output losses.md
    """
    from minitron_cli.study import definition

    if name is None:
        _list(how)
        return
    asked = definition.load(name)
    figures = output.with_suffix(".json") if output else None
    output_file.check_distinct(output, figures)
    for file in (output, figures):
        output_file.check(file)
    from minitron_cli.cli import console, sessions

    words, named = [model] if model else [], text.sequence_length or asked.sequence_length
    with sessions.opened(how, "study", words, text=text) as session:
        from minitron_cli.study import page, runner

        label = Path(name).stem
        steps = QUICK_STEPS if quick else None
        data = session.data()
        data = data.model_copy(update={"sequence_length": named or data.sequence_length})
        made = runner.Runner(label, asked, session.context, session.model(), data, blocks, steps)
        count = seeds or (QUICK_SEEDS if quick else asked.seeds)
        counts = ["--seeds", count, "--blocks", blocks, *["--quick"] * quick]
        if how.dry_run:
            console.note(made.planned(count))
            return
        found = page.Found(
            label,
            asked,
            made.results(count),
            made.parent_loss(),
            made.setting(),
            session.workspace.command(
                _command(name, session.model(), replace(text, sequence_length=named), how.dtype, counts)
            ),
            made.tried(),
        )
        values = {arm: [run.model_dump(mode="json") for run in runs] for arm, runs in found.runs.items()}
    if output and figures:
        output_file.write(output, found.page().encode())
        output_file.write(figures, canonical_json.pretty(values))
    console.show(how, values, found.tables())


def _command(name: str, model: str, text: DataOptions, dtype: str, counts: Sequence[object]) -> str:
    """Command that measures a study again, with text that the command line named; else with that of the workspace."""
    given = {
        "--data": text.data,
        "--validation": text.validation,
        "--column": text.column,
        "--format": text.format,
        "--bos": text.bos,
        "--sequence-length": text.sequence_length,
        "--dtype": None if dtype == "auto" else dtype,
    }
    options = [
        word
        for option, value in given.items()
        for one in (value if isinstance(value, list) else [value] if value else [])
        for word in (option, one)
    ]
    return shlex.join(str(word) for word in ("minitron", "study", name, model, *options, *counts))


def _list(how: ComputeOptions) -> None:
    from minitron_cli.cli import console
    from minitron_cli.report.view import Table
    from minitron_cli.study import definition

    found: dict[str, StudyDefinition] = {name: definition.load(name) for name in definition.shipped()}
    if how.json:
        console.data({name: {"question": one.question, "arms": list(one.arms)} for name, one in found.items()})
        return
    rows = [[name, one.question, str(len(one.arms)), str(one.seeds)] for name, one in found.items()]
    console.table(Table.of_words("", ("study", "question", "arms", "seeds"), rows))
    console.note("run one: minitron study NAME MODEL --data TEXT")
