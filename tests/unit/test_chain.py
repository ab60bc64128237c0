"""Chains of several steps: parents, teachers, and which of several models is pruned."""

import json
import math
import re
import shutil

import pytest

from minitron_cli import dry_run, pipeline, recipe_check
from minitron_cli.artifacts import fingerprint
from minitron_cli.artifacts.workspace import Workspace
from minitron_cli.cli import tables
from minitron_cli.cost.budgets import flops_of, tokens_read, training_of
from minitron_cli.cost.lineage import lineage
from minitron_cli.distill.config import DistillConfig
from minitron_cli.distill.control import Control
from minitron_cli.errors import Interrupted, RecipeError
from minitron_cli.evaluate import benchmark
from minitron_cli.evaluate.config import AgainstParent, EvaluateConfig, Gates
from minitron_cli.evaluate.gate import outcomes
from minitron_cli.importance.config import ImportanceConfig
from minitron_cli.inputs.source_model import open_source_model
from minitron_cli.prune.config import Budget, PruneConfig
from minitron_cli.recipe import Recipe, Step
from minitron_cli.report.product import Product
from minitron_cli.report.scratch import arms
from minitron_cli.results.evaluation import EvaluationResult
from minitron_cli.results.family import FamilyResult
from minitron_cli.results.prune import PruneResult
from minitron_cli.results.training import TrainingResult, read_curves
from minitron_cli.sparse.config import SparsifyConfig
from minitron_cli.stages import evaluate
from minitron_cli.yaml_document import check, parse
from tests.tiny import write_tiny
from tests.unit.stages.place import context, data, write_place

TRAINING = DistillConfig(
    steps=2, batch_size=2, micro_batch_size=2, warmup_steps=0, learning_rate=1e-4, eval_blocks=2, precision="fp32"
)


def recipe(model, text, **changes):
    sections = {
        "model": str(model),
        "data": text,
        "importance": ImportanceConfig(samples=4, layer_removal=False),
        "distill": TRAINING,
        "evaluate": EvaluateConfig(blocks=2),
        "report": False,
    }
    return Recipe(**sections | changes)


@pytest.mark.slow
@pytest.mark.parametrize("teacher", ["original", "parent"])
def test_what_a_step_made_is_the_next_ones_parent(tmp_path, teacher):
    write_place(tmp_path)
    steps = (
        Step(label="wide", prune=PruneConfig(shape={"ffn": 32}, repair="none")),
        Step(label="narrow", prune=PruneConfig(shape={"ffn": 16}, repair="none"), teacher=teacher),
    )
    asked = recipe(tmp_path / "model", data(tmp_path), steps=steps)
    first, second = pipeline.run(asked, context(tmp_path / "run"))
    original = open_source_model(tmp_path / "model").fingerprint
    made = open_source_model(first.product.path).fingerprint
    assert first.prune.manifest.inputs["model"] == original
    assert second.prune.manifest.inputs["model"] == second.importance.manifest.inputs["model"] == made
    assert first.product.manifest.inputs["teacher"] == original
    assert second.product.manifest.inputs["teacher"] == {"original": original, "parent": made}[teacher]
    assert second.product.result(TrainingResult).student.sizes["ffn"] == 16
    assert [step.prune.label for step in (first, second)] == ["wide", "narrow"]
    product = Product.current(Workspace(tmp_path / "run"))
    verbs = ["importance", "prune", "distill"]
    assert [made.stage for made in product.artifacts] == [*verbs, *verbs, "evaluate"]
    assert product.artifacts[-1].key == second.evaluate.key
    assert [made.key for made in product.steps] == [first.prune.key, second.prune.key]
    assert product.original == original
    assert product.name(original) == "model"
    assert product.name(made) == f"{tmp_path.name}/run/distill/{first.product.path.name}"
    assert product.teacher(second.product) == {"original": "model", "parent": ""}[teacher]
    again = pipeline.run(asked, context(tmp_path / "run"))
    assert [step.product.path for step in again] == [first.product.path, second.product.path]


@pytest.mark.slow
def test_a_renamed_step_has_its_new_name_in_costs(tmp_path):
    write_place(tmp_path)
    named = ("wide", "broad", "wide", "zoom", "broad")  # before and after each other in the alphabet, and back again
    for first in named:
        steps = (
            Step(label=first, prune=PruneConfig(shape={"ffn": 32}, repair="none")),
            Step(label="narrow", prune=PruneConfig(shape={"ffn": 16}, repair="none")),
        )
        pipeline.run(recipe(tmp_path / "model", data(tmp_path), steps=steps), context(tmp_path / "run"))
        product = Product.current(Workspace(tmp_path / "run"))
        assert [made.label for made in product.steps] == [first, "narrow"]
        assert {product.step_labels[made.key] for made in product.lineage} == {first, "narrow"}


CHAIN = (
    Step(label="wide", prune=PruneConfig(shape={"ffn": 32}, repair="none")),
    Step(label="narrow", prune=PruneConfig(shape={"ffn": 16}, repair="none")),
)
LONGER = Control(label="scratch", init="random", objective="ce", equal="total_tokens")
AT_ONCE = Control(label="at-once", prune_from="original")
ALIKE = Control(label="alike", objective="ce", equal="flops")
TEXT = Control(label="text", objective="ce", equal="tokens")
TOTAL = Control(label="total", objective="ce", equal="total_tokens")
GIVEN = 200  # tokens of the original's own training, as far as the recipe knows


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """(directory, recipe, results) of a chain of two steps with controls."""
    root = tmp_path_factory.mktemp("chain")
    write_place(root)
    asked = recipe(
        root / "model",
        data(root),
        steps=CHAIN,
        controls=(LONGER, AT_ONCE, ALIKE, TEXT, TOTAL),
        pretraining={"tokens": GIVEN},
        report=True,
        evaluate=EvaluateConfig(
            blocks=2, batch_size=2, cloze={"items": 4, "context_words": 4, "continuation_words": 2}
        ),
    )
    return root, asked, pipeline.run(asked, context(root / "run"))


@pytest.mark.slow
def test_a_chain_has_the_numbers_of_an_evaluation_of_original_and_child(chain):
    root, asked, (first, second) = chain
    original = open_source_model(root / "model")
    assert second.evaluate.manifest.inputs["model original"] == original.fingerprint
    assert "model original" not in first.evaluate.manifest.inputs
    found = second.evaluate.result(EvaluationResult)
    alone = evaluate.run(
        context(root / "alone"), [("child", second.product.path)], original, asked.data, asked.evaluate
    ).result(EvaluationResult)
    parent, child = alone.models["parent"], alone.models["child"]
    assert found.models["original"].results == parent.results
    own = found.models["distilled"]
    assert own.against_original == child.against_parent
    assert own.results["perplexity"]["kl_original"] == child.results["perplexity"]["kl"]
    assert own.results["perplexity"]["kl"] != own.results["perplexity"]["kl_original"]
    assert own.results["cloze"] == child.results["cloze"]
    assert found.reused == ("parent", "original")
    assert (
        found.models["parent"].results["perplexity"]["loss"]
        == (first.evaluate.result(EvaluationResult).models["distilled"].results["perplexity"]["loss"])
    )


@pytest.mark.slow
def test_a_chain_killed_between_steps_does_not_measure_the_original_again(chain, monkeypatch):
    root, asked, (_, second) = chain
    compared, measure = [], benchmark.loss_and_kl
    ffn = lambda model: model and model.config.intermediate_size  # noqa: E731  # names the model
    monkeypatch.setattr(
        benchmark, "loss_and_kl", lambda m, p, *a, **o: compared.append((ffn(m), ffn(p))) or measure(m, p, *a, **o)
    )
    shutil.rmtree(second.evaluate.path)
    again = pipeline.run(asked, context(root / "run"))
    assert again[1].evaluate.fingerprint == second.evaluate.fingerprint, "to the last bit"
    of_step, of_children = [(32, 48)], [(16, 32), (16, 48)] * 7  # the seven are pruned, distilled and the controls
    assert sorted(compared) == sorted(of_step + of_children), "neither parent nor original is measured alone again"


@pytest.mark.slow
def test_a_gate_of_a_chain_is_against_the_original_unless_it_says_step(chain):
    *_, (first, second) = chain
    first, second = (step.evaluate.result(EvaluationResult).models for step in (first, second))
    rules = [AgainstParent(metric="perplexity.loss", max_difference=9, of=of) for of in (None, "original", "step")]
    found = outcomes(Gates(rules=rules), second, "distilled")
    own = second["distilled"]
    known = [x["perplexity"]["loss"].difference for x in (own.against_original, own.against_parent)]
    assert [(x.what, x.value) for x in found] == [
        ("perplexity.loss - original", known[0]),
        ("perplexity.loss - original", known[0]),
        ("perplexity.loss - parent", known[1]),
    ]
    assert {x.what for x in outcomes(Gates(rules=rules), first, "distilled")} == {"perplexity.loss - parent"}


@pytest.mark.slow
def test_controls_of_a_chain_are_as_long_as_the_ledger_says(chain):
    root, _, (first, second) = chain
    assert list(first.distilled) == ["distilled"], "controls are trained in the last step"
    found = {label: made.result(TrainingResult) for label, made in second.distilled.items()}
    per_step = TRAINING.batch_size * 16
    student = TRAINING.steps * per_step
    assert {result.tokens for label, result in found.items() if label == "distilled"} == {student}
    assert found["at-once"].tokens == 2 * student
    assert found["scratch"].steps == math.ceil((GIVEN + 2 * student) / per_step)
    assert found["text"].tokens == found["total"].tokens == student, "its start has the first step behind it"
    ledgers = {label: training_of(lineage(Workspace(root / "run"), made)) for label, made in second.distilled.items()}
    assert {tokens_read(ledgers[label]) for label in ("distilled", "at-once", "text", "total")} == {2 * student}
    more = flops_of(ledgers["alike"]) - flops_of(ledgers["distilled"])
    assert 0 <= more <= per_step * 3 * found["alike"].student.flops
    rates = [step.learning_rate for step in read_curves(second.distilled["scratch"].path)[0]]
    assert len(rates) == found["scratch"].steps
    assert rates[-1] == pytest.approx(TRAINING.min_learning_rate), "the schedule has the control's own length"
    start = second.distilled["at-once"].manifest.inputs["student"]
    at_once = next(m for m in Workspace(second.prune.path.parent.parent).artifacts("prune") if m.label == "at-once")
    assert fingerprint.of_model(at_once.manifest) == start
    assert at_once.manifest.inputs["model"] == first.prune.manifest.inputs["model"]
    assert at_once.result(PruneResult).child.sizes == second.prune.result(PruneResult).child.sizes


@pytest.mark.slow
def test_a_dry_run_prices_controls_at_the_length_that_they_get(chain, tmp_path):
    _, asked, (_, second) = chain
    prices = dry_run.prices(dry_run.plan(asked), "cpu", tmp_path)
    said = {name.removeprefix("narrow: distill "): price.what for name, price in prices.items()}
    for control in asked.controls:
        steps = second.distilled[control.label].result(TrainingResult).steps
        assert said[control.label].startswith(f"{steps} steps of 2 x 16 tokens"), control.label


@pytest.mark.slow
def test_a_control_of_a_sparse_model_has_the_rounds_behind_it(tmp_path):
    write_place(tmp_path)
    sparse = SparsifyConfig(pattern="50%", metric="magnitude", rounds=2, repair="none")
    random = Control(label="random", init="random", objective="ce", equal="tokens")
    asked = recipe(tmp_path / "model", data(tmp_path), prune=CHAIN[0].prune, sparsify=sparse, controls=(TEXT, random))
    (step,) = pipeline.run(asked, context(tmp_path / "run"))
    steps = {label: made.result(TrainingResult).steps for label, made in step.distilled.items()}
    assert steps == {"distilled": TRAINING.steps, "text": TRAINING.steps, "random": 2 * TRAINING.steps}
    prices = dry_run.prices(dry_run.plan(asked), "cpu", tmp_path)
    for label in ("text", "random"):
        assert prices[f"distill {label}"].what.startswith(f"{steps[label]} steps of 2 x 16 tokens"), label


@pytest.mark.slow
def test_the_family_has_a_row_per_member_against_the_original(chain):
    root, _, (first, second) = chain
    made = second.family
    rows = made.result(FamilyResult).members
    assert (
        json.loads((made.path / "family.json").read_text())["members"]
        == json.loads((made.path / "result.json").read_text())["members"]
    )
    assert [row.label for row in rows] == ["original", "wide", "narrow"]
    assert [row.pruned for row in rows] == ["", "ffn 48 to 32", "ffn 32 to 16"]
    student = TRAINING.steps * TRAINING.batch_size * 16
    assert [(row.tokens, row.tokens_in_all) for row in rows] == [
        (None, None),
        (student, student),
        (student, 2 * student),
    ]
    shapes = [open_source_model(path).shape for path in (root / "model", first.product.path, second.product.path)]
    assert [row.non_embedding for row in rows] == [shape.parameters("non_embedding") for shape in shapes]
    evaluated = [step.evaluate.result(EvaluationResult).models["distilled"] for step in (first, second)]
    apart = evaluated[0].against_parent, evaluated[1].against_original
    assert [row.from_original["perplexity.loss"].value for row in rows[1:]] == [
        x["perplexity"]["loss"].difference for x in apart
    ]
    assert rows[2].kl_original.value == evaluated[1].results["perplexity"]["kl_original"].value
    for row in rows[1:]:
        ratio = math.exp(rows[0].metrics["perplexity.loss"].value - row.metrics["perplexity.loss"].value)
        assert row.probability_retained == pytest.approx(ratio)
    page = (made.path / "family.html").read_text()
    assert "narrow: distill" in page
    assert "ffn 32 to 16" in page


@pytest.mark.slow
def test_a_family_compared_by_step_says_nothing_of_the_original(tmp_path):
    write_place(tmp_path)
    asked = recipe(tmp_path / "model", data(tmp_path), steps=CHAIN, compare_with="step", report=True)
    first, second = pipeline.run(asked, context(tmp_path / "run"))
    original, wide, narrow = second.family.result(FamilyResult).members
    assert "original" not in second.evaluate.result(EvaluationResult).models
    apart = first.evaluate.result(EvaluationResult).models["distilled"].against_parent["perplexity"]["loss"]
    assert wide.from_original["perplexity.loss"].value == apart.difference
    assert wide.kl_original.value is not None
    assert (narrow.from_original, narrow.kl_original, narrow.probability_retained) == ({}, None, None)
    assert narrow.metrics["perplexity.loss"].value != original.metrics["perplexity.loss"].value
    page = (second.family.path / "family.html").read_text()
    assert "has not been compared with the original (compare_with: step)" in page


@pytest.mark.slow
def test_costs_and_card_of_a_chain_name_the_steps(chain):
    root, _, (_, second) = chain
    product = Product(Workspace(root / "run"), second.product)
    labels = [product.step_labels[made.key] for made in product.lineage]
    assert labels == ["wide"] * 3 + ["narrow"] * 3
    _, (table, *_) = tables.costs(product.lineage, product.step_labels)
    assert {row[0] for row in table.rows} >= {
        "wide: importance",
        "wide: distill",
        "narrow: importance",
        "narrow: distill",
    }
    card = (second.report.path / "model-card.md").read_text()
    assert "model was pruned in 2 steps" in card
    assert "Its last step, narrow, pruned what step wide had made" in card


@pytest.mark.slow
def test_the_report_compares_with_training_from_scratch_on_the_same_items(chain):
    root, _, (_, second) = chain
    pruned, scratch = arms(Product(Workspace(root / "run"), second.product))
    student = TRAINING.steps * TRAINING.batch_size * 16
    assert (pruned.label, pruned.name, pruned.tokens) == ("distilled", "P_200-R_128", 2 * student)
    assert pruned.total == GIVEN + 2 * student
    trained = second.distilled["scratch"].result(TrainingResult).tokens
    assert (scratch.name, scratch.tokens, scratch.total) == (f"S_{trained}", trained, trained)
    models = second.evaluate.result(EvaluationResult).models
    original = models["original"].model
    assert pruned.total_flops - pruned.flops == 3 * (original.decoder_flops + original.head_flops) * GIVEN
    assert scratch.total_flops == scratch.flops
    losses = [models[label].results["perplexity"]["loss"].value for label in ("scratch", "distilled")]
    assert scratch.above.value == pytest.approx(losses[0] - losses[1])
    assert scratch.above.low < scratch.above.value < scratch.above.high
    assert "Against training from scratch" in (second.report.path / "report.html").read_text()


def test_the_smallest_relative_large_enough_for_the_target_is_pruned(tmp_path):
    sizes = {"large": 96, "middle": 64, "small": 32}
    models = {name: str(write_tiny(tmp_path / name, intermediate_size=ffn)) for name, ffn in sizes.items()}
    shapes = {path: dry_run.shape_of(path)[0] for path in models.values()}
    goal = shapes[models["middle"]].resize(ffn=48).parameters()

    def pruned(target, count="total"):
        budget = PruneConfig(budget=Budget(target=target, count=count))
        asked = recipe(models["large"], data(tmp_path), prune=budget, relatives=(models["small"], models["middle"]))
        return asked.smallest_parent(lambda name, budget: shapes[name].parameters(budget.count))

    assert pruned(goal) == models["middle"]
    small, middle = (shapes[models[name]].parameters() for name in ("small", "middle"))
    assert pruned(small) == models["small"], "as large as the target is enough"
    assert pruned(small + small // 25) == models["small"], "4 % less than the target is within its tolerance of 5 %"
    assert pruned(round(middle / 0.95) + 1) == models["large"]
    assert pruned(2 * shapes[models["large"]].parameters()) == models["large"], "none is large enough"
    without_embeddings = shapes[models["middle"]].parameters("non_embedding")
    assert pruned(without_embeddings, "non_embedding") == models["middle"]


@pytest.mark.slow
def test_a_control_that_fails_leaves_the_students_model_the_current_one(tmp_path, monkeypatch):
    write_place(tmp_path)
    controls = (Control(label="random", prune="random"), Control(label="text", objective="ce"))
    pruning = PruneConfig(shape={"ffn": 24}, repair="none")
    asked = recipe(tmp_path / "model", data(tmp_path), prune=pruning, controls=controls)
    real, current = pipeline.distill.run, dict[str, str]()

    def stopped(context, *given, label, **options):
        if label == "text":
            raise Interrupted("stopped")
        made = real(context, *given, label=label, **options)
        current.update({stage: path.name for stage, path in found(context).items()} if label == "distilled" else {})
        return made

    def found(context):
        return {stage: context.workspace.current(stage).path for stage in ("importance", "prune", "distill")}

    monkeypatch.setattr(pipeline.distill, "run", stopped)
    with pytest.raises(Interrupted):
        pipeline.run(asked, context(tmp_path / "run"))
    assert len(list((tmp_path / "run" / "prune").glob("random-*"))) == 1
    assert {stage: path.name for stage, path in found(context(tmp_path / "run")).items()} == current


@pytest.mark.slow
def test_a_control_that_is_not_trained_is_measured_as_it_was_pruned(tmp_path):
    write_place(tmp_path)
    shape, controls = {"ffn": 24}, (Control(label="plain", repair="none", trained=False),)
    repaired = PruneConfig(shape=shape, repair="least_squares", repair_samples=8)
    asked = recipe(tmp_path / "model", data(tmp_path), prune=repaired, controls=controls, report=True)
    (step,) = pipeline.run(asked, context(tmp_path / "run"))
    models = step.evaluate.result(EvaluationResult).models
    assert list(models) == ["parent", "plain", "pruned", "distilled"]
    plain = recipe(tmp_path / "model", data(tmp_path), prune=PruneConfig(shape=shape, repair="none"))
    (alone,) = pipeline.run(plain, context(tmp_path / "alone"))
    expected = alone.evaluate.result(EvaluationResult).models["pruned"]
    assert (models["plain"].fingerprint, models["plain"].results) == (expected.fingerprint, expected.results)
    assert models["plain"].fingerprint != models["pruned"].fingerprint
    product = Product.current(Workspace(tmp_path / "run"))
    assert product.prune.key == step.prune.key, "the control is not the workspace's pruned model"
    assert [(model.label, model.kind) for model in product.models()] == [
        ("parent", "parent"),
        ("plain", "control"),
        ("pruned", "pruned"),
        ("distilled", "distilled"),
    ]
    assert [made.key for made in product.artifacts].count(step.untrained["plain"].key) == 1


def test_a_dry_run_lists_every_step(tmp_path):
    model = write_tiny(tmp_path / "model")
    steps = (
        Step(label="a", prune=PruneConfig(shape={"ffn": 32})),
        Step(label="b", prune=PruneConfig(shape={"hidden": 16})),
    )
    plan = dry_run.plan(recipe(model, data(tmp_path), steps=steps))
    assert {name: (s.sizes["ffn"], s.sizes["hidden"]) for name, s in plan.children.items()} == {
        "a: child": (32, 32),
        "b: child": (32, 16),
    }
    assert plan.steps["b: prune"] == "hidden 32 to 16"


RECIPE = """model: m
data: {sources: [{kind: python_stdlib}]}
"""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps: [{label: a}]", "nothing says how much to prune in step a; add prune.shape"),
        (
            "steps: [{label: a, search: {budget: {target: 4B}}, prune: {shape: {ffn: 8}}}]",
            "both search and prune choose a shape in step a",
        ),
        (
            "steps: [{label: a, prune: {shape: {ffn: 8}}}, {label: a, prune: {shape: {ffn: 4}}}]",
            "two steps have the label",
        ),
        ("steps: [{label: original, prune: {shape: {ffn: 8}}}]", "the label 'original' of a step is that of another"),
        (
            "steps: [{label: a, prune: {shape: {ffn: 8}}, distill: {steps: 5}}, {label: b, prune: {shape: {ffn: 4}}}]\n"
            "controls: [{label: longer, steps: 9}]",
            "control longer is in step b, which has no distill section; add one, or name the control's steps",
        ),
        ("prune: {budget: {target: 50%}}\nrelatives: [n]", "relatives need a target; give a budget"),
        ("search: {budget: {target: 75%}, targets: [50%]}", "the search has several targets; choose one"),
        ("search: {budget: {target: 75%}}\nprune: {size: 75%, shape: {ffn: 8}}", "size picks a winner of the search"),
    ],
)
def test_a_chain_that_makes_no_sense_is_refused(text, message):
    with pytest.raises(RecipeError, match=message):
        check(Recipe, parse(RECIPE + text, "r.yaml"))


def test_a_teacher_may_be_corrected_for_steps_that_are_trained():
    text = "correct: {steps: 1}\nsteps: [{label: a, prune: {shape: {ffn: 8}}, distill: {steps: 5}}]"
    assert check(Recipe, parse(RECIPE + text, "r.yaml")).distill is None


IMPOSSIBLE = {
    "the LM head of the model is not tied: leave --untie out": {
        "prune": PruneConfig(shape={"ffn": 24}, untie=True, repair="none"),
    },
    "step second: the LM head of the model is not tied": {
        "steps": (CHAIN[0], Step(label="second", prune=PruneConfig(shape={"ffn": 8}, untie=True, repair="none")))
    },
    "the model is a text model, in no wrapper that could be written: leave --as out": {
        "prune": PruneConfig(shape={"ffn": 24}, write_as="wrapper", repair="none"),
    },
    "distill: the model is a text model, in no wrapper": {
        "prune": PruneConfig(shape={"ffn": 24}, repair="none"),
        "distill": DistillConfig(steps=1, warmup_steps=0, write_as="wrapper"),
    },
    "step narrow: ffn=64 is not within 1 to the parent's 32": {
        "steps": (CHAIN[0], Step(label="narrow", prune=PruneConfig(shape={"ffn": 64}, repair="none")))
    },
    "step narrow: control brief: 16 tokens are less than a step of 2 x 16 tokens: raise its tokens": {
        "steps": CHAIN,
        "controls": (Control(label="brief", tokens=16),),
    },
    "control brief: distill.warmup_steps 2 is more than the run's 1 steps": {
        "prune": CHAIN[0].prune,
        "distill": DistillConfig(steps=4, batch_size=2, warmup_steps=2),
        "controls": (Control(label="brief", steps=1),),
    },
    "gate 'perplexity.los': no such value is measured; did you mean 'loss'": {
        "prune": CHAIN[0].prune,
        "evaluate": EvaluateConfig(gates=Gates(maximum={"perplexity.los": 1})),
    },
    "baseline gone.json does not exist": {
        "prune": CHAIN[0].prune,
        "evaluate": EvaluateConfig(
            gates=Gates(rules=[{"kind": "baseline", "file": "gone.json", "metric": "a.b", "min_ratio": 1}])
        ),
    },
}


@pytest.mark.parametrize("message", IMPOSSIBLE)
@pytest.mark.parametrize("is_dry", [True, False], ids=["dry", "run"])
def test_what_cannot_work_is_refused_before_anything_is_made(tmp_path, monkeypatch, message, is_dry):
    monkeypatch.chdir(tmp_path)
    write_place(tmp_path)
    asked = recipe(tmp_path / "model", data(tmp_path), **IMPOSSIBLE[message])
    with pytest.raises(RecipeError, match=f"^{re.escape(message)}"):
        dry_run.plan(asked) if is_dry else pipeline.run(asked, context(tmp_path / "run"))
    assert not list((tmp_path / "run").glob("*/*"))


def test_shapes_are_checked_up_to_the_first_that_is_still_to_be_chosen(tmp_path):
    steps = (
        Step(label="chosen", prune=PruneConfig(budget=Budget(target="75%"), repair="none")),
        Step(label="larger", prune=PruneConfig(shape={"ffn": 48}, repair="none")),
    )
    model = write_tiny(tmp_path / "model")
    recipe_check.check(recipe(model, data(tmp_path), steps=steps), dry_run.shape_of(str(model))[0])


def test_only_the_first_step_gives_a_tied_model_a_head_of_its_own(tmp_path):
    again = PruneConfig(budget=Budget(target="75%"), untie=True)
    steps = (Step(label="a"), Step(label="b"), Step(label="c", prune=again))
    asked = recipe(tmp_path, data(tmp_path), prune=again, steps=steps)
    assert [asked.at(step).prune.untie for step in asked.steps] == [True, False, True]
    assert asked.at(steps[1]).prune.budget == again.budget


def test_a_step_takes_what_it_does_not_say_from_the_recipe():
    text = "distill: {steps: 3}\nimportance: {samples: 7}\nsearch: {budget: {target: 4B}}\nsteps:\n"
    text += "- {label: a, distill: {steps: 5}}\n- {label: b, prune: {shape: {ffn: 8}}}"
    asked = check(Recipe, parse(RECIPE + text, "r.yaml"))
    a, b = (asked.at(step) for step in asked.steps)
    assert (a.distill.steps, a.importance.samples, a.search) == (5, 7, asked.search)
    assert (b.distill.steps, b.search, b.prune.shape) == (3, None, {"ffn": 8})
    assert {step.distill.seed for step in asked.seeded(3).steps if step.distill} == {3}
