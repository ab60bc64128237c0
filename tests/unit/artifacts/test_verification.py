"""The check of a workspace, on artifacts without models."""

import json
import os

import pytest

from minitron_cli import api, io
from minitron_cli.artifacts import file_hashes, verification
from minitron_cli.artifacts.artifact import Artifact, check_model
from minitron_cli.artifacts.workspace import STUDY_RUNS, Workspace
from minitron_cli.checkpoint import model_names
from minitron_cli.errors import ArtifactError
from tests.unit.artifacts.test_artifact import made


@pytest.fixture
def workspace(tmp_path):
    found = Workspace(tmp_path / "runs" / "small")
    for stage in ("importance", "prune"):
        io.make_dirs(found.stage_dir(stage))
        inputs = {"model": "0" * 64} | ({"scores": found.current("importance").fingerprint} if stage == "prune" else {})
        found.point(made(found.stage_dir(stage), stage=stage, inputs=inputs))
    return found


def test_a_sound_workspace(workspace):
    found = api.verify(workspace.root)
    assert (found.artifacts, found.findings) == (2, ())
    assert found.size_bytes == sum(path.stat().st_size for path in workspace.root.glob("*/*/*"))


def test_damage_of_what_studies_have_made_is_found_and_removed_models_are_no_loss(workspace):
    runs = workspace.within(STUDY_RUNS)
    for stage, inputs in (("prune", {"scores": "1" * 64}), ("distill", {"student": "2" * 64})):
        io.make_dirs(runs.stage_dir(stage))
        runs.point(made(runs.stage_dir(stage), stage=stage, inputs={"model": "0" * 64} | inputs))
    io.remove_tree(runs.current_path("distill"))  # as a study does
    found = api.verify(workspace.root)
    assert (found.artifacts, found.findings) == (3, ())
    path = runs.current("prune").path
    os.truncate(path / "model.safetensors", 10)
    (finding,) = api.verify(workspace.root).damaged
    assert (finding.path, finding.problems) == (str(path), ("model.safetensors is not the file that was written",))
    assert finding.command.endswith(f"--run runs --runs-dir {workspace.root / 'study'}")


def test_no_cache_is_trusted(workspace, monkeypatch, hash_everything_once):
    """As a disk fails: other bytes under the same times."""
    path = workspace.current("prune").path / "model.safetensors"
    kept = file_hashes._state(path)
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    monkeypatch.setattr(file_hashes, "_state", lambda one: kept if one == path else str(one))
    assert Artifact.open(path.parent), "nothing but the bytes tells"
    (finding,) = api.verify(workspace.root).damaged
    assert finding.problems == ("model.safetensors has changed since it was written",)
    assert finding.command == f"minitron prune ffn=3 rate=0.1 --run small --runs-dir {workspace.root.parent}"


def test_every_damage_of_an_artifact_is_listed(workspace):
    path = workspace.current("prune").path
    os.truncate(path / "model.safetensors", 10)
    (path / "config.json").unlink()
    (path / "stranger").touch()
    (path / "run.json").write_text("{}")
    (finding,) = api.verify(workspace.root).damaged
    assert sorted(finding.problems) == [
        "config.json is missing",
        "model.safetensors is not the file that was written",
        "run.json is missing or damaged",
        "stranger does not belong there",
    ]


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"schema_version": 1}', '{"schema_version": 3}'])
def test_an_unreadable_manifest_is_listed(workspace, content):
    path = workspace.current("prune").path
    (path / "manifest.json").write_text(content)
    (finding,) = api.verify(workspace.root).damaged
    assert finding.path == str(path)
    assert finding.problems[0].startswith("manifest.json ")
    assert finding.command.startswith("minitron prune --run small")


def test_what_else_belongs_to_a_workspace(workspace):
    (workspace.root / "settings.json").write_text("{")
    (workspace.stage_dir("prune") / "current").write_text("gone\n")
    found = {finding.path: finding.problems for finding in api.verify(workspace.root).damaged}
    assert found == {
        str(workspace.root / "settings.json"): ("it is damaged",),
        str(workspace.stage_dir("prune") / "current"): ("it names no artifact",),
    }


def test_an_input_that_is_gone_is_no_damage(workspace):
    made(workspace.stage_dir("prune"), "b-ffffffff", inputs={"model": "0" * 64, "scores": "1" * 64})
    found = api.verify(workspace.root)
    assert [(finding.problems, finding.is_damaged) for finding in found.findings] == [
        (("its scores is not in this workspace",), False)
    ]


def test_no_workspace(tmp_path):
    with pytest.raises(ArtifactError, match="there is no workspace"):
        api.verify(tmp_path / "nowhere")


def test_work_in_progress_is_no_artifact(workspace):
    for name in (".scratch-01234567", ".tmp-a-1234-1"):
        (workspace.stage_dir("prune") / name).mkdir()
    assert len(verification.paths(workspace)) == 2


class TestModelDirectory:
    """A stage's model that is named by its path, as a parent or a teacher."""

    @pytest.mark.parametrize("name", ["a-ffffffff", "elsewhere"])
    def test_a_changed_file_is_refused(self, tmp_path, name):
        path = made(tmp_path).path.rename(tmp_path / "b" if name == "elsewhere" else tmp_path / name)
        check_model(path)
        (path / "config.json").write_text('{"hidden_size": 4}')
        with pytest.raises(ArtifactError, match=r"config\.json is not the file .* or remove its manifest\.json to use"):
            model_names.resolve(str(path)).fingerprint()
        (path / "manifest.json").unlink()
        check_model(path)

    def test_an_added_file_is_not(self, tmp_path):
        path = made(tmp_path).path
        (path / "README.md").touch()
        check_model(path)

    @pytest.mark.parametrize("content", ["", "[]", "{", '{"name": "an app"}'])
    def test_a_manifest_of_another_program_is_not_ours(self, tmp_path, content):
        (tmp_path / "manifest.json").write_text(content)
        check_model(tmp_path)

    def test_a_damaged_manifest_is_refused(self, tmp_path):
        path = made(tmp_path).path
        content = json.loads((path / "manifest.json").read_text()) | {"label": "b"}
        (path / "manifest.json").write_text(json.dumps(content))
        with pytest.raises(ArtifactError, match=r"manifest\.json has changed since it was written"):
            check_model(path)


def test_inputs_that_the_user_gave_are_no_loss_and_stand_in_the_command(workspace):
    student, signals, outliers = ("3" * 64, "4" * 64, "5" * 64)
    inputs = {"student": student, "teacher": "0" * 64, "signals": signals}
    for stage in ("distill", "sparsify"):
        io.make_dirs(workspace.stage_dir(stage))
    path = made(workspace.stage_dir("distill"), "d-ffffffff", stage="distill", inputs=inputs).path
    made(workspace.stage_dir("sparsify"), "s-ffffffff", stage="sparsify", inputs={"outliers": outliers})
    problems = [finding.problems for finding in api.verify(workspace.root).findings]
    assert problems == [(f"its {name} is not in this workspace",) for name in ("student", "signals", "outliers")]
    workspace.save_given({student: "org/small@" + "a" * 40, signals: {"signals": "/elsewhere/signals"}})
    os.truncate(path / "model.safetensors", 10)
    damaged, outlier = api.verify(workspace.root).findings
    assert "--student org/small" in damaged.command
    assert "signals=/elsewhere/signals" in damaged.command
    assert outlier.problems == ("its outliers is not in this workspace",)


@pytest.mark.parametrize(
    ("stage", "inputs", "words"),
    [
        ("report", {}, "minitron report --run"),
        ("ticket_round", {"start": "1" * 64}, "minitron ticket train MODEL --run"),
        ("ticket_start", {"model": "2" * 64}, "minitron ticket train org/small --run"),
        ("supermask", {}, "minitron ticket supermask MODEL "),
        ("family", {}, "minitron run RECIPE --run"),
        ("transfer", {"found": "1" * 64}, "minitron ticket train --mask DIR "),
        ("landscape", {"model 0 a": "2" * 64, "model 1 b": "1" * 64}, "minitron landscape org/small MODEL "),
    ],
)
def test_damage_names_the_verb_that_makes_it_again(workspace, stage, inputs, words):
    workspace.save_given({"2" * 64: "org/small"})
    io.make_dirs(workspace.stage_dir(stage))
    path = made(workspace.stage_dir(stage), "d-ffffffff", stage=stage, inputs=inputs).path
    os.truncate(path / "model.safetensors", 10)
    (finding,) = api.verify(workspace.root).damaged
    assert finding.command.startswith(words)


def test_advice_on_what_to_remove_holds_for_a_directory_with_a_space(tmp_path):
    workspace = Workspace(tmp_path / "my runs" / "small")
    io.make_dirs(workspace.root)
    (workspace.root / "given.json").write_text("{")
    (finding,) = api.verify(workspace.root).findings
    assert finding.command.startswith(f"rm '{workspace.root / 'given.json'}', then")
