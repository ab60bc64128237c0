"""A few trials of each kind of the fault campaign, and its negative controls; `make faults` performs it all."""

import sys

import pytest

from tests.faults.campaign.__main__ import main


@pytest.mark.slow
def test_nothing_goes_wrong(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """In a fork of this process, which has imported what the commands need."""
    monkeypatch.setattr(sys, "argv", ["campaign", "--quick", "--jobs", "1"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code, capfd.readouterr()
