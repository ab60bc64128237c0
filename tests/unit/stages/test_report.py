"""What the report stage makes of artifacts, where no page is needed to see it."""

import json
import shlex

import pytest

from minitron_cli.stages.report import _settings
from tests.unit.report.hostile import HOSTILE


@pytest.mark.parametrize("text", HOSTILE)
def test_a_command_gives_a_shell_what_was_set_and_nothing_more(text):
    words = shlex.split(" ".join(_settings({"data": {"path": text, "paths": [text]}, "samples": 3, "shape": None})))
    assert words == [f"data.path={text}", f"data.paths={json.dumps([text])}", "samples=3"]
