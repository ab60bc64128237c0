"""What stands beside the models of an evaluation."""

from pathlib import Path

from minitron_cli.artifacts.workspace import others_beside
from minitron_cli.evaluate.other_model import OtherModel
from minitron_cli.evaluate.others import read
from minitron_cli.report import beside
from minitron_cli.report.product import place
from tests.unit.report.written import BIG, chain, distill


def test_distilled_models_that_were_not_measured_are_listed_with_their_paths(tmp_path: Path) -> None:
    workspace, (wide, narrow, student, evaluation) = chain(tmp_path)
    older = distill(workspace, BIG, narrow, seed=1)
    shown = beside.not_measured(evaluation)
    assert [row[0] for row in shown.rows] == [place(older.path)]
    assert student.path != older.path != wide.path
    assert shown.header == ("path", "training tokens")


def test_models_measured_elsewhere_are_those_given_for_the_same_parent(tmp_path: Path) -> None:
    workspace, (_, _, _, evaluation) = chain(tmp_path)
    (llama,) = read([OtherModel(name="llama", values={"quiz.acc": 0.7})]).values()
    parent = evaluation.manifest.inputs["model parent"]
    workspace.save_given({others_beside("another"): {"foreign": llama.model_dump(mode="json")}})
    assert beside.elsewhere(evaluation) == []
    workspace.save_given({others_beside(parent): {"llama": llama.model_dump(mode="json")}})
    assert [(model.label, model.kind, model.found) for model in beside.elsewhere(evaluation)] == [
        ("llama", "other", llama)
    ]
    assert [model.label for model in beside.models(evaluation)][-2:] == ["distilled", "llama"]
    workspace.save_given({others_beside(parent): {"llama": {"of": "another version"}}})
    assert beside.elsewhere(evaluation) == []
