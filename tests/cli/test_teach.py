"""`minitron teach` and recipes with signals, from the command line: the teacher runs once, for search and training."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from minitron_cli.artifacts.workspace import Workspace
from minitron_cli.cost.lineage import fingerprints
from minitron_cli.report.product import Product
from tests.cli.program import Run, invoke, runs_with

DATA = ("--sequence-length", 16)
TRAINING = ("--steps", 2, "--batch-size", 2, "--micro-batch-size", 2, "--warmup-steps", 1, "eval_blocks=2")


def printed(*arguments: Any, code: int = 0) -> Any:
    """The JSON that a verb prints; or, with `code`, its last line on stderr."""
    result = invoke(*arguments, *(["--json"] if code == 0 else []))
    assert result.exit_code == code, result.stderr
    return json.loads(result.stdout) if code == 0 else result.stderr.splitlines()[-1]


def test_a_dry_run_says_what_is_stored(run: Run, tiny: Path) -> None:
    text = ("--data", tiny / "text.jsonl", *DATA)
    dry = printed("teach", tiny / "model", *text, "--tokens", 320, "--draws", 20, "--dry-run")
    assert dry["forecast"]["signals"] == "20 draws"
    assert dry["forecast"]["blocks"] == 20
    assert dry["price"]["disk"]["signals"] > 0
    assert dry["forecast"]["cheaper than a live teacher from pass"] >= 2


def test_bad_input_is_one_sentence(run: Run, tiny: Path) -> None:
    model, text = tiny / "model", ("--data", tiny / "text.jsonl", *DATA)
    for words, said in [
        ((), "no data given: add --data"),
        ((*text, "signals.kind=top_k", "signals.k=8"), "k 8 is below 128, which leaves out too much"),
        ((*text, "--kind", "top_k", "--epochs", 2), "top_k is the same in every pass: drop epochs"),
        ((*text, "--draws", 300), "draws"),
    ]:
        assert said in printed("teach", model, *words, code=2), words


@pytest.mark.parametrize(
    ("options", "stored"),
    [
        ((), "top 256"),
        (("--kind", "top_k"), "top 256"),
        (("--kind", "sampled"), "50 draws"),
        (("--kind", "sampled", "--draws", 20), "20 draws"),
        (("signals.k=200", "--kind", "top_k"), "top 200"),
    ],
)
def test_options_change_what_they_name_and_leave_the_rest_of_the_recipe(
    run: Run, tiny: Path, options: tuple[str | int, ...], stored: str
) -> None:
    dry = printed("teach", "--recipe", _recipe_of_top_256(tiny), *options, "--dry-run")
    assert dry["forecast"]["signals"] == stored


def test_draws_of_signals_that_are_not_drawn_are_refused(run: Run, tiny: Path) -> None:
    said = printed("teach", "--recipe", _recipe_of_top_256(tiny), "--draws", 20, "--dry-run", code=2)
    assert "--draws is about --kind sampled, and the signals are top_k" in said


def _recipe_of_top_256(tiny: Path) -> Path:
    file = Path("recipe.yaml")
    file.write_text(
        f"""
model: {tiny / "model"}
data: {{sources: [{{kind: files, paths: [{tiny / "text.jsonl"}]}}], sequence_length: 16}}
prune: {{shape: {{ffn: 64}}}}
distill: {{steps: 2, batch_size: 2, warmup_steps: 1}}
teach: {{signals: {{kind: top_k, k: 256}}}}
"""
    )
    return file


@pytest.mark.slow
def test_the_verbs_after_it_read_and_show_signals(run: Run, tiny: Path) -> None:
    runs_with(Path("runs"), tiny, ("prune", "shape.ffn=64", "repair=none"))
    made = printed("teach", "eval_blocks=2")
    assert printed("show", "teach")[0]["key"] == made["key"]
    assert "bytes for each position" in invoke("show", "teach").output
    trained = printed("distill", *TRAINING)
    assert trained["result"]["signals"] == "50 draws"
    product = Product.current(Workspace(Path("runs/model")))
    assert [one.stage for one in product.artifacts] == ["importance", "prune", "teach", "distill"]
    assert "teach" in [row["stage"].split()[0] for row in _cost_rows()]
    page = Path(printed("report")["path"])
    assert "what the teacher had said of the text once (50 draws" in (page / "report.html").read_text()
    assert "what the teacher had said of the text once (50 draws" in (page / "model-card.md").read_text()
    shard = Path(made["path"]) / made["result"]["train"]["shards"][0]
    shard.write_bytes(shard.read_bytes()[:-1])
    found = invoke("verify", "--json")
    assert found.exit_code == 1
    (finding,) = (one for one in json.loads(found.stdout)["findings"] if one["is_damaged"])
    assert shard.name in finding["problems"][0]
    assert invoke(*shlex.split(finding["command"])[1:]).exit_code == 0
    assert invoke("verify").exit_code == 0
    assert shard.is_file()


def _cost_rows() -> list[dict[str, str]]:
    lines = invoke("show", "cost").output.splitlines()
    return [{"stage": line.strip(" │|")} for line in lines if line.strip(" │|")]


@pytest.mark.slow
def test_a_recipe_teaches_once_for_its_search_and_every_step(run: Run, tiny: Path) -> None:
    data = f"data: {{sources: [{{kind: files, paths: [{tiny / 'text.jsonl'}]}}], sequence_length: 16}}"
    distill = "distill: {steps: 2, batch_size: 2, micro_batch_size: 2, warmup_steps: 1, eval_blocks: 2}"
    retrain = "retrain: {top: 2, tokens: 64, batch_size: 2, micro_batch_size: 2, warmup_steps: 0}"
    search = (
        f"search: {{budget: {{target: 133600}}, space: {{ffn: [64, 72]}}, {retrain}, score_blocks: 2, objective: loss}}"
    )
    steps = f"steps:\n  - {{label: a, {search}}}\n  - {{label: b, prune: {{shape: {{ffn: 48}}, repair: none}}}}"
    rest = (
        f"importance: {{samples: 4, layer_removal: false}}\nteach: {{}}\n{distill}\nevaluate: {{blocks: 2}}\n{steps}\n"
    )
    Path("small.yaml").write_text(f"model: {tiny / 'model'}\n{data}\nprune: {{repair: none}}\n{rest}")
    plan = printed("run", "small.yaml", "--dry-run")
    assert plan["prices"]["a: teach"]["disk"]["signals"] > 0
    assert "50 draws" in plan["steps"]["b: teach"]
    made = printed("run", "small.yaml")
    stages = [one["stage"] for one in made]
    taught = [one for one in made if one["stage"] == "teach"]
    assert len({one["key"] for one in taught}) == 1
    assert stages.count("distill") == 2
    workspace = Workspace(Path("runs/small"))
    (signals,) = workspace.artifacts("teach")
    readers = [*workspace.artifacts("distill"), *workspace.artifacts("search")]
    assert len(readers) == 3
    assert {one.manifest.inputs.get("signals") for one in readers} <= set(fingerprints(signals))


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ("", "there is none with a teacher; remove teach"),
        ("distill: {steps: 2, losses: [{kind: cross_entropy}]}\n", "there is none with a teacher; remove teach"),
        ("distill: {steps: 2, losses: [{kind: jsd}]}\n", "jsd needs all of it; remove teach, or change the losses"),
        ("distill: {steps: 2, hidden: {}}\n", "hold no hidden states, which distill.hidden compares; remove teach"),
        (
            "distill: {steps: 2, hidden: {}, positions: {share: 0.2}}\n",
            "positions choose among the losses on logits",
        ),
    ],
)
def test_a_recipe_whose_training_cannot_read_signals_is_refused(run: Run, tiny: Path, sections: str, said: str) -> None:
    data = f"data: {{sources: [{{kind: files, paths: [{tiny / 'text.jsonl'}]}}]}}"
    Path("r.yaml").write_text(
        f"model: {tiny / 'model'}\n{data}\nprune: {{shape: {{ffn: 64}}}}\nteach: {{}}\n{sections}"
    )
    assert said in printed("run", "r.yaml", "--dry-run", code=2)
