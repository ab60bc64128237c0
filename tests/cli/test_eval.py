"""`minitron eval` on two tiny models: comparison, gates, what CI reads, the suite's dry run, speed."""

import json
import shutil
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from minitron_cli.cli.evaluate import labels
from minitron_cli.errors import GateMissed
from tests.cli.program import invoke
from tests.tiny import write_tiny
from tests.unit.evaluate import suite_data

ASKED = ("blocks=40", "--cloze", "cloze.items=30", "cloze.context_words=6", "cloze.continuation_words=2")


class KeyPath:
    """A workspace in which a model and another, made up as its child, have been measured."""

    def __init__(self, root: Path, tiny: Path) -> None:
        self.root, self.parent, self.child = root, tiny / "model", root / "child"
        self.runs = ("--runs-dir", root / "runs")
        write_tiny(self.child, vocab_size=300, hidden_size=48, intermediate_size=96, seed=3)
        for file in (tiny / "tokenizer").iterdir():
            shutil.copy(file, self.child)
        words = (self.parent, self.child, "--data", tiny / "text.jsonl", "--sequence-length", 64)
        self.found = self.json(*words)

    def json(self, *words: Any) -> Any:
        result = invoke("eval", *words, *ASKED, *self.runs, "--json")
        assert result.exit_code == 0, result.stderr
        return json.loads(result.stdout)

    def run(self, *words: Any) -> Any:
        return invoke("eval", self.child, *ASKED, *self.runs, *words)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> KeyPath:
    return KeyPath(tmp_path_factory.mktemp("eval"), tiny)


def test_the_difference_is_that_of_the_items(place: KeyPath) -> None:
    items = json.loads((Path(place.found["path"]) / "items.json").read_text())["models"]
    models = place.found["result"]["models"]
    for task, metric in (("perplexity", "loss"), ("cloze", "acc")):
        child, parent = (items[label][task][metric] for label in ("child", "parent"))
        weights = child["weights"] or np.ones(len(child["values"]))
        means = [np.average(side["values"], weights=weights) for side in (child, parent)]
        assert models["child"]["results"][task][metric]["value"] == pytest.approx(means[0])
        assert models["parent"]["results"][task][metric]["value"] == pytest.approx(means[1])
        apart = models["child"]["against_parent"][task][metric]
        assert apart["difference"] == pytest.approx(means[0] - means[1])
        assert apart["low"] < apart["difference"] < apart["high"]
    assert not models["parent"]["against_parent"]
    losses = models["child"]["against_parent"]["perplexity"]
    assert losses["perplexity"]["ratio"] == pytest.approx(np.exp(losses["loss"]["difference"]))
    assert losses["perplexity"]["ratio_stderr"] == pytest.approx(
        losses["perplexity"]["ratio"] * losses["loss"]["stderr"]
    )


def test_several_models_are_compared_with_each_other_and_with_one_measured_elsewhere(
    place: KeyPath, tiny: Path, tmp_path: Path
) -> None:
    """Differences are those of the items, pair by pair; the model measured elsewhere has a column, here and later."""
    for seed, name in enumerate("bc", 4):
        shutil.copytree(place.child, tmp_path / name)
        write_tiny(tmp_path / name, vocab_size=300, hidden_size=48, intermediate_size=96, seed=seed)
    file = tmp_path / "results.json"
    file.write_text(json.dumps({"results": {"cloze": {"acc,none": 0.9}}}))
    words = (place.child, tmp_path / "b", tmp_path / "c", "--no-cloze", "blocks=8", "--other", f"llama={file}")
    result = invoke("eval", *words, *place.runs, "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    losses = {
        label: np.average(items["perplexity"]["loss"]["values"], weights=items["perplexity"]["loss"]["weights"])
        for label, items in json.loads((Path(found["path"]) / "items.json").read_text())["models"].items()
    }
    models = found["result"]["models"]
    pairs = {(label, other) for label, model in models.items() for other in model.get("against", {})}
    assert pairs == {("b", "child"), ("c", "child"), ("c", "b")}
    for label, other in pairs:
        apart = models[label]["against"][other]["perplexity"]["loss"]
        assert apart["difference"] == pytest.approx(losses[label] - losses[other])
        assert apart["low"] < apart["difference"] < apart["high"]
    assert found["others"]["llama"]["results"]["cloze"]["acc"]["value"] == 0.9
    told = invoke("show", "eval", *place.runs)
    shown = " ".join(told.output.split())
    assert not told.exit_code, told.stderr
    for words in ("Difference from b on the same items", "Measured elsewhere", "results.json", "c - child"):
        assert words in shown


def test_questions_of_one_document_are_counted_together(place: KeyPath) -> None:
    accuracy = place.found["result"]["models"]["child"]["results"]["cloze"]["acc"]
    groups = json.loads((Path(place.found["path"]) / "items.json").read_text())["models"]["child"]["cloze"]["acc"]
    assert accuracy["clusters"] == len(set(groups["groups"])) < accuracy["n"] == 30
    assert place.found["result"]["models"]["child"]["against_parent"]["cloze"]["acc"]["mcnemar"] is None


@pytest.mark.slow
def test_questions_of_one_document_alone_are_counted_each(place: KeyPath, tiny: Path, tmp_path: Path) -> None:
    """It says nothing about what documents differ by, and the tables say so."""
    lines = (tiny / "text.jsonl").read_text().splitlines()
    alone = json.dumps({"text": " ".join(json.loads(line)["text"] for line in lines[:8])})
    for count, texts in ((1, [alone]), (16, lines)):
        (tmp_path / f"{count}.jsonl").write_text("\n".join(texts[:count]) + "\n")
        words = ("--validation", tmp_path / f"{count}.jsonl", "--data", tiny / "text.jsonl", "--sequence-length", 64)
        result = invoke("eval", place.parent, place.child, *words, *ASKED, "--runs-dir", tmp_path / "runs", "--json")
        found = json.loads(result.stdout)
        child = found["result"]["models"]["child"]
        accuracy = child["results"]["cloze"]["acc"]
        loss = child["results"]["perplexity"]["loss"]
        units = (accuracy["unit"], loss["unit"])
        assert units == (("item", "block") if count == 1 else ("document", "document"))
        assert accuracy["clusters"] == 1 if count == 1 else 8 <= accuracy["clusters"] <= 16
        assert child["against_parent"]["cloze"]["acc"]["mcnemar"] is None
        shown = invoke(
            *map(str, ("eval", place.parent, place.child)), *map(str, words), *ASKED, "--runs-dir", tmp_path / "runs"
        ).stderr
        assert ("not for other documents" in shown) == ("there is one document" in shown) == (count == 1)


def renumbered(model: Path, directory: Path) -> Path:
    """The same model with other numbers for its tokens: rows of embedding and head, and the tokenizer, go along."""
    shutil.copytree(model, directory)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(0))  # new id -> old id
    tensors = load_file(directory / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = tensors[name][order].contiguous()
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    file = directory / "tokenizer.json"
    content = json.loads(file.read_text())
    new = {int(old): i for i, old in enumerate(order)}
    content["model"]["vocab"] = {token: new[i] for token, i in content["model"]["vocab"].items()}
    content["added_tokens"] = [token | {"id": new[token["id"]]} for token in content["added_tokens"]]
    file.write_text(json.dumps(content))
    config = json.loads((directory / "config.json").read_text())
    ids = {name: new[config[name]] for name in ("bos_token_id", "eos_token_id") if config.get(name) is not None}
    (directory / "config.json").write_text(json.dumps(config | ids))
    return directory


@pytest.mark.slow
def test_a_model_of_another_tokenizer_is_compared_per_byte_alone(place: KeyPath, tiny: Path, tmp_path: Path) -> None:
    """One that differs from the parent in the numbers of its tokens only is not apart from it."""
    twin = renumbered(place.parent, tmp_path / "twin")
    text = ("--data", tiny / "text.jsonl", "--sequence-length", 64, "--runs-dir", tmp_path / "runs")
    words = ("eval", place.parent, twin, place.child, *text, "blocks=9")
    result = invoke(*words, "--json")
    assert result.exit_code == 0, result.stderr
    assert "has the id" in result.stderr
    assert "all models are measured per byte" in result.stderr
    models = json.loads(result.stdout)["result"]["models"]
    per_byte = {"bits_per_byte", "byte_perplexity"}
    assert models["twin"]["results"]["perplexity"].keys() == per_byte
    assert models["parent"]["results"]["perplexity"].keys() == {"loss", "perplexity"} | per_byte
    assert models["child"]["results"]["perplexity"].keys() == {"loss", "perplexity", "kl"} | per_byte
    apart = models["twin"]["against_parent"]["perplexity"]
    assert apart.keys() == per_byte
    assert apart["bits_per_byte"]["difference"] == pytest.approx(0, abs=1e-6)
    assert apart["byte_perplexity"]["ratio"] == pytest.approx(1, abs=1e-6)
    assert abs(models["child"]["against_parent"]["perplexity"]["bits_per_byte"]["difference"]) > 0.01
    shown = invoke(*words).stderr
    assert "Compared per byte only" in shown


def gates(place: KeyPath) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Kind -> a rule that passes, and one that does not."""
    child = place.found["result"]["models"]["child"]
    apart = child["against_parent"]["perplexity"]["loss"]
    loss = child["results"]["perplexity"]["loss"]["value"]
    spread = child["results"]["perplexity"]["loss"]["stderr"]
    baseline = place.root / "baseline.json"
    if not baseline.exists():
        baseline.write_text(json.dumps(place.found))
    relative = {"metric": "perplexity.loss"}
    against = {"kind": "baseline", "file": "baseline.json", "metric": "perplexity.loss"}
    return {
        "absolute": (
            {"kind": "absolute", "metric": "perplexity.loss", "max": loss + 1e-6},
            {"kind": "absolute", "metric": "perplexity.loss", "max": loss - 1e-6},
        ),
        "absolute with confidence": (
            {"kind": "absolute", "metric": "perplexity.loss", "max": loss + 3 * spread, "confidence": 0.95},
            {"kind": "absolute", "metric": "perplexity.loss", "max": loss + spread, "confidence": 0.95},
        ),
        "parent": (
            relative | {"kind": "parent", "max_ratio": apart["ratio"] + 1e-6},
            relative | {"kind": "parent", "max_ratio": apart["ratio"] - 1e-6},
        ),
        "parent with confidence": (
            relative | {"kind": "parent", "max_difference": apart["high"] + 1e-6, "confidence": 0.95},
            relative | {"kind": "parent", "max_difference": apart["high"] - 1e-6, "confidence": 0.95},
        ),
        "baseline": (against | {"max_difference": 0}, against | {"max_difference": -1e-6}),
        "baseline with confidence": (
            against | {"max_difference": 5 * spread, "confidence": 0.95},
            against | {"max_difference": spread, "confidence": 0.95},
        ),
    }


KINDS = [
    "absolute",
    "absolute with confidence",
    "parent",
    "parent with confidence",
    "baseline",
    "baseline with confidence",
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("passes", [True, False])
def test_every_kind_of_gate_decides_the_exit_code(place: KeyPath, tmp_path: Path, kind: str, passes: bool) -> None:
    rule = gates(place)[kind][0 if passes else 1]
    file = place.root / "gates.yaml"
    file.write_text(yaml.safe_dump({"rules": [rule]}))
    junit, summary = tmp_path / "out/junit.xml", tmp_path / "out/summary.md"
    result = place.run("--gate", file, "--junit", junit, "--summary", summary)
    assert result.exit_code == (0 if passes else GateMissed.exit_code), result.stderr
    suites = ET.parse(junit).getroot()
    assert (suites.get("tests"), suites.get("failures")) == ("1", "0" if passes else "1")
    assert ("MISSED" in result.stderr) is not passes
    assert ("1 of 1 gates missed" in summary.read_text()) is not passes


@pytest.mark.slow
def test_a_gate_on_the_original_is_not_checked_on_a_later_member(tiny: Path, tmp_path: Path) -> None:
    runs, gates = ("--runs-dir", tmp_path / "runs"), tmp_path / "gates.yaml"
    made = ("prune", tiny / "model", "--shape", "ffn=32", "--repair", "none", "--data", tiny / "text.jsonl")
    for verb in (("importance", *made[1:2], *made[-2:]), made):
        result = invoke(*verb, "--sequence-length", 64, *runs, "--run", "first")
        assert result.exit_code == 0, result.stderr
    (member,) = (path.parent for path in (tmp_path / "runs/first/prune").glob("*/config.json"))
    for of, code in (("step", 0), ("original", 2)):
        gates.write_text(f"rules: [{{kind: parent, of: {of}, metric: perplexity.loss, max_difference: 9}}]")
        words = (
            "eval",
            member,
            tiny / "model",
            "--data",
            tiny / "text.jsonl",
            "--sequence-length",
            64,
            "--gate",
            gates,
        )
        result = invoke(*words, *runs, "--run", f"second-{of}")
        assert result.exit_code == code, result.stderr
    assert f"a gate is of: original, and {member} was itself pruned or trained: run the recipe" in result.stderr
    words = ("eval", tiny / "model", member, "--data", tiny / "text.jsonl", "--sequence-length", 64, "--gate", gates)
    assert invoke(*words, *runs, "--run", "third").exit_code == 0, "of the first member, the original is the parent"


def test_short_gates_files_and_json_come_together(place: KeyPath, tmp_path: Path) -> None:
    (tmp_path / "gates.yaml").write_text("minimum: {cloze.acc: 2}\nmaximum: {perplexity.loss: 100}\n")
    result = place.run("--gate", tmp_path / "gates.yaml", "--min", "perplexity.loss=0.1", "--json")
    assert result.exit_code == 4
    found = {gate["gate"]: gate["passed"] for gate in json.loads(result.stdout)["gates"]}
    assert found == {"cloze.acc >= 2": False, "perplexity.loss >= 0.1": True, "perplexity.loss <= 100": True}
    assert result.stderr.splitlines()[-1].startswith("error: 1 of 3 gates missed: cloze.acc is ")


def test_a_summary_is_added_to_what_a_page_has(place: KeyPath, tmp_path: Path) -> None:
    page = tmp_path / "summary.md"
    page.write_text("# Nightly\n")
    for _ in range(2):
        assert place.run("--summary", page).exit_code == 0
    text = page.read_text()
    assert text.startswith("# Nightly\n")
    assert text.count("## minitron eval: child") == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("minimum: {a.b: x}", "minimum.a.b is 'x'"),
        ("minimums: {a.b: 1}", "did you mean minimum?"),
        ("rules: [{kind: parents, metric: a.b, min_ratio: 1}]", "did you mean parent?"),
        ("rules: [{kind: parent, metric: a.b, min: 1}]", "min is not a known key"),
        ("rules: [{kind: parent, metric: a.b}]", "a gate needs a bound; give one of min_difference"),
        ("rules: [{kind: baseline, file: gone.json, metric: a.b, min_ratio: 1}]", "gone.json does not exist"),
        ("minimum: {a.b: 1}\nminimum: {a.c: 1}", 'key "minimum" occurs twice'),
        ("minimum: {a.b: 1}", "gate 'a.b': no such value was measured"),
        ("rules: [{kind: absolute, metric: cloze.acc, min: 0, confidence: 95}]", "confidence is 95"),
    ],
)
def test_a_gate_file_that_is_wrong_is_one_sentence(place: KeyPath, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "gates.yaml").write_text(text)
    result = place.run("--gate", tmp_path / "gates.yaml")
    assert result.exit_code == 2, result.stderr
    last = result.stderr.splitlines()[-1]
    assert last.startswith("error: ")
    assert message in last
    assert "is not a file" in place.run("--gate", tmp_path / "absent.yaml").stderr


@pytest.mark.slow
def test_a_dry_run_of_the_suite_lists_tasks_shots_metrics_and_sources(place: KeyPath, tmp_path: Path) -> None:
    data = suite_data.write(tmp_path / "data")
    shutil.rmtree(data / "gsm8k")
    words = (
        "eval",
        place.child,
        "--suite",
        "minitron",
        "--task-data",
        data,
        "--dry-run",
        "--no-perplexity",
        *place.runs,
    )
    result = invoke(*words, "--allow-code-execution", "--json")
    assert result.exit_code == 0, result.stderr
    found = {row["task"]: row for row in json.loads(result.stdout)["forecast"]["tasks"]}
    assert {name: row["shots"] for name, row in found.items()} == suite_data.PUBLISHED_SHOTS
    assert found["gsm8k"]["data"] == "the hub: openai/gsm8k"
    assert found["gsm8k"]["metrics"] == "exact_match,strict-match, exact_match,flexible-extract"
    assert found["hellaswag"]["data"] == str(data / "hellaswag/data")
    shown = invoke(*words).stderr
    assert "humaneval and mbpp left out, because they run code" in shown
    assert "xlsum_en" in shown
    assert "humaneval  " not in shown


def test_code_is_not_run_unasked(place: KeyPath, tmp_path: Path) -> None:
    data = suite_data.write(tmp_path / "data")
    words = ("--tasks", "mbpp", "--task-data", data, "--no-perplexity")
    result = invoke("eval", place.child, *words, *place.runs)
    assert result.exit_code == 2
    assert "run `minitron eval --allow-code-execution`" in result.stderr


@pytest.mark.slow
def test_speed_stands_beside_the_result_and_not_in_it(place: KeyPath, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = {
        "peak_bytes": 2 << 20,
        "libraries_bytes": 1 << 20,
    }  # a process each, in tests/unit/evaluate/test_generation_speed.py
    monkeypatch.setattr("minitron_cli.evaluate.generation_speed.peak_memory", lambda *a, **k: measured)
    words = ("--speed", "speed.prompt_tokens=16", "speed.new_tokens=4", "speed.rounds=2", "--no-cloze")
    result = invoke("eval", place.child, "blocks=40", *words, *place.runs, "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    timed = found["run"]["speed"]
    assert timed["settings"]["new_tokens"] == 4
    assert timed["models"].keys() == {"parent", "child"}
    rates = {"prefill_tokens_per_second", "decode_tokens_per_second", "time_to_first_token_seconds"}
    beside = {"prefill_ratio", "prefill_range", "decode_ratio", "decode_range"}
    assert timed["models"]["parent"].keys() == rates | measured.keys()
    assert timed["models"]["child"].keys() == rates | measured.keys() | beside
    for figures in timed["models"].values():
        assert all(figures[name] > 0 for name in rates)
    for phase in ("prefill", "decode"):
        low, high = timed["models"]["child"][f"{phase}_range"]
        assert 0 < low <= timed["models"]["child"][f"{phase}_ratio"] <= high
    named = (Path(found["path"]) / name for name in ("manifest.json", "result.json"))
    assert not any("per_second" in file.read_text() for file in named)
    shown = invoke("eval", place.child, "blocks=40", *words, *place.runs)
    assert "up to date" in shown.stderr
    assert "decode (tokens/s)" in shown.stderr


@pytest.mark.slow
def test_more_tokens_than_positions_are_refused_before_generating(place: KeyPath) -> None:
    result = place.run("--speed", "speed.prompt_tokens=4000")
    assert result.exit_code == 2
    assert "lower speed.prompt_tokens or speed.new_tokens" in result.stderr
    assert "perplexity" not in result.stderr, "nothing is measured that would be lost"


def test_a_text_too_short_for_questions_says_so(place: KeyPath) -> None:
    result = invoke("eval", place.child, "--cloze", "cloze.context_words=2000", "--no-perplexity", *place.runs)
    assert result.exit_code == 2
    assert "lower choices, context_words or continuation_words" in result.stderr


def test_the_same_command_twice_measures_the_same(place: KeyPath, tiny: Path) -> None:
    assert place.json(place.parent, place.child)["path"] == place.found["path"]
    alone = invoke("eval", place.parent, "blocks=2", *place.runs, "--json")
    assert json.loads(alone.stdout)["result"]["models"].keys() == {"parent"}


@pytest.mark.slow
def test_a_child_may_be_called_parent(place: KeyPath) -> None:
    called = shutil.copytree(place.child, place.root / "parent", dirs_exist_ok=True)
    found = json.loads(invoke("eval", called, "blocks=2", *place.runs, "--json").stdout)["result"]["models"]
    assert found.keys() == {"parent", "parent-1"}
    assert found["parent"]["model"] != found["parent-1"]["model"]


@pytest.mark.parametrize(
    ("models", "expected"),
    [
        (["x/a", "b"], ["a", "b"]),
        (["x/a", "y/a"], ["a-1", "a-2"]),
        (["x/a", "y/a", "z/a-1"], ["a-2", "a-3", "a-1"]),
        (["z/a-2", "x/a", "y/a"], ["a-2", "a-3", "a-4"]),
        (["m/original", "m/Parent"], ["original-1", "parent-2"]),
        (["m/original", "m/original-1"], ["original-2", "original-1"]),
    ],
)
def test_every_model_has_a_label_of_its_own(models, expected):
    assert labels(models) == expected
