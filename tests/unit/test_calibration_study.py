"""The study of calibration text: its figures by hand, and a run from one end to the other."""

import os
import sys
from pathlib import Path

import pytest
import torch

from tests.processes import apart

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))  # scripts import their neighbors

from scripts import calibration_study
from scripts.calibration_study import agreement, mean_tau, shared_lowest


def study(*words: str) -> None:
    """Run the script with these arguments."""
    sys.argv = ["calibration_study.py", *words]
    calibration_study.main()


@pytest.mark.slow
def test_every_text_and_number_of_samples_has_a_row_and_a_ranking_agrees_with_itself(tmp_path: Path) -> None:
    library = Path(os.__file__).parent
    text = tmp_path / "text.txt"
    text.write_text("".join((library / f"{name}.py").read_text() for name in ("argparse", "ast", "inspect", "typing")))
    page = tmp_path / "page.md"
    words = ("demo-teacher", "--text", str(text), "--samples", "2", "8", "--sequence-length", "64")
    apart(study, *words, "--runs-dir", str(tmp_path / "runs"), "--output", str(page))
    rows = [line for line in page.read_text().splitlines() if line.startswith(("| the other half", "| Python"))]
    assert [row.split(" | ")[1:3] for row in rows] == [["2", "3"], ["8", "1"]] * 2


def test_agreement_is_that_of_the_definition() -> None:
    a = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]])
    b = torch.tensor([[3.0, 1.0, 2.0, 8.0, 4.0, 5.0, 6.0, 7.0]])
    pairs = [(i, j) for i in range(8) for j in range(i)]
    concordant = sum(bool((a[0, i] > a[0, j]) == (b[0, i] > b[0, j])) for i, j in pairs)
    assert mean_tau(a, b) == pytest.approx((2 * concordant - len(pairs)) / len(pairs))
    assert shared_lowest(a, b) == 0.5  # the lowest two of one are the first and second, of the other second and third
    assert agreement(a, [a, a]) == "1.00 ± 0.00, 100 ± 0 %"
    assert mean_tau(torch.cat([a, a]), torch.cat([a, -a])) == 0
