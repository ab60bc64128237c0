"""`minitron data inspect`: on a terminal, elsewhere, and as data."""

import json
from pathlib import Path

import pytest

from minitron_cli.cli.sessions import _requested
from minitron_cli.yaml_document import YamlDocument
from tests.cli.program import Run

GREEN = "\x1b[32m"


@pytest.mark.slow
def test_blocks_are_printed_in_color_in_brackets_or_as_json(
    run: Run, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("data", "inspect", str(tiny / "model"), "--data", str(tiny / "text.jsonl"), "--sequence-length", "64")
    plain = run(*words)
    assert plain.exit_code == 0, plain.stderr
    assert plain.stdout.startswith("block 0 of ")
    assert GREEN not in plain.stdout
    again = ("data", "inspect", "--block", "1", "--block", "3")  # the model and the text are remembered
    found = json.loads(run(*again, "--json").stdout)
    assert [view["block"] for view in found["shown"]] == [1, 3]
    for view in found["shown"]:
        assert sum(piece["tokens"] for piece in view["pieces"]) == view["tokens"] == 64
        assert sum(piece["tokens"] for piece in view["pieces"] if piece["counts"]) == view["counted"]
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert GREEN in run(*words).stdout
    monkeypatch.setenv("NO_COLOR", "1")
    assert run(*words).stdout == plain.stdout
    last = found["blocks"] - 1
    refused = run(*again, "--block", str(last + 1))
    assert refused.exit_code == 2
    assert f"--block {last + 1}: the train text has {last + 1:,} blocks; give 0 to {last}" in refused.stderr
    assert run(*words, "--split", "validation").stdout.startswith("block 0 of ")


def test_a_seed_of_data_is_refused_and_one_that_was_stored_is_left_out(run: Run, tiny: Path) -> None:
    words = ("importance", str(tiny / "model"), "--data", str(tiny / "text.jsonl"), "--dry-run")
    refused = run(*words, "data.seed=7")
    assert refused.exit_code == 2
    assert "data have no seed of their own" in refused.stderr
    assert "set --seed" in refused.stderr
    text = {"sources": [{"kind": "python_help"}]}
    assert _requested(YamlDocument(), {"data": {**text, "seed": 7}}, None, None, {}).values["data"] == text
