"""`minitron sparsify` and recipes with zeros, from the command line: what the next verbs make of a sparse model."""

import json
from pathlib import Path
from typing import Any

import pytest

from minitron_cli.artifacts.workspace import Workspace
from minitron_cli.checkpoint.reader import Checkpoint
from minitron_cli.cli import torchrun
from minitron_cli.cost.derive import spent
from minitron_cli.report.product import Product
from minitron_cli.results.sparsify import SparsifyResult
from minitron_cli.results.training import TrainingResult
from minitron_cli.sparse.mask_file import MaskFile
from tests.cli.forks import launched
from tests.cli.program import Run, invoke
from tests.tiny import write_tiny

DATA = ("--sequence-length", 16)
TRAINING = ("--steps", 2, "--batch-size", 2, "--micro-batch-size", 2, "--warmup-steps", 1, "eval_blocks=2")


def printed(*arguments: Any, code: int = 0) -> Any:
    """The JSON that a verb prints; or, with `code`, its last line on stderr."""
    result = invoke(*arguments, *(["--json"] if code == 0 else []))
    assert result.exit_code == code, result.stderr
    return json.loads(result.stdout) if code == 0 else result.stderr.splitlines()[-1]


@pytest.mark.slow
def test_magnitude_reads_no_text_and_a_dry_run_says_what_it_takes(run: Run, tiny: Path) -> None:
    dry = printed("sparsify", tiny / "model", "--metric", "magnitude", "--dry-run")
    assert dry["forecast"]["zeros"] * 2 == dry["forecast"]["weights"]
    assert dry["price"]["disk"]["masks"] == dry["forecast"]["weights"] // 8
    made = printed("sparsify", tiny / "model", "--metric", "magnitude", "-o", "out")
    assert made["result"]["sparsity"] == 0.5
    masks = MaskFile.beside(Path("out"))
    assert masks is not None
    masks.check(Checkpoint.open(Path("out")).read)
    assert printed("show", "sparsify")[0]["key"] == made["key"]


def test_bad_input_is_one_sentence(run: Run, tiny: Path) -> None:
    model, text = tiny / "model", ("--data", tiny / "text.jsonl", *DATA)
    for words, said in [
        (("--pattern", "3:2"), "3:2 keeps 3 of 2 weights"),
        (("--pattern", "3:5", "--metric", "magnitude"), "no whole number of groups of 5"),
        (
            ("--layer-amounts", "a"),
            "sparsify.layer_amounts: 'a' is unknown: write uniform, owl, or a list such as [0.4, 0.6]",
        ),
        (("--layer-amounts", "0.4,b"), "'b' is not a pattern of zeros: write N:M"),
        (
            ("--layer-amounts", "0.4,0.5,0.6,0.5"),
            "layer_amounts has 40%, and the pattern is 2:4: write N:4 for each layer, or add --pattern 50%",
        ),
        ((), "no data given: add --data"),
        ((*text, "metric.kind=taylor"), "sparsify.metric.kind is 'taylor'; use one of magnitude, wanda, sparsegpt"),
    ]:
        assert said in printed("sparsify", model, *words, code=2), words


def test_amounts_by_layer_are_said_in_place_of_the_pattern(run: Run, tiny: Path) -> None:
    words = ("sparsify", tiny / "model", "--metric", "magnitude", "--pattern", 0.5, "--layer-amounts", "0,0.1,0.2,0.1")
    dry = printed(*words, "--dry-run")
    assert dry["forecast"]["pattern"] == "by layer"
    assert "weights by layer, by magnitude" in dry["price"]["what"]
    made = invoke(*words)
    assert "Sparse: by layer, by magnitude, 10.0 % of the matrices' weights are zero" in made.stderr


def test_options_of_what_a_flag_names_are_words_beside_it(run: Run, tiny: Path) -> None:
    words = ("sparsify", tiny / "model", "--data", tiny / "text.jsonl", *DATA, "--metric", "sparsegpt")
    owl = ("--pattern", "50%", "--layer-amounts", "owl")
    assert printed(*words, *owl, "metric.damping=0.1", "layer_amounts.spread=0.2", "--dry-run")["forecast"]
    assert "sparsify.metric.damping is -1: " in printed(*words, "metric.damping=-1", code=2)
    assert "layer_amounts.spread is 0.4" in printed(*words, *owl, "pattern=0.7", "layer_amounts.spread=0.4", code=2)


@pytest.mark.slow
def test_later_rounds_say_by_what_the_first_chose_the_amounts(run: Run, tiny: Path) -> None:
    text = ("--data", tiny / "text.jsonl", *DATA, "samples=8", "effect_blocks=0", "round_tokens=64")
    owl = ("--pattern", "50%", "--layer-amounts", "owl", "layer_amounts.spread=0.2", "layer_amounts.outlier=2")
    printed("sparsify", tiny / "model", *text, *owl, "--rounds", 2)
    made = {one.label: one for one in Workspace(Path("runs/model")).artifacts("sparsify")}
    first, last = (made[label].result(SparsifyResult) for label in ("round-1", ""))
    assert (last.amounts, last.layer_outliers) == ("owl", first.layer_outliers)
    assert len(first.layer_outliers) == 4
    passes = [spent(made[label])[0].flops / (8 * 16 * last.model.decoder_flops) for label in ("round-1", "")]
    assert passes == [3, 2], "the first round measured them"
    shown = invoke("show", "sparsify")
    assert "Zeros of each layer, by their outliers (OWL)" in shown.stderr + shown.stdout


def test_an_unknown_metric_is_said_as_any_other_unknown_word(run: Run, tiny: Path) -> None:
    said = " ".join(invoke("sparsify", tiny / "model", "--metric", "foo").stderr.replace("│", " ").split())
    assert "Invalid value for '--metric': 'foo' is not one of 'magnitude', 'wanda', 'sparsegpt'." in said


@pytest.mark.slow
def test_a_model_whose_layers_all_have_experts_is_shown(run: Run, tmp_path: Path) -> None:
    write_tiny(tmp_path / "model", "qwen3_moe", num_hidden_layers=2)
    made = printed("sparsify", "model", "--metric", "magnitude")
    scope = made["result"]["scope"]
    assert any("experts.{expert}.up_proj" in template for template in scope)
    assert not any(template.endswith("mlp.up_proj.weight") for template in scope), "no layer holds it"
    shown = invoke("show", "sparsify")
    assert shown.exit_code == 0, shown.stderr
    assert "mlp.experts.{expert}.up_proj" in shown.stderr + shown.stdout
    assert "Sparsity" in (Path(printed("report")["path"]) / "report.html").read_text()


@pytest.mark.slow
def test_inspect_says_which_tensors_are_masked(run: Run, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    printed("sparsify", tiny / "model", "--metric", "magnitude", "--layer-amounts", "2:4,3:4,2:4,3:4", "-o", "out")
    monkeypatch.setattr(MaskFile, "read", None)  # no bits of a mask are read
    found = printed("inspect", "out")["masks"]
    file = MaskFile.beside(Path("out"))
    assert file is not None
    assert (found["tensors"], found["patterns"]) == (len(file.specs), ["2:4", "3:4"])
    assert found["zeros"] == found["weights"] * 3 / 8
    row = found["by_kind"]["model.layers.{layer}.self_attn.q_proj.weight"]
    assert row == {
        "tensors": 4,
        "patterns": ["2:4", "3:4"],
        "zeros": row["weights"] * 3 // 8,
        "weights": row["weights"],
    }
    people = invoke("inspect", "out").stderr
    assert "Masked tensors" in people
    assert "self_attn.q_proj" in people
    assert "masks" not in printed("inspect", tiny / "model")


@pytest.mark.slow
def test_the_verbs_after_it_take_the_sparse_model(run: Run, tiny: Path) -> None:
    text = ("--data", tiny / "text.jsonl", *DATA)
    printed("sparsify", tiny / "model", *text, "--metric", "wanda", "samples=8", "effect_blocks=2")
    trained = printed("distill", *text, *TRAINING)
    assert trained["result"]["mask"]
    masks = MaskFile.beside(Path(trained["path"]))
    assert masks is not None
    masks.check(Checkpoint.open(Path(trained["path"])).read)
    measured = printed("eval", *text, "blocks=2", "cloze=null")
    assert list(measured["result"]["models"]) == ["parent", "sparse", "distilled"]
    workspace = Workspace(Path("runs/model"))
    product = Product.current(workspace)
    assert product.sparse is not None
    assert [made.stage for made in product.artifacts] == ["sparsify", "distill", "evaluate"]
    page = Path(printed("report")["path"]) / "report.html"
    assert "Sparsity" in page.read_text()
    assert printed("push", "me/sparse", "--stage", "sparsify", "--dry-run")["files"]["sparsity.masks"]


@pytest.mark.slow
@pytest.mark.parametrize("prune", ["", "prune: {shape: {ffn: 64}, repair: none}\n"])
def test_rounds_of_a_recipe_lose_further_weights_and_go_on_where_they_were(run: Run, tiny: Path, prune: str) -> None:
    data = f"data: {{sources: [{{kind: files, paths: [{tiny / 'text.jsonl'}]}}], sequence_length: 16}}"
    sparsify = (
        "sparsify: {metric: sparsegpt, pattern: '2:4', rounds: 2, round_tokens: 64, samples: 8, effect_blocks: 2}"
    )
    distill = "distill: {steps: 3, batch_size: 2, micro_batch_size: 2, warmup_steps: 1, eval_blocks: 2}"
    controls = "controls: [{label: random, prune: random}]\n" * bool(prune)
    rest = f"importance: {{samples: 4}}\n{prune}{sparsify}\n{distill}\n{controls}evaluate: {{blocks: 2}}\n"
    Path("small.yaml").write_text(f"model: {tiny / 'model'}\n{data}\n{rest}")
    plan = printed("run", "small.yaml", "--dry-run")
    names = ["sparsify round-1", "distill round-1", "sparsify", "distill"]
    assert [name for name in plan["prices"] if name in names] == names
    assert plan["prices"]["distill round-1"]["tokens"]
    printed("run", "small.yaml")
    workspace = Workspace(Path("runs/small"))
    made = {(one.stage, one.label): one for stage in ("sparsify", "distill") for one in workspace.artifacts(stage)}
    first, between, last, student = (
        made[at] for at in [("sparsify", "round-1"), ("distill", "round-1"), ("sparsify", ""), ("distill", "distilled")]
    )
    masks = [MaskFile.beside(one.path) for one in (first, between, last, student)]
    assert [found and found.patterns for found in masks] == [("3:4",), ("3:4",), ("2:4",), ("2:4",)]
    for found, one in zip(masks, (first, between, last, student), strict=True):
        assert found is not None
        found.check(Checkpoint.open(one.path).read)
        for name in found.specs:
            assert masks[0] is not None
            assert not (found.read(name) & ~masks[0].read(name)).any(), "what is pruned once stays pruned"
    assert between.result(TrainingResult).tokens == 64
    product = Product.current(workspace)
    assert product.artifact == student
    assert product.sparse == last
    assert (product.prune is not None) == bool(prune)
    labels = [model.label for model in product.models()]
    assert labels == ["parent", *["pruned"] * bool(prune), "sparse", "distilled", *["random"] * bool(prune)]
    assert [one.label for one in product.trained] == ["distilled", *["random"] * bool(prune)]
    again = [one["key"] for one in printed("run", "small.yaml")]
    assert last.key in again
    changed = printed("run", "small.yaml", "distill.steps=4", "report=false")
    assert last.key in [one["key"] for one in changed], "rounds that are done are not done again"


@pytest.mark.slow
def test_rounds_of_the_verb_say_what_they_take_and_end_in_a_sparse_model(run: Run, tiny: Path) -> None:
    words = ("sparsify", tiny / "model", "--data", tiny / "text.jsonl", *DATA, "--metric", "magnitude", "--rounds", 2)
    assert "nothing says how long: set sparsify.round_tokens" in printed(*words, code=2)
    assert "a group loses 2 weights, so set at most 2" in printed(*words[:-1], 3, "round_tokens=64", code=2)
    tokens = ("round_tokens=64",)
    dry = printed(*words, *tokens, "--dry-run")
    assert dry["forecast"]["rounds"] == 2
    assert set(dry["price"]["disk"]) == {"sparsify round-1", "distill round-1", "sparsify"}
    printed(*words, *tokens)
    workspace = Workspace(Path("runs/model"))
    assert workspace.current("distill") is None, "the training between rounds is not the product"
    sparse = workspace.current("sparsify")
    assert sparse is not None
    assert sparse.result(SparsifyResult).pattern == "2:4"
    assert [one.stage for one in Product.current(workspace).lineage] == ["sparsify", "distill", "sparsify"]
    text = ("--data", tiny / "text.jsonl", *DATA)
    trained = printed("distill", *text, *TRAINING)
    assert trained["result"]["mask"]["patterns"] == ["2:4"]


@pytest.mark.slow
def test_several_processes_train_between_rounds_what_one_does(tiny: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "small.yaml"
    recipe.write_text(
        f"model: {tiny / 'model'}\n"
        f"data: {{sources: [{{kind: files, paths: [{tiny / 'text.jsonl'}]}}], sequence_length: 16}}\n"
        "sparsify: {metric: magnitude, rounds: 2}\n"
        "distill: {tokens: 128, batch_size: 4, micro_batch_size: 2, eval_blocks: 2, precision: fp32}\n"
    )
    words = ("sparsify", "--recipe", recipe, "--device", "cpu", "--dtype", "float32", "--json")
    found = []
    for processes in (1, 2):
        apart = ("--runs-dir", tmp_path / str(processes), "--run", "made", "--gpus", processes)
        made = launched(tmp_path / f"at-{processes}", *words, *apart)
        assert made.code == 0, made.err
        (between,) = Workspace(tmp_path / str(processes) / "made").artifacts("distill")
        masks = MaskFile.beside(Path(json.loads(made.out)["path"]))
        assert masks
        masks.check(Checkpoint.open(Path(json.loads(made.out)["path"])).read)
        found.append((between, masks))
    (alone, mask), (shared, other) = found
    assert [one.run and one.run.processes for one in (alone, shared)] == [1, 2]
    losses = [one.result(TrainingResult).after for one in (alone, shared)]
    assert losses[0]
    assert losses[1]
    assert losses[0].loss == pytest.approx(losses[1].loss, rel=1e-4)
    differing = sum(int((mask.read(name) != other.read(name)).sum()) for name in mask.specs)
    assert differing <= 4, "weights that are as large as each other to seven digits"


def test_several_processes_are_refused_where_nothing_is_trained(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchrun, "launch", lambda processes: None)  # the command goes on in this process
    refused = printed("sparsify", tiny / "model", "--metric", "magnitude", "--gpus", 2, code=2)
    assert "--gpus is for the training between rounds, and there is one round" in refused


@pytest.mark.slow
@pytest.mark.parametrize("prune", ["", "prune: {shape: {ffn: 64}, repair: none}\n"])
def test_a_recipe_makes_a_model_sparse_alone_or_after_pruning(run: Run, tiny: Path, prune: str) -> None:
    data = f"data: {{sources: [{{kind: files, paths: [{tiny / 'text.jsonl'}]}}], sequence_length: 16}}"
    sparsify = "sparsify: {metric: sparsegpt, repair: least_squares, samples: 8, effect_blocks: 2}"
    distill = "distill: {steps: 2, batch_size: 2, micro_batch_size: 2, warmup_steps: 1, eval_blocks: 2}"
    rest = f"importance: {{samples: 4}}\n{prune}{sparsify}\n{distill}\nevaluate: {{blocks: 2}}\n"
    Path("small.yaml").write_text(f"model: {tiny / 'model'}\n{data}\n{rest}")
    plan = printed("run", "small.yaml", "--dry-run")
    assert ("prune" in plan["prices"]) == bool(prune)
    assert plan["prices"]["sparsify"]["memory_bytes"]
    stages = [made["stage"] for made in printed("run", "small.yaml")]
    before = ["importance", "prune"] if prune else []
    assert stages == [*before, "sparsify", "distill", "evaluate", "report"]
    product = Product.current(Workspace(Path("runs/small")))
    assert (product.prune is not None) == bool(prune)
    sparse = product.sparse
    assert sparse is not None
    assert product.artifact.manifest.inputs["student"]
    labels = [model.label for model in product.models()]
    assert labels == ["parent", *["pruned"] * bool(prune), "sparse", "distilled"]
