"""Check of a whole workspace, and the command that makes each damaged result again."""

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from minitron_cli import progress, strict_json
from minitron_cli.artifacts import file_hashes, fingerprint, verification
from minitron_cli.artifacts import manifest as manifests
from minitron_cli.artifacts.verification import Checked
from minitron_cli.artifacts.workspace import GIVEN, SETTINGS, STUDY_RUNS, Workspace
from minitron_cli.data import token_file
from minitron_cli.errors import ArtifactError, CheckpointError
from minitron_cli.report.product import named_models
from minitron_cli.report.provenance import given_text
from minitron_cli.report.settings import stage_settings, text_settings
from minitron_cli.results.verification import Finding, Verification

NAMED_AGAIN = "minitron importance MODEL --data TEXT"
TICKET_PARTS = ("ticket_start", "ticket_round")
TICKETS = (*TICKET_PARTS, "ticket", "transfer", "supermask")


def verify(workspace: Workspace) -> Verification:
    """Findings on every artifact and token file, from all of their bytes. ArtifactError without such a workspace.

    Of what its studies have made, whose models they remove, damage alone is found.
    """
    if not workspace.root.is_dir():
        raise ArtifactError(f"there is no workspace {workspace.root}: name another, or give --runs-dir")
    given, unreadable = _given(workspace)
    artifacts, tokens = verification.paths(workspace), token_file.finished(workspace.tokens)
    runs = workspace.within(STUDY_RUNS)
    of_runs = verification.paths(runs) if runs.root.is_dir() else []
    size_bytes = sum(map(_size_bytes, (*artifacts, *of_runs, *tokens)))
    with progress.track("verify", size_bytes, "bytes") as step:
        checked = [verification.check(path, step) for path in artifacts]
        checked_runs = [verification.check(path, step) for path in of_runs]
        damaged_tokens = [finding for path in tokens if (finding := _of_tokens(path, step))]
    damaged = [(one, one.damage, True) for one in checked if one.damage]
    lost = [(one, (problem,), False) for one, problem in _lost_inputs(checked, given)]
    models = given | {known: str(one.path) for one in checked for known in one.fingerprints}
    found = [_finding(workspace, given, models, *each) for each in (*damaged, *lost)]
    found += [_finding(runs, given, models, one, one.damage, True) for one in checked_runs if one.damage]
    return Verification(
        workspace=str(workspace.root),
        artifacts=len(checked) + len(checked_runs),
        size_bytes=size_bytes,
        findings=(*unreadable, *found, *damaged_tokens, *_pointers(workspace)),
    )


def _given(workspace: Workspace) -> tuple[dict[str, Any], list[Finding]]:
    """What the user gave, by fingerprint, and findings on files of the workspace that say it and cannot be read."""
    given: dict[str, Any] = {}
    unreadable = []
    for name in (SETTINGS, GIVEN):
        path = workspace.root / name
        try:
            given = strict_json.load(path) if path.is_file() else {}
        except CheckpointError:
            advice = f"rm {shlex.quote(str(path))}, then name the model and the data again with `{NAMED_AGAIN}`"
            unreadable.append(Finding(path=str(path), problems=("it is damaged",), is_damaged=True, command=advice))
    return given, unreadable


def _size_bytes(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.iterdir() if path.is_file())


def _of_tokens(directory: Path, step: Callable[[int], None]) -> Finding | None:
    name = token_file.damage(directory, lambda paths: file_hashes.fresh(paths, step))
    if name is None:
        return None
    problem = f"{name} has changed since it was written"
    return Finding(
        path=str(directory), problems=(problem,), is_damaged=True, command=f"rm -r {shlex.quote(str(directory))}"
    )


def _pointers(workspace: Workspace) -> Iterator[Finding]:
    for path in verification.dangling_pointers(workspace):
        advice = workspace.command(manifests.command_of(path.parent.name))
        yield Finding(path=str(path), problems=("it names no artifact",), is_damaged=True, command=advice)


def _finding(
    workspace: Workspace,
    given: Mapping[str, Any],
    models: Mapping[str, Any],
    checked: Checked,
    problems: Sequence[str],
    is_damaged: bool,
) -> Finding:
    command = " ".join([manifests.command_of(checked.stage), *_settings_of(checked, given, models)])
    return Finding(
        path=str(checked.path),
        problems=tuple(problems),
        is_damaged=is_damaged,
        command=workspace.command(command),
    )


def _settings_of(checked: Checked, given: Mapping[str, Any], models: Mapping[str, Any]) -> Iterator[str]:
    """Arguments with every setting of an artifact's stage, and with what the user gave for its inputs.

    `models`: also the paths of those that the workspace made, by their fingerprints, which an evaluation may name.
    None of a teacher, which a script makes that takes others, nor of a report or a family, which take none.
    """
    if checked.stage == "family":
        yield "RECIPE"
    if checked.manifest is None or checked.stage in ("teacher", "report", "family"):
        return
    inputs = checked.manifest.inputs
    model = inputs.get("model", "")
    if checked.stage == "transfer":
        yield from ("--mask", "DIR")
    elif checked.stage in TICKETS:
        yield shlex.quote(str(given.get(model, "MODEL")))
    if checked.stage == "landscape":
        named = [known for name, known in inputs.items() if name.startswith("model ")]
        yield from (shlex.quote(str(models.get(known, "MODEL"))) for known in named)
    if checked.stage == "importance" or (checked.stage in ("sparsify", "correct") and model in given):
        yield shlex.quote(str(given.get(model, model.partition("@")[0])))
    if checked.stage == "evaluate":
        yield from (shlex.quote(str(models.get(known, "MODEL"))) for known in named_models(inputs))
    yield from text_settings(given_text(inputs, given) or {})
    if checked.stage in ("distill", "teach") and isinstance(teacher := given.get(inputs["teacher"]), str):
        yield from ("--teacher", shlex.quote(teacher))
    if checked.stage == "distill" and isinstance(student := given.get(inputs["student"]), str):
        yield from ("--student", shlex.quote(student))
    if isinstance(signals := given.get(inputs.get("signals", "")), dict):
        yield f"{'retrain.' * (checked.stage == 'search')}signals={shlex.quote(signals['signals'])}"
    if checked.stage in TICKET_PARTS:  # whose settings are not those of the verb
        return
    yield from stage_settings(checked.stage, checked.manifest.config, inputs)


def _lost_inputs(checked: Sequence[Checked], given: Mapping[str, Any]) -> Iterator[tuple[Checked, str]]:
    """Artifacts with an input that is gone: one that the workspace made, or a model that the user gave."""
    for one, name in verification.lost_inputs(checked, given):
        yield one, f"its {name} is not in this workspace"
    inputs = {known for one in checked if one.manifest for known in one.manifest.inputs.values()}
    changed = {known: problem for known in sorted(inputs) if (problem := _changed(known, given.get(known)))}
    for one in checked:
        mine = set(one.manifest.inputs.values()) if one.manifest else set()
        yield from ((one, changed[known]) for known in sorted(mine & changed.keys()))


def _changed(known: str, given: object) -> str | None:
    """What happened to a model that was given as a directory; None if it is as it was, or was given otherwise."""
    if not isinstance(given, str) or not Path(given).is_absolute() or "@" in known:
        return None
    if not Path(given).is_dir():
        return f"{given}, which it was made from, does not exist"
    try:
        is_same = fingerprint.of_directory(Path(given), file_hashes.fresh) == known
    except ArtifactError:
        is_same = False
    return None if is_same else f"{given} is no longer the model that it was made from"
