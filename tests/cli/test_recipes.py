"""Recipes on the command line: listing, copying, running dry."""

import json
from pathlib import Path

import pytest

from minitron_cli import recipe
from minitron_cli.price.probe import Probe
from tests.cli.program import Run

WIDTH = "llama-3.1-minitron-4b-width"


@pytest.fixture(autouse=True)
def _given_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every figure of a probe is one nanosecond or byte: an 8B model's layer takes seconds and gigabytes to time."""
    monkeypatch.setattr(Probe, "_figure", lambda *_: 1e-9)
    monkeypatch.setattr(Probe, "saved_bytes", lambda probe, tokens: float(tokens))


def test_recipes_are_listed_with_what_they_do(run: Run) -> None:
    listed = json.loads(run("recipes", "ls", "--json").stdout)
    assert set(listed) == set(recipe.shipped())
    assert listed[WIDTH].startswith("Llama 3.1 8B to 4.5B by width")
    assert WIDTH in run("recipes", "ls").stderr


def test_a_copied_recipe_is_the_same_bytes_and_nothing_is_written_over(run: Run, tmp_path: Path) -> None:
    assert run("recipes", "cp", WIDTH).exit_code == 0
    copy = tmp_path / f"{WIDTH}.yaml"
    assert copy.read_bytes() == recipe.shipped()[WIDTH].read_bytes()
    again = run("recipes", "cp", WIDTH)
    assert again.exit_code == 2
    assert "already exists: choose another file" in again.stderr
    assert run("recipes", "cp", WIDTH, "mine.yaml").exit_code == 0
    assert run("run", "mine.yaml", "--dry-run", "--json").exit_code == 0


def test_a_shown_recipe_is_its_text_on_stdout(run: Run) -> None:
    assert run("recipes", "show", WIDTH).stdout == recipe.shipped()[WIDTH].read_text()


def test_what_is_no_recipe_is_neither_shown_nor_copied(run: Run, tmp_path: Path) -> None:
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n')
    for file, why in ((tmp_path, "is not a regular file"), ("binary.yaml", "is not UTF-8 text"), ("rows.jsonl", "")):
        for words in (("show", file), ("cp", file, "copy.yaml")):
            result = run("recipes", *words)
            assert result.exit_code == 2, result.stderr
            assert why in result.stderr
    assert not (tmp_path / "copy.yaml").exists()


def test_the_schema_is_json_on_stdout(run: Run) -> None:
    assert json.loads(run("recipes", "schema").stdout) == recipe.schema()


def test_an_unknown_recipe_is_suggested(run: Run) -> None:
    result = run("run", "llama-3.1-minitron-4b-wdth")
    assert result.exit_code == 2
    assert f"did you mean {WIDTH}?" in result.stderr


@pytest.mark.parametrize(
    ("changes", "parameters"),
    [
        ([], 4_512_746_496),  # as published: 4.5B
        # 32 layers of gate, up and down, each 256 neurons of 3072 inputs or outputs
        (["prune.shape.ffn=9472"], 4_512_746_496 + 32 * 3 * 256 * 3072),
    ],
)
def test_the_width_recipe_comes_to_the_published_count(run: Run, changes: list[str], parameters: int) -> None:
    planned = json.loads(run("run", WIDTH, *changes, "--dry-run", "--json").stdout)
    assert planned["parent"]["parameters"] == 8_030_261_248
    assert planned["children"]["child"]["parameters"] == parameters
    assert f"{parameters:,}" in run("run", WIDTH, *changes, "--dry-run").stderr


def test_a_dry_run_tells_what_is_not_well_about_serving(run: Run) -> None:
    odd = ("run", WIDTH, "prune.shape.ffn=9210", "--dry-run")
    child = json.loads(run(*odd, "--json").stdout)["children"]["child"]
    assert {row["reader"]: row["nearest"] for row in child["serving"]}["GGUF K-quants"] == {"ffn": 9216}
    assert "Serving child" in run(*odd).stderr
    assert "Serving" not in run("run", WIDTH, "--dry-run").stderr


def test_the_depth_recipe_comes_to_the_published_count(run: Run) -> None:
    planned = json.loads(run("run", "llama-3.1-minitron-4b-depth", "--dry-run", "--json").stdout)
    assert planned["children"]["child"]["parameters"] == 4_540_469_248
    assert planned["children"]["child"]["sizes"]["layer"] == 16


@pytest.mark.slow
def test_a_searched_recipe_lists_shapes_within_the_budget(run: Run) -> None:
    planned = json.loads(run("run", "qwen3-8b-to-6b", "--dry-run", "--json").stdout)
    counts = [child["parameters"] for child in planned["children"].values()]
    assert len(counts) == 16
    assert all(abs(count / 6e9 - 1) <= 0.05 for count in counts)


def test_the_work_of_a_run_is_counted(run: Run) -> None:
    steps = json.loads(run("run", WIDTH, "--dry-run", "--json").stdout)["steps"]
    assert steps["distill"].startswith("9,961 steps of 1,152 x 8,192 tokens")  # ceil(94e9 / (1152 * 8192))
    assert steps["prune"] == "hidden 4,096 to 3,072, ffn 14,336 to 9,216"


def test_a_dry_run_prices_every_stage(run: Run) -> None:
    prices = json.loads(run("run", WIDTH, "--dry-run", "--json").stdout)["prices"]
    assert list(prices) == ["importance", "prune", "distill", "eval"]
    steps, per_step, student, teacher = 9961, 1152 * 8192, 4_512_746_496, 8_030_261_248
    distill = prices["distill"]
    counted = {part["name"]: part for part in distill["parts"]}
    assert counted["training"]["tokens"] == steps * per_step
    embedding = 128_256 * 3072  # is looked up; the rest multiplies, and attends to half a block of 32 x 128 channels
    forward = 2 * (student - embedding - 65 * 3072) + 4 * 32 * 4096 * 4096
    assert counted["training"]["flops"] + counted["training, head"]["flops"] == 3 * forward * steps * per_step
    assert distill["memory"]["weights"] == distill["memory"]["gradients"] == 4 * student
    assert distill["memory"]["moments"] == 8 * student
    assert distill["memory"]["teacher"] in (2 * teacher, 4 * teacher)
    assert distill["disk"] == {"result": 2 * student, "checkpoints": 3 * 12 * student}
    assert prices["eval"]["left_out"]
    assert "Price" in run("run", WIDTH, "--dry-run").stderr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("prune.shape.fnn=9216", "prune.shape.fnn is not a known key; did you mean ffn?"),
        ("prune.shape.ffn=20000", "ffn=20000 is not within 1 to the parent's 14336"),
        ("prune.shape.hidden=3001", "hidden=3001 with head=32: transformers takes a llama model only where"),
        ("prune.drop_layers=[40]", "drop_layers names layer 40: the model's layers are 0 to 31"),
        ("model=llama-3.2-1b", "hidden=3072 is not within 1 to the parent's 2048"),
    ],
)
def test_an_impossible_change_is_refused_before_anything_runs(
    run: Run, tmp_path: Path, change: str, message: str
) -> None:
    result = run("run", WIDTH, change, "--dry-run")
    assert result.exit_code == 2
    assert message in result.stderr
    assert not list(tmp_path.iterdir())


def test_the_demo_recipe_plans_with_the_model_that_ships(run: Run) -> None:
    planned = json.loads(run("run", "demo", "--dry-run", "--json").stdout)
    assert planned["parent"]["parameters"] == 3_935_424
    trained = {"distill", "distill random-init"}
    assert {stage for stage in planned["prices"] if stage.startswith("distill")} == trained


def test_a_duplicate_key_is_refused_with_its_line(run: Run, tmp_path: Path) -> None:
    (tmp_path / "twice.yaml").write_text("model: a\ndata: {sources: []}\nmodel: b\n")
    result = run("run", "twice.yaml")
    assert result.exit_code == 2
    assert result.stderr == 'error: twice.yaml:3: key "model" occurs twice; fix the line\n'


def test_an_absent_model_is_said_and_leaves_nothing(run: Run, tmp_path: Path) -> None:
    result = run("run", WIDTH, "model=nobody/nothing", "--offline")
    assert result.exit_code == 3
    assert "nobody/nothing is not in the local cache" in result.stderr
    assert not list(tmp_path.iterdir())
