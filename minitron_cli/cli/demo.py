"""`minitron demo`: the whole pipeline on the small model that ships with the package."""

import shutil
import sys
from pathlib import Path

from minitron_cli.cli.options import Changes, ComputeOptions

NEXT = (
    "minitron importance MODEL --data 'corpus/*.jsonl'",
    "minitron prune --target 50%",
    "minitron distill --tokens 100M",
    "minitron eval",
)
"""The same for the user's own model and text."""


def demo(how: ComputeOptions, changes: Changes = None) -> None:
    """Compress the small model that ships with minitron, show the results, and the commands for your own model.

    Its text is the source of Python's standard library. Needs no download and no accelerator. `minitron recipes show
    demo` prints its steps.
    """
    from minitron_cli import recipe as recipes
    from minitron_cli.artifacts import workspace as workspaces
    from minitron_cli.cli import console, printing, sessions

    requested = recipes.load("demo", changes or ())
    workspace = workspaces.open_workspace(how.runs_dir, how.run, default="demo")
    asked = requested.model_dump(mode="json")
    with sessions.running(how, workspace, "demo", asked) as context, sessions.remembered(how, workspace):
        from minitron_cli import pipeline

        results = pipeline.run(sessions.located(requested), context)
    printing.artifacts(results[-1].artifacts(), how)
    if not (how.json or how.quiet):
        console.note("\n  ".join(("The same for your own model and text:", *_activation(), *NEXT)))


def _activation() -> tuple[str, ...]:
    """Command after which the shell finds `minitron`; none if it does already."""
    script = Path(sys.prefix, "bin", "activate")
    return () if shutil.which("minitron") or not script.is_file() else (f"source {_near(script)}",)


def _near(path: Path) -> Path:
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path
