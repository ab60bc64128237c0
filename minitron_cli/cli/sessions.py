"""Session of one command: its workspace, and the settings requested on the command line and in a recipe."""

import os
import re
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from minitron_cli import canonical_json, io, process_rank, progress, yaml_document
from minitron_cli import device as devices
from minitron_cli import recipe as recipes
from minitron_cli.artifacts import agreement
from minitron_cli.artifacts import workspace as workspaces
from minitron_cli.artifacts.artifact import Artifact
from minitron_cli.artifacts.build import Context
from minitron_cli.artifacts.workspace import Workspace
from minitron_cli.cli import exit_codes
from minitron_cli.cli.options import BuildOptions, ComputeOptions, DataOptions
from minitron_cli.data.sources import DataConfig, Source, TextFiles, TokenIds, as_stored
from minitron_cli.errors import InputError, Interrupted
from minitron_cli.figures import listed
from minitron_cli.prune.config import PruneConfig
from minitron_cli.recipe import Recipe
from minitron_cli.search.config import SearchConfig
from minitron_cli.yaml_document import AnySpec, KeyPath, YamlDocument

if TYPE_CHECKING:
    from minitron_cli.inputs.source_model import SourceModel

CHANGE = re.compile(r"[A-Za-z_]\w*(\.\w+)*=")
TEXTS = ("sources", "validation")  # fields of a data section
BUILT_IN = ("python_stdlib", "python_help")  # kinds of text that need no path
NULL: Final = object()  # an option that sets null; None leaves the setting alone
LOG = "run.log"
SAID = {"evaluate": "eval", "data": "data inspect"}  # the section of a verb whose name is another
ALSO_READ = {"search": ("prune",), "sparsify": ("distill",), "teach": ("distill",)}
"""Section of a verb -> other sections that it reads, which its words may change by their full names."""
SUMS_ON_CPU = ("evaluate",)  # sections of verbs that keep no sums in float64 on the device


@dataclass(frozen=True)
class Session:
    """One command in one workspace."""

    how: BuildOptions
    workspace: Workspace
    requested: YamlDocument
    """Requested settings: a recipe, possibly partial."""
    context: Context

    def model(self) -> str:
        if model := self.requested.values.get("model"):
            return str(model)
        raise InputError(f"no model given, and workspace {self.workspace.root} has none: name a directory or a hub id")

    def parent(self) -> "SourceModel":
        from minitron_cli.inputs.source_model import open_source_model

        return open_source_model(self.model(), offline=self.context.offline)

    @property
    def names_data(self) -> bool:
        named = self.requested.values.get("data")
        return bool(named and (not isinstance(named, dict) or named.get("sources")))

    def data(self) -> DataConfig:
        if not self.names_data:
            raise InputError("no data given: add --data with a file, hub:NAME, python_stdlib or python_help")
        return yaml_document.check(DataConfig, self.requested, ("data",))

    def section(self, kind: type[AnySpec], name: str) -> AnySpec:
        """Validated settings of one stage."""
        return yaml_document.check(kind, self.requested, (name,))

    def prunes_layers(self) -> bool:
        """Whether the sections on search and pruning, if there are any, remove layers."""
        search = self.section(SearchConfig, "search") if self.requested.values.get("search") else None
        return recipes.prunes_layers(self.section(PruneConfig, "prune"), search)

    def student(self) -> Artifact:
        """Model to train: the sparse one, if it was made from the pruned one or nothing was pruned; else the pruned."""
        from minitron_cli.cost.lineage import descends

        pruned, sparse = self.workspace.current("prune"), self.workspace.current("sparsify")
        if sparse and (not pruned or descends(self.workspace, sparse, pruned)):
            return sparse
        return self.require("prune")

    def require(self, stage: str) -> Artifact:
        """Current result of a stage. ArtifactError names the command that makes it."""
        model = [str(self.requested.values.get("model") or "MODEL")] if stage == "importance" else []
        return self.workspace.require(stage, " ".join(["minitron", stage, *model]))


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
    """Open a session and hold its workspace's lock. `flags`: options, by their key path in the stage's section."""
    models, changes = split(words or ())
    if len(models) > 1:
        raise InputError(f"{' and '.join(models[:2])}: give one model only (quote a pattern: --data 'corpus/*.jsonl')")
    given = yaml_document.read(recipes.find(recipe)) if recipe else YamlDocument()
    if recipe:
        yaml_document.check(Recipe, given)  # a misspelled section must not be ignored
    model = models[0] if models else given.values.get("model")
    default = recipes.find(recipe).stem if recipe else model
    workspace = workspaces.open_workspace(how.runs_dir, how.run, default=default and workspaces.slug(str(default)))
    options = {(stage, *place): v for place, v in (flags or {}).items()}

    def requested() -> YamlDocument:
        found = _requested(given, workspace.settings, model, text, options)
        return found.changed(_placed(change, stage) for change in changes)

    of = f": {name}" if (name := requested().values.get("model")) else ""  # what cannot be read is refused at once
    work, needs_float64 = SAID.get(stage, stage) + of, stage not in SUMS_ON_CPU
    with running(how, workspace, work, requested().values, needs_float64=needs_float64) as context:
        asked = requested()  # again, as another command may have worked here until now
        with remembered(how, workspace, _defaults(workspace, stage, asked)):
            yield Session(how, workspace, asked, context)


def _placed(change: str, stage: str) -> str:
    """A verb's KEY=VALUE as a change of the recipe: of the stage's section, or of another one that the verb reads."""
    section = change.partition("=")[0].partition(".")[0].strip()
    return change if section in ("data", *ALSO_READ.get(stage, ())) else f"{stage}.{change}"


def _defaults(workspace: Workspace, stage: str, requested: YamlDocument) -> Mapping[str, Any]:
    """What becomes the default of later verbs: model and data, but no model of the workspace that is made sparse."""
    model, known = requested.values.get("model"), workspace.settings.get("model")
    is_made_here = known and model and Path(str(model)).resolve().is_relative_to(workspace.root.resolve())
    return {**requested.values, "model": known} if stage == "sparsify" and is_made_here else requested.values


@contextmanager
def running(
    how: BuildOptions,
    workspace: Workspace,
    work: str,
    asked: object,
    *,
    needs_float64: bool = True,
) -> Iterator[Context]:
    """Say what `work` is about to be done, hold the workspace's lock and yield the context that stages run in.

    `asked`: the settings, by which the same command is known when it is given again.
    """
    said = progress.announced(f"minitron {work}, in {workspace.root}")
    with said, _locked(workspace, how), _traceback_kept(workspace), _overwriting(how, workspace, work, asked) as since:
        yield replace(_context(how, workspace, needs_float64), overwriting_since=since)


def _overwriting(
    how: BuildOptions, workspace: Workspace, work: str, asked: object
) -> AbstractContextManager[int | None]:
    """Since when results are of this command, if it makes existing ones again. The first process knows it for all."""
    if not process_rank.is_first_process():
        return nullcontext()
    command = canonical_json.digest(f"{work} {asked!r}") if how.overwrite else None
    return workspace.overwriting(command, is_dry=how.dry_run)


@contextmanager
def remembered(how: BuildOptions, workspace: Workspace, requested: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Context of the work after which, or after a stop, the workspace, its model and its data become the defaults of
    later commands."""
    try:
        yield
    except Interrupted:
        _remember(how, workspace, requested or {})
        raise
    _remember(how, workspace, requested or {})


def located(recipe: Recipe) -> Recipe:
    """Recipe with absolute paths of models and text, which stay valid from another directory."""
    relatives = tuple(map(absolute, recipe.relatives))
    texts = {name: tuple(map(_located_text, getattr(recipe.data, name))) for name in TEXTS}
    data = recipe.data.model_copy(update=texts)
    return recipe.model_copy(update={"model": absolute(recipe.model), "relatives": relatives, "data": data})


def _located_text(source: Source) -> Source:
    if not isinstance(source, (TextFiles, TokenIds)):
        return source
    return source.model_copy(update={"paths": tuple(map(absolute, source.paths))})


def _remember(how: BuildOptions, workspace: Workspace, requested: Mapping[str, Any]) -> None:
    if not how.dry_run and process_rank.is_first_process():
        workspace.save_settings(**{name: requested[name] for name in ("model", "data") if requested.get(name)})
        workspaces.remember(workspace)


def split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """(models, changes) among the arguments. A directory with an = in its name can be written ./a=b."""
    return [w for w in words if not CHANGE.match(w)], [w for w in words if CHANGE.match(w)]


def _requested(
    given: YamlDocument,
    settings: Mapping[str, Any],
    model: str | None,
    text: DataOptions | None,
    flags: Mapping[KeyPath, Any],
) -> YamlDocument:
    """Settings requested: the command line takes precedence over the recipe, the recipe over the workspace."""
    requested = given
    for name in ("model", "data"):
        if given.values.get(name) is None and (value := settings.get(name)) is not None:
            requested = requested.with_value((name,), as_stored(value) if isinstance(value, Mapping) else value)
    for name in TEXTS if isinstance(given.values.get("data"), Mapping) else ():
        for i, source in enumerate(given.values["data"].get(name) or ()):
            if isinstance(source, Mapping) and isinstance(paths := source.get("paths"), list):
                located = [absolute(path) if isinstance(path, str) else path for path in paths]
                if located != paths:
                    requested = requested.with_value(("data", name, i, "paths"), located)
    if model:
        requested = requested.with_value(("model",), absolute(model))
    for place, value in {**_text(text), **flags}.items():
        is_on = value == {} and requested.value(place) is not None  # a section's flag keeps its settings
        if value is not None and not is_on:
            requested = requested.with_value(place, None if value is NULL else value)
    return requested


def _text(text: DataOptions | None) -> dict[KeyPath, Any]:
    if text is None:
        return {}
    if (text.format or text.column) and not (text.data or text.validation):
        flag = "--format" if text.format else "--column"
        raise InputError(f"{flag} says how --data or --validation is read: give that as well")
    _check_read(text)
    named: dict[KeyPath, Any] = {("data", "sequence_length"): text.sequence_length, ("data", "bos"): text.bos}
    if text.data:
        named |= {("data", "sources"): [_source(one, text) for one in text.data], ("data", "validation"): []}
    if text.validation:
        named["data", "validation"] = [_source(one, text, held_out=True) for one in text.validation]
    return named


def _check_read(text: DataOptions) -> None:
    """Raise InputError if an option says how text is read, and nothing of what is named is read so."""
    named = [*(text.data or ()), *(text.validation or ())]
    kinds = {"built-in" if one in BUILT_IN else one.partition(":")[0] for one in named}
    for flag, value, others in (
        ("--format", text.format, {"built-in", "ids"}),
        ("--column", text.column, {"built-in"}),
    ):
        if value and kinds <= others:
            raise InputError(
                f"{flag} has no effect on {listed(list(dict.fromkeys(named)))}: drop it, or name files or hub:NAME"
            )


def _source(given: str, text: DataOptions, *, held_out: bool = False) -> dict[str, Any]:
    column = {"column": text.column} if text.column else {}
    options = column | ({"format": text.format} if text.format else {})
    kind, colon, name = given.partition(":")
    if given in BUILT_IN:
        return {"kind": given, "split": "validation" if held_out else "train"}
    if kind == "hub" and colon:
        return {"kind": "hub", "name": name} | options
    if kind == "ids" and colon:
        return {"kind": "input_ids", "paths": [absolute(name)]} | column
    return {"kind": "files", "paths": [absolute(given)]} | options


def absolute(path: str) -> str:
    """Absolute form of a path; anything that is not a path is returned unchanged."""
    looks_like_a_path = Path(path).exists() or path.startswith((".", "~")) or any(mark in path for mark in "*?[")
    return os.path.abspath(os.path.expanduser(path)) if looks_like_a_path else path


def _context(how: BuildOptions, workspace: Workspace, needs_float64: bool) -> Context:
    """Context to run stages in. Imports torch for compute stages only."""
    context = Context(workspace, dry_run=how.dry_run, overwrite=how.overwrite)
    if not isinstance(how, ComputeOptions):
        return context
    if how.offline:
        os.environ["HF_HUB_OFFLINE"] = "1"  # huggingface_hub reads it when it is imported
    if how.threads:
        import torch

        torch.set_num_threads(how.threads)
    device = devices.resolve(how.device, needs_float64=needs_float64)
    return replace(context, device=device, dtype=how.dtype, resume=how.resume, offline=how.offline)


def _locked(workspace: Workspace, how: BuildOptions) -> AbstractContextManager[None]:
    """Lock of the workspace; none for a dry run."""
    return nullcontext() if how.dry_run else agreement.locked(workspace)


@contextmanager
def _traceback_kept(workspace: Workspace) -> Iterator[None]:
    """Write the traceback of an unexpected error to the workspace's log file."""
    try:
        yield
    except Exception as e:
        if not exit_codes.explain(e).is_expected and workspace.root.is_dir():
            with suppress(OSError):
                io.replace(workspace.root / LOG, traceback.format_exc().encode())
                e.add_note(f"{exit_codes.KEPT}{workspace.root / LOG}")
        raise
