"""What a command works on: a workspace, and what was asked for there, on the command line or in a recipe."""

import os
import re
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from minitron_cli import io, process_rank, yaml_document
from minitron_cli import recipe as recipes
from minitron_cli.artifacts import workspace as workspaces
from minitron_cli.artifacts.artifact import Artifact
from minitron_cli.artifacts.build import Context
from minitron_cli.artifacts.workspace import Workspace
from minitron_cli.cli import exit_codes
from minitron_cli.cli.options import BuildOptions, ComputeOptions, DataOptions
from minitron_cli.data.sources import DataConfig
from minitron_cli.errors import EnvironmentFault, InputError, Interrupted
from minitron_cli.recipe import Recipe
from minitron_cli.yaml_document import AnySpec, KeyPath, YamlDocument

if TYPE_CHECKING:
    from minitron_cli.inputs.source_model import SourceModel

CHANGE = re.compile(r"[A-Za-z_]\w*(\.\w+)*=")
NULL: Final = object()  # an option that says null; None says nothing
LOG = "run.log"
KEPT = "please report it with "


@dataclass(frozen=True)
class Session:
    """One command at work in one workspace."""

    how: BuildOptions
    workspace: Workspace
    asked: YamlDocument
    """A recipe, or as much of one as was said so far."""
    context: Context

    def model(self) -> str:
        if model := self.asked.values.get("model"):
            return str(model)
        raise InputError(f"no model is named, and {self.workspace.root} remembers none: give a directory or a hub id")

    def parent(self) -> "SourceModel":
        from minitron_cli.inputs.source_model import open_source_model

        return open_source_model(self.model(), offline=self.context.offline)

    @property
    def names_data(self) -> bool:
        named = self.asked.values.get("data")
        return bool(named and (not isinstance(named, dict) or named.get("sources")))

    def data(self) -> DataConfig:
        if not self.names_data:
            raise InputError("no text is named: add --data, with a file, hub:NAME or python_stdlib")
        return yaml_document.check(DataConfig, self.asked, ("data",))

    def section(self, kind: type[AnySpec], name: str) -> AnySpec:
        """One stage's part of what was asked for."""
        return yaml_document.check(kind, self.asked, (name,))

    def require(self, stage: str) -> Artifact:
        """The workspace's current result of a stage. ArtifactError names the command that makes it."""
        model = [str(self.asked.values.get("model") or "MODEL")] if stage == "importance" else []
        run = ["--run", self.how.run] if self.how.run else []
        return self.workspace.require(stage, " ".join(["minitron", stage, *model, *run]))


@contextmanager
def opened(
    how: BuildOptions,
    stage: str,
    words: Sequence[str] | None = None,
    *,
    recipe: str | None = None,
    text: DataOptions | None = None,
    flags: Mapping[KeyPath, Any] | None = None,
) -> Iterator[Session]:
    """A session that holds its workspace's lock. `flags` are options of the stage, by their place in its section."""
    models, changes = split(words or ())
    if len(models) > 1:
        raise InputError(f"{' and '.join(models[:2])}: one model at a time; quote a pattern: --data 'corpus/*.jsonl'")
    given = yaml_document.read(recipes.find(recipe)) if recipe else YamlDocument()
    if recipe:
        yaml_document.check(Recipe, given)  # a section with a misspelt name must not go unread
    model = models[0] if models else given.values.get("model")
    default = recipes.find(recipe).stem if recipe else model
    workspace = workspaces.open_workspace(how.runs_dir, how.run, default=default and workspaces.slug(str(default)))
    asked = _asked(given, workspace.settings, model, text, {(stage, *place): v for place, v in (flags or {}).items()})
    asked = asked.changed(change if change.startswith("data.") else f"{stage}.{change}" for change in changes)
    with at_work(how, workspace, asked.values) as context:
        yield Session(how, workspace, asked, context)


@contextmanager
def at_work(how: BuildOptions, workspace: Workspace, asked: Mapping[str, Any] | None = None) -> Iterator[Context]:
    """How stages are to run in a workspace, whose lock is held meanwhile.

    When work was done there, later commands may leave the workspace unsaid, and the model and data that were asked for.
    """
    with _locked(workspace, how), _traceback_kept(workspace):
        try:
            yield _context(how, workspace)
        except Interrupted:
            _remember(how, workspace, asked or {})
            raise
        _remember(how, workspace, asked or {})


def located(recipe: Recipe) -> Recipe:
    """A recipe whose models are still found when a later command starts elsewhere."""
    relatives = tuple(map(absolute, recipe.relatives))
    return recipe.model_copy(update={"model": absolute(recipe.model), "relatives": relatives})


def _remember(how: BuildOptions, workspace: Workspace, asked: Mapping[str, Any]) -> None:
    if not how.dry_run and process_rank.is_first_process():
        workspace.save_settings(**{name: asked[name] for name in ("model", "data") if asked.get(name)})
        workspaces.remember(workspace)


def split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """(models, changes) among a command's words. A directory with an = in its name can be written ./a=b."""
    return [w for w in words if not CHANGE.match(w)], [w for w in words if CHANGE.match(w)]


def _asked(
    given: YamlDocument,
    settings: Mapping[str, Any],
    model: str | None,
    text: DataOptions | None,
    flags: Mapping[KeyPath, Any],
) -> YamlDocument:
    """The recipe's word before the workspace's memory, the command line's before both."""
    asked = given
    for name in ("model", "data"):
        if given.values.get(name) is None and settings.get(name) is not None:
            asked = asked.with_value((name,), settings[name])
    if model:
        asked = asked.with_value(("model",), absolute(model))
    for place, value in {**_text(text), **flags}.items():
        if value is not None:
            asked = asked.with_value(place, None if value is NULL else value)
    return asked


def _text(text: DataOptions | None) -> dict[KeyPath, Any]:
    if text is None:
        return {}
    named: dict[KeyPath, Any] = {("data", "sequence_length"): text.sequence_length}
    if text.data:
        named |= {("data", "sources"): [_source(one, text) for one in text.data], ("data", "validation"): []}
    if text.validation:
        named["data", "validation"] = [_source(one, text, held_out=True) for one in text.validation]
    return named


def _source(said: str, text: DataOptions, *, held_out: bool = False) -> dict[str, Any]:
    column = {"column": text.column} if text.column else {}
    options = column | ({"format": text.format} if text.format else {})
    kind, colon, name = said.partition(":")
    if said == "python_stdlib":
        return {"kind": said, "split": "validation" if held_out else "train"}
    if kind == "hub" and colon:
        return {"kind": "hub", "name": name} | options
    if kind == "ids" and colon:
        return {"kind": "input_ids", "paths": [absolute(name)]} | column
    return {"kind": "files", "paths": [absolute(said)]} | options


def absolute(path: str) -> str:
    """A path that still holds when a later command starts elsewhere; anything that is no path stays as it is."""
    looks_like_a_path = Path(path).exists() or path.startswith((".", "~")) or any(mark in path for mark in "*?[")
    return os.path.abspath(os.path.expanduser(path)) if looks_like_a_path else path


def _context(how: BuildOptions, workspace: Workspace) -> Context:
    """How stages are to run. Imports torch where they compute."""
    context = Context(workspace, dry_run=how.dry_run, overwrite=how.overwrite)
    if not isinstance(how, ComputeOptions):
        return context
    if how.offline:
        os.environ["HF_HUB_OFFLINE"] = "1"  # read when the hub's client is imported
    if how.threads:
        import torch

        torch.set_num_threads(how.threads)
    return replace(context, device=device(how.device), dtype=how.dtype, resume=how.resume, offline=how.offline)


def device(name: str) -> str:
    """A device that is there and has fp64, in which sums are kept; `auto` is the first accelerator, else the CPU."""
    import torch

    if name == "auto":
        first = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return str(first) if first and _is_usable(str(first)) else "cpu"
    if not _is_usable(name):
        raise EnvironmentFault(f"device {name!r} cannot be used here: leave --device out, or see `minitron env`")
    return name


def _is_usable(name: str) -> bool:
    import torch

    try:
        torch.ones(1, dtype=torch.float64, device=name).sum().item()  # memory for it is had where it cannot be added
    except (RuntimeError, AssertionError, TypeError):  # a TypeError where there is no fp64, as on Apple's mps
        return False
    return True


def _locked(workspace: Workspace, how: BuildOptions) -> AbstractContextManager[None]:
    """A dry run changes nothing and waits for nobody; of several processes, the first holds the lock for all."""
    return nullcontext() if how.dry_run or not process_rank.is_first_process() else workspace.lock()


@contextmanager
def _traceback_kept(workspace: Workspace) -> Iterator[None]:
    """Put the traceback of an error that is not the user's where they can send it from."""
    try:
        yield
    except Exception as e:
        if not exit_codes.explain(e).is_expected and workspace.root.is_dir():
            with suppress(OSError):
                io.replace(workspace.root / LOG, traceback.format_exc().encode())
                e.add_note(f"{KEPT}{workspace.root / LOG}")
        raise


def kept_traceback(error: BaseException) -> str | None:
    """What to tell the user about the traceback, if it was kept."""
    return next((note for note in getattr(error, "__notes__", ()) if note.startswith(KEPT)), None)
