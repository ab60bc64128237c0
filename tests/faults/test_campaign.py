"""A few trials of each kind of the fault campaign, and its negative controls; `make faults` performs it all."""

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("words", [("--quick",), ("--only", "negative controls", "--jobs", "1")], ids=" ".join)
def test_nothing_goes_wrong(words: tuple[str, ...]) -> None:
    command = [sys.executable, "-m", "tests.faults.campaign", *words]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
