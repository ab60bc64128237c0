"""Check of a whole workspace, and the command that makes each damaged result again."""

import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from minitron_cli import progress
from minitron_cli.artifacts import file_hashes, fingerprint, verification
from minitron_cli.artifacts import manifest as manifests
from minitron_cli.artifacts.verification import Checked
from minitron_cli.artifacts.workspace import SETTINGS, Workspace
from minitron_cli.data import token_file
from minitron_cli.errors import ArtifactError, CheckpointError
from minitron_cli.report import provenance
from minitron_cli.results.verification import Finding, Verification

TOKENS = "tokens"


def verify(workspace: Workspace) -> Verification:
    """Findings on every artifact and token file, from all of their bytes. ArtifactError without such a workspace."""
    if not workspace.root.is_dir():
        raise ArtifactError(f"there is no workspace {workspace.root}: name another, or give --runs-dir")
    settings, unreadable = _settings(workspace)
    artifacts, tokens = verification.paths(workspace), token_file.finished(workspace.root / TOKENS)
    size_bytes = sum(map(_size_bytes, (*artifacts, *tokens)))
    with progress.track("verify", size_bytes, "bytes") as step:
        checked = [verification.check(path, step) for path in artifacts]
        damaged_tokens = [finding for path in tokens if (finding := _of_tokens(path, step))]
    damaged = [(one, one.damage, True) for one in checked if one.damage]
    lost = [(one, (problem,), False) for one, problem in _lost_inputs(checked, settings)]
    found = (_finding(workspace, settings, *each) for each in (*damaged, *lost))
    return Verification(
        workspace=str(workspace.root),
        artifacts=len(checked),
        size_bytes=size_bytes,
        findings=(*unreadable, *found, *damaged_tokens, *_pointers(workspace)),
    )


def _settings(workspace: Workspace) -> tuple[dict[str, Any], list[Finding]]:
    """Settings of the workspace; none, with a finding, if they cannot be read."""
    try:
        return workspace.settings, []
    except CheckpointError:
        path = workspace.root / SETTINGS
        advice = f"rm {path}, then name the model and the data again with `minitron importance MODEL --data TEXT`"
        return {}, [Finding(path=str(path), problems=("it is damaged",), is_damaged=True, command=advice)]


def _size_bytes(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.iterdir() if path.is_file())


def _of_tokens(directory: Path, step: Callable[[int], None]) -> Finding | None:
    name = token_file.damage(directory)
    step(_size_bytes(directory))
    if name is None:
        return None
    problem = f"{name} has changed since it was written"
    return Finding(path=str(directory), problems=(problem,), is_damaged=True, command=f"rm -r {directory}")


def _pointers(workspace: Workspace) -> Iterator[Finding]:
    for path in verification.dangling_pointers(workspace):
        advice = f"{manifests.command_of(path.parent.name)} --run {workspace.name}"
        yield Finding(path=str(path), problems=("it names no artifact",), is_damaged=True, command=advice)


def _finding(
    workspace: Workspace, settings: dict[str, Any], checked: Checked, problems: Sequence[str], is_damaged: bool
) -> Finding:
    words = [manifests.command_of(checked.stage), *_settings_of(checked, settings), "--run", workspace.name]
    if workspace.root.parent != Path("runs"):
        words += ["--runs-dir", shlex.quote(str(workspace.root.parent))]
    return Finding(
        path=str(checked.path),
        problems=tuple(problems),
        is_damaged=is_damaged,
        command=" ".join(words),
    )


def _settings_of(checked: Checked, settings: dict[str, Any]) -> Iterator[str]:
    """Arguments with every setting of an artifact's stage; the first stage also names the model and the data."""
    if checked.manifest is None:
        return
    if checked.stage == "importance":
        yield shlex.quote(str(settings.get("model") or "MODEL"))
        yield from provenance.settings({"data": settings.get("data") or {}})
    yield from provenance.settings(checked.manifest.config)


def _lost_inputs(checked: Sequence[Checked], settings: dict[str, Any]) -> Iterator[tuple[Checked, str]]:
    for one, name in verification.lost_inputs(checked):
        yield one, f"its {name} is no longer in the workspace"
    yield from _made_from_another_model(checked, str(settings.get("model") or ""))


def _made_from_another_model(checked: Sequence[Checked], parent: str) -> Iterator[tuple[Checked, str]]:
    """Artifacts whose parent is neither in the workspace nor the model that its settings name, as that is now."""
    path = Path(parent)
    if not path.is_absolute() or (path / manifests.MANIFEST).exists():
        return  # a hub id, or the product of an earlier step, whose own parent the settings do not name
    known = {fingerprint.of_directory(path, file_hashes.fresh)} if path.is_dir() else set()
    known |= {name for one in checked for name in one.fingerprints}
    problem = f"{path} is no longer the model that it was made from" if path.is_dir() else f"{path} does not exist"
    for one in checked:
        model = one.manifest.inputs.get("model") if one.manifest else None
        if model and model not in known and "@" not in model:
            yield one, problem
