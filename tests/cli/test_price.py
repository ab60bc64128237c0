"""What every verb says of its price: in a dry run as data and as tables, and in one line before its first batch."""

import json
from pathlib import Path

import pytest

from tests.cli.program import invoke, runs_with

TRAINING = ("--steps", "2", "--batch-size", "2", "warmup_steps=0")
VERBS = {
    "importance": ("--samples", "3", "layer_removal=false"),
    "search": ("--target", "80%", "--candidates", "2", "retrain=null"),
    "prune": ("--shape", "ffn=64", "repair=least_squares", "repair_samples=4"),
    "correct": TRAINING,
    "distill": TRAINING,
    "eval": ("blocks=2", "--cloze"),
}


@pytest.fixture(scope="module")
def runs(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs_with(tmp_path_factory.mktemp("runs"), tiny, ("prune", "--shape", "ffn=96", "repair=none"))


@pytest.mark.parametrize("verb", VERBS)
def test_a_dry_run_prices_the_work(runs: Path, verb: str) -> None:
    words = (verb, *VERBS[verb], "--dry-run", "--runs-dir", runs)
    price = json.loads(invoke(*words, "--json").stdout)["price"]
    assert price["flops"] == sum(part["flops"] for part in price["parts"]) > 0
    assert price["memory_bytes"] == sum(price["memory"].values()) > 0
    assert price["left_out"] == (["choice among continuations"] if verb == "eval" else [])
    shown = invoke(*words).stderr
    assert f"Price: {price['what']}" in shown
    assert "Memory of a process" in shown
    assert ("not in the price: choice among continuations" in shown) == (verb == "eval")


def test_one_line_tells_the_price_before_the_first_batch_and_the_record_keeps_it(runs: Path) -> None:
    done = invoke("importance", *VERBS["importance"], "--runs-dir", runs, "--json")
    assert "importance: 3 samples of 16 tokens, models read 48 tokens, " in done.stderr
    assert "FLOP, seconds on cpu, " in done.stderr
    assert json.loads(done.stdout)["run"]["price"]["what"] == "3 samples of 16 tokens"
    assert "Price: " not in done.stderr


@pytest.mark.parametrize(("options", "is_shown"), [(("-v",), True), (("--verbose", "--quiet"), False)])
def test_who_wants_details_sees_the_price_by_part_before_the_first_batch(
    runs: Path, options: tuple[str, ...], is_shown: bool
) -> None:
    done = invoke("importance", *VERBS["importance"], "--runs-dir", runs, "--overwrite", "--json", *options)
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["stage"] == "importance"
    table = done.stderr.partition("Price: 3 samples of 16 tokens\n")[2]
    assert ("calibration" in table and "weights" in table) == is_shown
    assert done.stderr.count("Memory of a process, and disk") == is_shown


@pytest.mark.parametrize("verb", ["importance", "distill"])
def test_work_that_cannot_fit_is_refused_before_a_model_is_loaded(
    runs: Path, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minitron_cli.memory.available_bytes", lambda device: 10_000)
    monkeypatch.setattr("minitron_cli.checkpoint.hf.load_model", lambda *_, **__: pytest.fail("loaded a model"))
    mode = ("mode=resident",) if verb == "importance" else ()
    done = invoke(verb, *VERBS[verb], *mode, "--runs-dir", runs, "--overwrite")
    assert done.exit_code == 3
    assert ("set mode=layer_major" if verb == "importance" else "use a device with more memory") in done.stderr
    assert "9.766 KiB free" in done.stderr
