"""The `minitron` program: registers the commands and turns errors into exit codes."""

import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from copy import copy
from functools import wraps
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

from minitron_cli import __version__, process_rank, progress, stopping
from minitron_cli.cli import (
    allocator,
    console,
    correct,
    data,
    demo,
    distill,
    env,
    evaluate,
    exit_codes,
    families,
    help_page,
    home,
    importance,
    inspect,
    landscape,
    openmp,
    options,
    prune,
    push,
    recipes,
    report,
    run,
    search,
    show,
    signals,
    sparsify,
    study,
    synonyms,
    teach,
    ticket,
    torchrun,
    verify,
)
from minitron_cli.cli.options import Show
from minitron_cli.errors import DryRunStop, Interrupted

BROKEN_PIPE = 128 + signal.SIGPIPE
STOPPED = (128 + signal.SIGINT, 128 + signal.SIGTERM)
AT_ONCE = (3, *STOPPED)
"""Exit codes after which nothing is left to be done: the environment failed, or the work was stopped."""


def main() -> None:
    """Run the program on `sys.argv`."""
    openmp.wait_briefly(os.environ)
    allocator.keep_freed(os.environ)
    home.provide()
    torchrun.end_with_launcher()
    try:
        app()
    except KeyboardInterrupt:  # before a command started
        sys.exit(130)
    except SystemExit as e:
        if e.code and e.code not in STOPPED:
            torchrun.let_first_speak()
        if e.code in AT_ONCE:
            _exit_at_once(int(e.code))
        raise


def _exit_at_once(code: int) -> NoReturn:
    """Exit without the libraries' own cleanup, which takes seconds, or memory and file handles that are not there."""
    home.remove()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def _command(body: Callable[..., None]) -> Callable[..., None]:
    """Wrap a command for Typer: flat options, errors turned into exit codes."""

    @wraps(body)
    def command(**values: Any) -> None:
        arguments = options.grouped(body, values)
        shown = next((group for group in arguments.values() if isinstance(group, Show)), Show())
        with _surroundings(shown):
            try:
                _run(body, arguments, shown)
            except (typer.TyperException, typer.Exit, typer.Abort, SystemExit):
                raise
            except BrokenPipeError:
                raise typer.Exit(BROKEN_PIPE) from None
            except BaseException as e:
                with stopping.deferred():
                    raise typer.Exit(_fail(e, shown)) from None

    signature = options.flat(body)
    vars(command)["__signature__"] = signature
    command.__annotations__ = {p.name: p.annotation for p in signature.parameters.values()}
    return command


class _Command(TyperCommand):
    """Command that understands other names of its options, and whose help shows every name whole.

    Its errors are Typer's without the words that pydantic puts before them.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        own = [(p.opts, p.metavar) for p in self.params if isinstance(p, TyperOption)]
        try:
            return super().parse_args(ctx, synonyms.with_own_names(args, own))
        except typer.BadParameter as e:
            e.message = e.message.removeprefix("Value error, ")
            raise
        except typer.TyperException as e:
            if name := getattr(e, "option_name", None):  # there is no such option
                vars(e)["possibilities"] = [*(vars(e)["possibilities"] or ()), *synonyms.close_to(name, own)]
            raise

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help from copies of the options, as `help_page` shows them."""
        page = copy(self)
        page.help = "\n\n".join(" ".join(paragraph.split()) for paragraph in (self.help or "").split("\n\n"))
        vars(page)["get_params"] = lambda _: [help_page.shown(option) for option in self.get_params(ctx)]
        TyperCommand.format_help(page, ctx, formatter)


class _Program(TyperGroup):
    """The program, whose own flags are off rather than absent: only a flag that is absent has typer import pydantic."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        for option in self.get_params(ctx):
            if isinstance(option, TyperOption) and option.is_flag and option.default is None:
                option.default = False
        return super().parse_args(ctx, args)


def _run(body: Callable[..., None], arguments: dict[str, Any], shown: Show) -> None:
    try:
        body(**arguments)
    except DryRunStop as plan:
        from minitron_cli.cli import printing

        printing.dry_run(plan, shown)
    except Interrupted:  # raised in every process; after any other error torchrun ends the others
        with stopping.deferred():
            torchrun.leave()
        raise
    except Exception as e:
        if stopping.stop_requested() and torchrun.is_one_of_several():  # another one has left that this one waited for
            raise stopping.interrupted() from e
        raise
    torchrun.leave()
    sys.stdout.flush()


@contextmanager
def _surroundings(shown: Show) -> Iterator[None]:
    """Handle signals, show progress and silence library warnings for one command."""
    if not shown.verbose:
        warnings.simplefilter("ignore")
        for name in ("TRANSFORMERS_VERBOSITY", "DATASETS_VERBOSITY"):
            os.environ.setdefault(name, "error")
    progress.show_on(console.Terminal(quiet=shown.quiet or not process_rank.is_first_process(), verbose=shown.verbose))
    try:
        with signals.handled():
            yield
    finally:
        progress.show_on(None)


def _fail(error: BaseException, shown: Show) -> int:
    """Print the error and return the exit code."""
    fault = exit_codes.explain(error)
    if fault.exit_code == 3 and not shown.debug:
        error.__traceback__ = None  # frees what the work had in memory
    if shown.debug:
        console.note(traceback.format_exc())
    if isinstance(error, Interrupted | KeyboardInterrupt):
        console.note(fault.sentence)
    elif fault.is_expected:
        _print_error(fault.sentence)
    else:
        where = exit_codes.kept_traceback(error) or "run again with --debug to see where"
        _print_error(f"{fault.sentence}; {where}")
    return fault.exit_code


def _print_error(sentence: str) -> None:
    """Print an error; without colors where memory or file handles do not suffice to import what prints them.

    Another process than the first prints what the first has not said in a moment.
    """
    if not process_rank.is_first_process():
        if torchrun.let_first_speak():
            _write_error(f"{process_rank.this_process()}: {sentence}")
        return
    try:
        console.error(sentence)
    except (MemoryError, ImportError, OSError):
        _write_error(sentence)


def _write_error(sentence: str) -> None:
    with suppress(OSError):
        os.write(2, f"error: {sentence}\n".encode())


def _version(wanted: bool) -> None:
    if wanted:
        console.result(f"minitron {__version__}")
        raise typer.Exit


app = typer.Typer(
    name="minitron",
    cls=_Program,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(epilog="Start with `minitron demo`, or `minitron recipes ls`.")
def _program(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Compress Hugging Face language models the Minitron way: score, search, prune, repair, distill, evaluate."""


COMMANDS: dict[str, Callable[..., None]] = {
    "importance": importance.importance,
    "search": search.search,
    "prune": prune.prune,
    "sparsify": sparsify.sparsify,
    "correct": correct.correct,
    "teach": teach.teach,
    "distill": distill.distill,
    "eval": evaluate.evaluate,
    "landscape": landscape.landscape,
    "report": report.report,
    "push": push.push,
    "run": run.run,
    "study": study.study,
    "show": show.show_results,
    "verify": verify.verify,
    "inspect": inspect.inspect,
    "demo": demo.demo,
    "env": env.env,
}
for _name, _body in COMMANDS.items():
    app.command(_name, cls=_Command)(_command(_body))

RECIPES: dict[str, Callable[..., None]] = {
    "ls": recipes.list_recipes,
    "show": recipes.show_recipe,
    "cp": recipes.copy_recipe,
    "schema": recipes.schema,
}
DATA: dict[str, Callable[..., None]] = {"inspect": data.inspect}
TICKETS: dict[str, Callable[..., None]] = {"train": ticket.train, "supermask": ticket.supermask}
FAMILIES: dict[str, Callable[..., None]] = {"check": families.check}
GROUPS = {
    "data": (DATA, "Show what models read of a text."),
    "families": (FAMILIES, families.HELP),
    "recipes": (RECIPES, "List, show and copy the shipped recipes."),
    "ticket": (TICKETS, ticket.HELP),
}
for _group, (_bodies, _help) in GROUPS.items():
    _several = typer.Typer(no_args_is_help=True, help=_help)
    for _name, _body in _bodies.items():
        _several.command(_name, cls=_Command)(_command(_body))
    app.add_typer(_several, name=_group)
