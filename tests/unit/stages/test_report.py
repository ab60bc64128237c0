"""Commands of the report, for which no page is needed."""

import json
import shlex

import pytest

from minitron_cli.evaluate.config import EvaluateConfig
from minitron_cli.report.settings import CONFIGS, stage_settings, text_settings
from minitron_cli.results.of_stage import RESULTS
from tests.unit.report.hostile import HOSTILE

UNTOUCHED = {"teacher", "report", "family", "ticket_start", "ticket_round"}
"""Stages that no verb with settings of its own makes."""


def test_a_command_gives_a_shell_what_was_set_and_nothing_more():
    for text in HOSTILE:
        words = shlex.split(" ".join(text_settings({"path": text, "paths": [text], "fraction": None})))
        assert words == [f"data.path={text}", f"data.paths={json.dumps([text])}"], text
    assert [*stage_settings("prune", {"shape": {"ffn": 3}, "budget": None}, {})] == ["shape.ffn=3"]


@pytest.mark.parametrize(
    ("stage", "config", "words"),
    [
        ("search", {"retrain": None, "budget": None}, ["prune.repair=none", "retrain=null"]),
        ("search", {"space": {"ffn": []}, "constraints": []}, ["prune.repair=none", "space.ffn='[]'"]),
        ("distill", {"eval_blocks": None, "tokens": None}, ["eval_blocks=null"]),
        ("ticket", {"training": {"eval_blocks": None, "tokens": None}}, ["training.eval_blocks=null"]),
        ("evaluate", {"blocks": None, "tasks": [], "cloze": None}, ["blocks=null"]),
        ("unknown", {"shape": None, "space": []}, ["space='[]'"]),
    ],
)
def test_what_is_absent_is_said_where_a_default_would_take_its_place(stage, config, words):
    assert [*stage_settings(stage, config, {})] == words


def test_a_seed_that_an_earlier_version_has_stored_is_left_out_of_commands() -> None:
    assert [*text_settings({"bos": "auto", "seed": 3})] == ["data.bos=auto"]


def test_every_stage_with_settings_is_known():
    assert CONFIGS.keys() | UNTOUCHED == RESULTS.keys()
    assert EvaluateConfig is CONFIGS["evaluate"]


def test_a_search_says_what_it_read_of_the_section_on_pruning():
    inputs = {"repair": "rotate on 12 samples", "head": "its own", "serving_lint": "warn", "write_as": "text"}
    assert [*stage_settings("search", {}, inputs)] == [
        "prune.repair=rotate",
        "prune.repair_samples=12",
        "prune.untie=true",
        "prune.serving_lint=warn",
        "prune.write_as=text",
    ]
