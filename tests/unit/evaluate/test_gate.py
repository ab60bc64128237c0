import json

import pytest
from pydantic import ValidationError

from minitron_cli import progress
from minitron_cli.errors import GateMissed, RecipeError
from minitron_cli.evaluate.config import Gates
from minitron_cli.evaluate.gate import check, outcomes, require
from minitron_cli.evaluate.statistics import Items, compare
from minitron_cli.results.base import SCHEMA, ModelSize
from minitron_cli.results.evaluation import EvaluationResult, ModelEvaluation

PARENT_ITEMS = Items([1.0] * 80 + [0.0] * 20)
CHILD_ITEMS = Items([1.0] * 70 + [0.0] * 30)


def metric(value, stderr=None, n=100):
    return {"value": value, "stderr": stderr, "n": n, "shots": None}


PARENT = {"results": {"quiz": {"acc": metric(0.8, PARENT_ITEMS.stderr), "f1": metric(0.5, 0.03)}}}
CHILD = {
    "results": {
        "quiz": {"acc": metric(0.7, CHILD_ITEMS.stderr), "f1": metric(0.4, 0.04), "odd": metric(None)},
        "text": {"loss": metric(2.5, 0.1)},
        "alone": {"acc": metric(0.5, None, 1)},
    },
    "against_parent": {"quiz": {"acc": compare(CHILD_ITEMS, PARENT_ITEMS).model_dump()}},
}
BEFORE = {"results": {"quiz": {"acc": metric(0.72, 0.03)}}}
SIZE = ModelSize(sizes={}, parameters=1, non_embedding=1, decoder_flops=1, head_flops=1)


def evaluated(models):
    return {label: ModelEvaluation(fingerprint=label, model=SIZE, **measured) for label, measured in models.items()}


def stored(models):
    """An evaluation as its artifact holds it."""
    return {SCHEMA: EvaluationResult.schema_name} | EvaluationResult(models=evaluated(models)).model_dump(mode="json")


MODELS = evaluated({"parent": PARENT, "child": CHILD})


@pytest.fixture
def baseline(tmp_path):
    file = tmp_path / "baseline.json"
    file.write_text(json.dumps(stored({"parent": PARENT, "child": BEFORE})))
    return file


def outcome(rule, models=MODELS, label="child"):
    (found,) = outcomes(Gates(rules=[rule]), models, label)
    return found


@pytest.mark.parametrize(
    ("rule", "passes", "margin"),
    [
        # 1.96 standard errors of 0.0461 is 0.0914 by Student's t of 99 degrees: from 0.6086 to 0.7914
        ({"kind": "absolute", "metric": "quiz.acc", "min": 0.7}, True, 0),  # a bound is met by reaching it
        ({"kind": "absolute", "metric": "quiz.acc", "min": 0.71}, False, -0.01),
        ({"kind": "absolute", "metric": "text.loss", "max": 2.5}, True, 0),
        ({"kind": "absolute", "metric": "text.loss", "max": 2.4}, False, -0.1),
        ({"kind": "absolute", "metric": "quiz.acc", "min": 0.6, "confidence": 0.95}, True, 0.0086),
        ({"kind": "absolute", "metric": "quiz.acc", "min": 0.65, "confidence": 0.95}, False, -0.0414),
        ({"kind": "absolute", "metric": "quiz.acc", "max": 0.8, "confidence": 0.95}, True, 0.0086),
        ({"kind": "absolute", "metric": "quiz.acc", "max": 0.75, "confidence": 0.95}, False, -0.0414),
        # the ten items lost of a hundred: -0.1 with a standard error of 0.03015, so from -0.1598 to -0.0402
        ({"kind": "parent", "metric": "quiz.acc", "min_difference": -0.11}, True, 0.01),
        ({"kind": "parent", "metric": "quiz.acc", "min_difference": -0.09}, False, -0.01),
        ({"kind": "parent", "metric": "quiz.acc", "min_difference": -0.17, "confidence": 0.95}, True, 0.0102),
        ({"kind": "parent", "metric": "quiz.acc", "min_difference": -0.15, "confidence": 0.95}, False, -0.0098),
        ({"kind": "parent", "metric": "quiz.acc", "max_difference": -0.05, "confidence": 0.95}, False, -0.0098),
        ({"kind": "parent", "metric": "quiz.acc", "min_ratio": 0.87}, True, 0.005),
        ({"kind": "parent", "metric": "quiz.acc", "min_ratio": 0.88}, False, -0.005),
        ({"kind": "parent", "metric": "quiz.acc", "min_ratio": 0.85, "confidence": 0.95}, False, -0.0488),
        ({"kind": "parent", "metric": "quiz.f1", "max_ratio": 0.8}, True, 0),  # no mean of items, yet comparable
        # 0.7 with 0.0461 against 0.72 with 0.03, as if independent: -0.02 with 0.0550
        ({"kind": "baseline", "metric": "quiz.acc", "min_difference": -0.03}, True, 0.01),
        ({"kind": "baseline", "metric": "quiz.acc", "min_difference": -0.01}, False, -0.01),
        ({"kind": "baseline", "metric": "quiz.acc", "min_difference": -0.2, "confidence": 0.95}, True, 0.0709),
        ({"kind": "baseline", "metric": "quiz.acc", "min_difference": -0.1, "confidence": 0.95}, False, -0.0291),
        ({"kind": "baseline", "metric": "quiz.acc", "max_ratio": 0.98}, True, 0.0078),
        ({"kind": "baseline", "metric": "quiz.acc", "min_ratio": 1}, False, -0.0278),
        ({"kind": "baseline", "metric": "quiz.acc", "model": "parent", "min_ratio": 0.8}, True, 0.075),
        # the ratio 0.9722 has the error hypot(0.0461, 0.9722 * 0.03) / 0.72 = 0.0757: from 0.8220 to 1.1225
        ({"kind": "baseline", "metric": "quiz.acc", "min_ratio": 0.8, "confidence": 0.95}, True, 0.0220),
        ({"kind": "baseline", "metric": "quiz.acc", "min_ratio": 0.85, "confidence": 0.95}, False, -0.0280),
        ({"kind": "baseline", "metric": "quiz.acc", "max_ratio": 1.1, "confidence": 0.95}, False, -0.0225),
    ],
)
def test_every_kind_of_gate_passes_and_fails_as_it_should(rule, passes, margin, baseline):
    found = outcome(rule | ({"file": str(baseline)} if rule["kind"] == "baseline" else {}))
    assert found.margin == pytest.approx(margin, abs=1e-4)
    assert found.passed is passes
    if passes:
        require([found])
    else:
        with pytest.raises(GateMissed) as caught:
            require([found])
        assert caught.value.exit_code == 4


def test_a_task_whose_name_holds_dots_is_compared_item_by_item():
    def renamed(measured):
        return {part: {"my.task": values["quiz"]} for part, values in measured.items()}

    models = evaluated({"parent": renamed(PARENT), "child": renamed(CHILD)})
    rule = {"kind": "parent", "min_difference": -0.17, "confidence": 0.95}
    found, plain = outcome({**rule, "metric": "my.task.acc"}, models), outcome({**rule, "metric": "quiz.acc"})
    assert found.compared == plain.compared
    assert found.passed


def test_a_task_may_be_called_as_the_measurements_on_text_and_more():
    check(Gates(minimum={"perplexity.of.code.acc": 0.5}))
    with pytest.raises(RecipeError, match="no such value is measured"):
        check(Gates(maximum={"perplexity.ppl": 8}))


def test_short_bounds_are_absolute_gates():
    gates = Gates(minimum={"quiz.acc": 0.6}, maximum={"text.loss": 2.4})
    assert [(o.kind, o.title, o.passed) for o in outcomes(gates, MODELS, "child")] == [
        ("absolute", "quiz.acc >= 0.6", True),
        ("absolute", "text.loss <= 2.4", False),
    ]


def test_no_value_meets_no_bound():
    found = outcome({"kind": "absolute", "metric": "quiz.odd", "max": 9})
    assert (found.passed, found.margin) == (False, None)
    assert str(found) == "quiz.odd has no value where its maximum is 9"


def test_the_error_lists_every_miss_and_by_how_much():
    gates = Gates(minimum={"quiz.acc": 0.75, "text.loss": 1}, maximum={"text.loss": 2})
    with pytest.raises(GateMissed) as caught:
        require(outcomes(gates, MODELS, "child"))
    assert str(caught.value) == (
        "2 of 3 gates missed: quiz.acc is 0.7, 0.05 below its minimum 0.75; text.loss is 2.5, 0.5 above its maximum 2"
    )


def test_gates_that_cannot_be_judged_say_why(baseline):
    def refused(rule, models=MODELS, label="child"):
        with pytest.raises(RecipeError) as caught:
            outcome(rule, models, label)
        return str(caught.value)

    acc = {"metric": "quiz.acc", "min_ratio": 0.9}
    assert "no standard error, so confidence 0.95 cannot be checked" in refused(
        {"kind": "absolute", "metric": "alone.acc", "min": 0.1, "confidence": 0.95}
    )
    assert "the parent cannot be compared with itself" in refused(acc | {"kind": "parent"}, MODELS, "parent")
    assert "does not exist: keep one with `minitron eval --json > gone.json`" in refused(
        acc | {"kind": "baseline", "file": "gone.json"}
    )
    elsewhere = {**MODELS, "other": MODELS["child"], "third": MODELS["child"]}
    baseline.write_text(json.dumps({"result": stored({"parent": PARENT, "a": BEFORE, "b": BEFORE})}))
    assert "measures a, b, parent; choose one with model: NAME" in refused(
        acc | {"kind": "baseline", "file": str(baseline)}, elsewhere, "other"
    )
    baseline.write_text("{}")
    assert "holds no evaluation that this version of minitron reads" in refused(
        acc | {"kind": "baseline", "file": str(baseline)}
    )
    assert "did you mean 'quiz.acc'?" in refused({"kind": "absolute", "metric": "quizz.acc", "min": 0.1})


@pytest.mark.parametrize(
    "rule",
    [
        {"kind": "absolute", "metric": "a.b"},
        {"kind": "absolute", "metric": "ab", "min": 1},
        {"kind": "parent", "metric": "a.b", "min": 1},
        {"kind": "baseline", "metric": "a.b", "min_ratio": 1},
        {"kind": "absolute", "metric": "a.b", "min": 1, "confidence": 95},
        {"kind": "absolute", "metric": "a.b", "min": float("nan")},
    ],
)
def test_a_rule_that_makes_no_gate_is_refused(rule):
    with pytest.raises(ValidationError):
        Gates(rules=[rule])


def step_of_chain(parent, child, original=None):
    """Models of one step, whose losses are those of each item in `parent`, `child` and `original`."""
    losses = {"parent": Items(parent), "original": original and Items(original), "distilled": Items(child)}
    known = {label: items for label, items in losses.items() if items}
    apart = {
        f"against_{name}": {"text": {"loss": compare(losses["distilled"], known[name])}}
        for name in known
        if name != "distilled"
    }
    results = {
        label: {"results": {"text": {"loss": metric(items.mean, items.stderr)}}} for label, items in known.items()
    }
    return evaluated(results | {"distilled": results["distilled"] | apart})


def test_a_loss_within_the_bound_at_each_step_of_a_chain_may_miss_it_against_the_original():
    original, middle, last = ([loss + 0.08 * step for loss in (2.0, 2.5, 3.0)] for step in range(3))
    first, second = step_of_chain(original, middle), step_of_chain(middle, last, original)
    rule = {"kind": "parent", "metric": "text.loss", "max_difference": 0.1}
    for models in (first, second):
        require(outcomes(Gates(rules=[{**rule, "of": "step"}]), models, "distilled"))
    require(outcomes(Gates(rules=[rule]), first, "distilled"))
    for of in ({}, {"of": "original"}):
        with pytest.raises(GateMissed, match=r"text.loss - original is 0.16, 0.06 above its maximum 0.1"):
            require(outcomes(Gates(rules=[{**rule, **of}]), second, "distilled"))


def test_a_baseline_with_another_prompt_is_refused_and_one_of_other_items_is_said(baseline, monkeypatch):
    said = []
    monkeypatch.setattr(progress, "warn_once", said.append)
    rule = {"kind": "baseline", "file": str(baseline), "metric": "quiz.acc", "min_ratio": 0.5}
    own = MODELS["child"].results["quiz"]["acc"]

    def measured(**changes):
        return evaluated({"child": {"results": {"quiz": {"acc": own.model_copy(update=changes)}}}})

    outcome(rule)
    assert said == []
    outcome(rule, measured(n=7))
    assert said == [f"gate on quiz.acc: {baseline} has it of {own.n} items, and this evaluation of 7"]
    with pytest.raises(RecipeError, match="has it with None shots, and this evaluation with 5; measure both"):
        outcome(rule, measured(shots=5))


def test_two_bounds_of_one_value_on_the_command_line_are_refused():
    with pytest.raises(RecipeError, match=r"gates a.b=0.9 and a.b=0.1 bound the same value: leave one out"):
        Gates.parse(minimum=["a.b=0.9", "a.b=0.1"])
    assert Gates.parse(minimum=["a.b=0.9", "a.b=0.9"], maximum=["a.b=1"]).maximum == {"a.b": 1}
