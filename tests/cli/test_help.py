"""Help of every command at 80 columns, and the names that options have in other trainers."""

import re
from functools import cache
from typing import Any

import pytest
import typer.main

from minitron_cli.cli import synonyms
from minitron_cli.cli.app import COMMANDS, GROUPS, app
from tests.cli.program import Run, invoke

EVERY = [*([name] for name in COMMANDS), *([group, name] for group, (bodies, _) in GROUPS.items() for name in bodies)]


@cache
def program() -> Any:
    return typer.main.get_command(app)


def parameters(words: list[str]) -> list[Any]:
    command = program()
    for word in words:
        command = command.commands[word]
    return command.params


@pytest.mark.parametrize("words", EVERY, ids=" ".join)
def test_no_name_is_cut_off_at_80_columns(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = invoke(*words, "--help").stdout
    assert "…" not in shown
    assert max(map(len, shown.splitlines())) <= 80
    names = {name for p in parameters(words) for name in [*p.opts, *p.secondary_opts] if name.startswith("-")}
    assert names <= set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", shown))
    first_columns = re.findall(r"^│ (--[^ ]+) ", shown, re.MULTILINE)
    options = [p for p in parameters(words) if p.param_type_name == "option"]
    assert {p.opts[0] for p in options} <= set(first_columns)
    assert {p.metavar for p in options if p.metavar and "|" not in p.metavar} <= set(shown.split()), "broken over lines"
    assert "<" not in shown.replace("<=", ""), "types as Typer writes them, which are long"


@pytest.mark.parametrize(
    ("given", "own"),
    [
        ("--learning-rate 1e-4", "--lr 1e-4"),
        ("--learning_rate=1e-4", "--lr=1e-4"),
        ("--per_device_train_batch_size 2 --max-steps 3", "--micro-batch-size 2 --steps 3"),
        ("--output-dir small --report-to wandb --report-to mlflow", "--output small --tracker wandb --tracker mlflow"),
        ("--batch_size 8 --max-length=64", "--batch-size 8 --sequence-length=64"),
        ("batch_size=8 --run a_b", "batch_size=8 --run a_b"),
        ("-o a_b -- --learning_rate", "-o a_b -- --learning_rate"),
        ("--no_resume --fail_if_worse", "--no-resume --fail-if-worse"),
    ],
)
def test_names_of_other_trainers_are_those_of_ours(given: str, own: str) -> None:
    options = [(p.opts, p.metavar) for p in parameters(["distill"]) if p.param_type_name == "option"]
    assert synonyms.with_own_names(given.split(), options) == own.split()


def test_what_is_given_by_another_name_is_read(run: Run) -> None:
    assert "'--lr'" in run("distill", "--learning_rate", "fast").stderr
    assert "'--micro-batch-size'" in run("correct", "--per-device-train-batch-size", 0).stderr


@pytest.mark.parametrize(
    ("given", "both"),
    [
        ("--lr 1e-4 --learning-rate 1e-3", "--lr and --learning-rate"),
        ("--learning-rate 1e-4 --learning_rate 1e-4", "--learning-rate and --learning_rate"),
        ("-o here --output-dir there", "-o and --output-dir"),
    ],
)
def test_two_names_of_one_option_are_refused(run: Run, given: str, both: str) -> None:
    result = run("distill", *given.split())
    assert result.exit_code == 2
    assert f"{both} are names of the same option" in " ".join(result.stderr.replace("│", " ").split())


def test_a_misspelled_name_of_another_trainer_is_suggested(run: Run) -> None:
    assert "Possible options: --learning-rate" in run("distill", "--learning-rte", "1e-4").stderr


@pytest.mark.parametrize("words", EVERY, ids=" ".join)
def test_every_other_name_is_one_that_the_command_does_not_have(words: list[str]) -> None:
    options = [p for p in parameters(words) if p.param_type_name == "option"]
    named = {name for p in options for name in [*p.opts, *p.secondary_opts]}
    assert not named & set(synonyms.SYNONYMS.values())


def test_a_file_is_no_output_directory(run: Run) -> None:
    assert "No such option: --output-dir" in run("report", "--output-dir", "page.html").stderr
