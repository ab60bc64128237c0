"""Commands of the report, for which no page is needed."""

import json
import shlex

from minitron_cli.report.provenance import settings
from tests.unit.report.hostile import HOSTILE


def test_a_command_gives_a_shell_what_was_set_and_nothing_more():
    for text in HOSTILE:
        words = shlex.split(" ".join(settings({"data": {"path": text, "paths": [text]}, "samples": 3, "shape": None})))
        assert words == [f"data.path={text}", f"data.paths={json.dumps([text])}", "samples=3"], text
