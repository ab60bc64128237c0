"""Every file of every stage's artifact, damaged in every way: the stage that reads it and `verify` say so."""

import itertools
import json
import os
import random
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from minitron_cli import api
from tests.cli.program import invoke, runs_with

PRUNE = ("prune", "--shape", "ffn=64", "--repair", "none")
TRAINING = ("--steps", 1, "batch_size=1", "--micro-batch-size", 1, "warmup_steps=0", "eval_blocks=1")
MADE = (
    ("correct", *TRAINING),
    ("search", "--target", "90%", "--retrain-tokens", 0, "--candidates", 2, "score_blocks=1"),
    PRUNE,
    ("distill", *TRAINING),
    ("eval", "blocks=1"),
    ("report",),
)
READ_BY: dict[str, tuple[str, ...]] = {
    "importance": PRUNE,
    "search": ("prune",),
    "prune": ("distill", "--steps", "2"),
    "correct": ("distill", "--steps", "2"),
    "distill": ("eval", "blocks=2"),
    "evaluate": ("show", "eval"),
}
"""Stage -> a command that reads its result."""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def made(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs directory with a result of every stage."""
    return runs_with(tmp_path_factory.mktemp("made") / "runs", tiny, *MADE)


@pytest.fixture
def runs(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "runs", symlinks=True))


def files(runs: Path) -> list[Path]:
    """Every file of every artifact."""
    return sorted(path for manifest in runs.glob("*/*/*/manifest.json") for path in manifest.parent.iterdir())


def flip(path: Path, draw: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def zero(path: Path, draw: random.Random) -> None:
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[: size // 2] + bytes(size - size // 2))


def truncate(path: Path, draw: random.Random) -> None:
    os.truncate(path, draw.randrange(path.stat().st_size))


def swap(path: Path, draw: random.Random) -> None:
    """Exchange it with the next file of its directory."""
    others = sorted(set(path.parent.iterdir()) - {path})
    other, spare = others[draw.randrange(len(others))], path.with_name("spare")
    path.rename(spare)
    other.rename(path)
    spare.rename(other)


def remove(path: Path, draw: random.Random) -> None:
    path.unlink()


DAMAGES: tuple[Callable[[Path, random.Random], None], ...] = (flip, zero, truncate, swap, remove)


def assert_one_sentence(result: Result, named: Path) -> None:
    assert result.exit_code == 2, result.output
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, result.stderr
    assert str(named) in errors[0]
    assert "to make it again" in errors[0]


def rounds(runs: Path) -> list[list[Path]]:
    """Every file once; each round has one file of every other artifact."""
    artifacts = [list(its) for _, its in itertools.groupby(files(runs), key=lambda path: path.parent)]
    halves = artifacts[::2], artifacts[1::2]
    return [[path for path in some if path] for half in halves for some in itertools.zip_longest(*half)]


@pytest.mark.parametrize("damage", DAMAGES)
def test_verify_finds_every_damage_to_every_file(
    runs: Path, tmp_path: Path, damage: Callable[[Path, random.Random], None]
) -> None:
    workspace, draw = runs / "model", random.Random(0)
    assert api.verify(workspace).findings == ()
    for paths in rounds(runs):
        shutil.copytree(workspace, tmp_path / "kept", symlinks=True)
        for path in paths:
            status = path.stat()
            damage(path, draw)
            if path.exists():
                os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        found = {finding.path: finding for finding in api.verify(workspace).damaged}
        shutil.rmtree(workspace)
        (tmp_path / "kept").rename(workspace)
        assert found.keys() == {str(path.parent) for path in paths}
        for path in paths:
            finding = found[str(path.parent)]
            assert any(path.name in problem or "manifest.json" in problem for problem in finding.problems), finding
            assert finding.command.startswith("minitron ")
    assert api.verify(workspace).findings == ()


@pytest.mark.parametrize("stage", READ_BY)
def test_the_stage_that_reads_a_damaged_file_says_so_and_makes_nothing(runs: Path, stage: str) -> None:
    draw = random.Random(stage)
    for path in (path for path in files(runs) if path.parent.parent.name == stage and path.name != "run.json"):
        keep = Path(shutil.copytree(path.parent, runs / "kept"))
        draw.choice(DAMAGES)(path, draw)
        before = {path.parent for path in runs.glob("*/*/*/manifest.json")} | {path.parent}
        assert_one_sentence(invoke(*READ_BY[stage], "--runs-dir", runs), path.parent)
        assert {path.parent for path in runs.glob("*/*/*/manifest.json")} <= before
        shutil.rmtree(path.parent)
        keep.rename(path.parent)


def test_good_scores_do_not_bring_back_a_child_of_damaged_ones(runs: Path) -> None:
    """The fault in which all of this began: a child of zeroed scores was "up to date" for the good ones."""
    (path,) = runs.glob("*/importance/*/scores.safetensors")
    content = path.read_bytes()
    zero(path, random.Random(0))
    assert_one_sentence(invoke("prune", "--shape", "ffn=32", "--repair", "none", "--runs-dir", runs), path.parent)
    path.write_bytes(content)
    result = invoke("prune", "--shape", "ffn=32", "--repair", "none", "--runs-dir", runs)
    assert result.exit_code == 0, result.stderr
    assert "prune: wrote" in result.stderr


def test_a_parent_that_changes_changes_the_key(runs: Path, tiny: Path, tmp_path: Path) -> None:
    """At the same size and modification time, too."""
    model = Path(shutil.copytree(tiny / "model", tmp_path / "model"))
    path = model / "model.safetensors"
    words = ("importance", model, "--data", tiny / "text.jsonl", "--sequence-length", 16, "--samples", 4)
    first = invoke(*words, "layer_removal=false", "--runs-dir", runs, "--run", "other")
    status = path.stat()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    second = invoke(*words, "layer_removal=false", "--runs-dir", runs, "--run", "other")
    assert "importance: wrote" in first.stderr
    assert "importance: wrote" in second.stderr
    (found,) = api.verify(runs / "other").findings
    assert not found.is_damaged
    assert f"{model} is no longer the model that it was made from" in found.problems


def test_verify_as_a_program(runs: Path) -> None:
    whole = invoke("verify", "model", "--runs-dir", runs)
    assert (whole.exit_code, whole.stdout) == (0, "")
    assert "0 damaged" in whole.stderr
    (scores,) = runs.glob("*/importance/*/scores.safetensors")
    flip(scores, random.Random(0))
    (tokens, *_) = sorted(runs.glob("*/tokens/*/tokens.bin"))
    flip(tokens, random.Random(0))
    found = invoke("verify", "--run", "model", "--runs-dir", runs)
    assert found.exit_code == 1
    assert f"damaged: {scores.parent}" in found.stderr
    assert "scores.safetensors has changed since it was written" in found.stderr
    assert f"damaged: {tokens.parent}" in found.stderr
    assert "make it again: minitron importance" in found.stderr
    assert invoke("verify", "nowhere", "--runs-dir", runs).exit_code == 2


def test_the_command_that_verify_names_makes_it_again(runs: Path) -> None:
    for stage in ("importance", "prune"):
        (manifest,) = runs.glob(f"*/{stage}/*/manifest.json")
        flip(next(manifest.parent.glob("*.safetensors")), random.Random(0))
    for finding in api.verify(runs / "model").damaged:
        result = invoke(*shlex.split(finding.command)[1:])
        assert result.exit_code == 0, result.stderr
    assert api.verify(runs / "model").findings == ()


def test_the_command_for_an_evaluation_names_the_models_that_it_was_given(runs: Path, tiny: Path) -> None:
    (pruned,) = (path.parent for path in runs.glob("*/prune/*/model.safetensors"))
    other = Path(shutil.copytree(tiny / "model", runs.parent / "another model"))
    old = set(runs.glob("*/evaluate/*/manifest.json"))
    made = invoke("eval", pruned, other, "blocks=1", "--runs-dir", runs)
    assert made.exit_code == 0, made.stderr
    (manifest,) = set(runs.glob("*/evaluate/*/manifest.json")) - old
    flip(manifest.parent / "items.json", random.Random(0))
    (finding,) = api.verify(runs / "model").damaged
    again = invoke(*shlex.split(finding.command)[1:])
    assert "evaluate: wrote" in again.stderr, again.stderr
    assert set(runs.glob("*/evaluate/*/manifest.json")) == {*old, manifest}


def test_an_input_that_is_gone_is_told_and_no_damage(runs: Path) -> None:
    (manifest,) = runs.glob("*/importance/*/manifest.json")
    shutil.rmtree(manifest.parent)
    found = api.verify(runs / "model")
    gone = [finding for finding in found.findings if not finding.is_damaged]
    assert {Path(finding.path).parent.name for finding in gone} == {"search", "prune", "report"}
    assert all("is not in this workspace" in finding.problems[0] for finding in gone)
    assert [Path(finding.path).name for finding in found.damaged] == ["current"]


def test_show_goes_on_over_what_can_be_read(runs: Path) -> None:
    for stage in ("prune", "distill"):
        (manifest,) = runs.glob(f"*/{stage}/*/manifest.json")
        flip(manifest.parent / "model.safetensors", random.Random(0))
    found = invoke("show", "--json", "--runs-dir", runs)
    assert found.exit_code == 2
    assert [one["stage"] for one in json.loads(found.stdout)] == ["importance", "search", "correct", "evaluate"]
    told = [line for line in found.stderr.splitlines() if "model.safetensors has changed" in line]
    assert [line.partition(":")[0] for line in told] == ["warning", "error"]


def test_a_damaged_run_record_is_a_warning(runs: Path) -> None:
    (manifest,) = runs.glob("*/prune/*/manifest.json")
    (manifest.parent / "run.json").write_text("{")
    found = invoke("show", "prune", "--json", "--runs-dir", runs)
    assert found.exit_code == 0
    assert json.loads(found.stdout)[0]["run"] is None
    told = [line for line in found.stderr.splitlines() if "run.json is missing or damaged" in line]
    assert len(told) == 1
    assert invoke("show", "cost", "--runs-dir", runs).exit_code == 0


def test_the_report_goes_on_without_a_damaged_control_and_refuses_a_damaged_product(runs: Path) -> None:
    control = invoke("distill", *TRAINING, "--objective", "ce", "--runs-dir", runs)
    assert control.exit_code == 0, control.stderr
    (runs / "model" / "distill" / "current").write_text(next(runs.glob("*/distill/distilled-*")).name)
    flip(next(runs.glob("*/distill/ce-*/model.safetensors")), random.Random(0))
    found = invoke("report", "--runs-dir", runs)
    assert found.exit_code == 0, found.stderr
    assert len([line for line in found.stderr.splitlines() if line.startswith("warning: skipped: ")]) == 1
    (product,) = runs.glob("*/distill/distilled-*/model.safetensors")
    flip(product, random.Random(0))
    assert_one_sentence(invoke("report", "--runs-dir", runs), product.parent)
