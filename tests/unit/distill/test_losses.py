"""The registry of losses: a new one takes one file and one name."""

import json
from pathlib import Path

import pytest

from tests.extended_package import ExtendedPackage

TOY = '''
"""Squared distance between centered logits."""

from typing import TYPE_CHECKING, ClassVar, Literal

from minitron_cli.distill.losses.base import TeacherLoss
from minitron_cli.figures import Figure

if TYPE_CHECKING:
    from torch import Tensor


class LogitDistance(TeacherLoss):
    """Mean squared difference of centered logits, for this test."""

    kind: Literal["logit_distance"] = "logit_distance"
    figure: ClassVar[Figure] = Figure("logit distance", "nats/token", better="lower")

    def value_and_grad(self, student_NV, teacher_NV, labels_N):
        """Each token's loss [N] and its gradient [N, V]."""
        self.soften_(student_NV, teacher_NV)
        apart_NV = student_NV - student_NV.mean(-1, True) - (teacher_NV - teacher_NV.mean(-1, True))
        return apart_NV.square().mean(-1), 2 * apart_NV / apart_NV.shape[-1] / self.temperature
'''
SCRIPT = """
import json, pytest
from minitron_cli.distill.curves import training_figures
from minitron_cli.recipe import Recipe
from tests.unit.distill import small

config = small.configured(losses=[{"kind": "forward_kl"}, {"kind": "logit_distance", "weight": 0.1}])
_, result = small.run(None, config)
print(json.dumps(result.metrics))
print(json.dumps(result.validation))
print(json.dumps({name: figure.heading for name, figure in training_figures(config).items()}))
print("LogitDistance" in Recipe.model_json_schema()["$defs"])
names = ["-k", "LogitDistance or logit_distance"]
pytest.main(["-q", "-p", "no:cacheprovider", *names, "tests/conformance/test_losses.py", "tests/parity"])
"""
TESTS = ("tests/conformance/test_losses.py", "tests/parity/test_distill_losses.py")
HELPERS = ("tests/quick.py", "tests/tiny.py", "tests/unit/distill/small.py")


@pytest.mark.slow
def test_a_new_loss_is_one_file_and_one_name(tmp_path: Path) -> None:
    package = ExtendedPackage(tmp_path, (*TESTS, *HELPERS))
    package.add("minitron_cli/distill/losses/logit_distance.py", TOY)
    package.name(
        "minitron_cli/distill/losses/__init__.py",
        {
            "\n\nKDLoss = ": "\nfrom minitron_cli.distill.losses.logit_distance import LogitDistance\n\nKDLoss = ",
            "| CrossEntropy,": "| CrossEntropy | LogitDistance,",
        },
    )
    metrics, validation, headings, is_in_schema, *_, tested = package.run(SCRIPT).splitlines()
    rows = json.loads(metrics)
    assert all(row["loss"] == row["forward_kl"] + 0.1 * row["logit_distance"] for row in rows)
    assert rows[-1]["logit_distance"] < rows[0]["logit_distance"]
    assert all(row["kl"] > 0 for row in json.loads(validation))
    assert json.loads(headings) == {
        "loss": "loss",
        "forward_kl": "forward KL to the teacher (nats/token)",
        "logit_distance": "logit distance (nats/token)",
        "learning_rate": "learning rate",
        "grad_norm": "gradient norm",
    }
    assert is_in_schema == "True"
    assert "failed" not in tested
    assert int(tested.split(" passed")[0]) >= 25
