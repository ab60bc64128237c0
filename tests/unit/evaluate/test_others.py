import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from minitron_cli.errors import RecipeError
from minitron_cli.evaluate.config import EvaluateConfig
from minitron_cli.evaluate.other_model import RequestedOther
from minitron_cli.evaluate.others import read
from minitron_cli.report.evaluation import Evaluated, evaluation_tables
from minitron_cli.results.base import SCHEMA
from minitron_cli.results.evaluation import EvaluationResult, MetricResult
from tests.unit.report.sample import evaluated, evaluation

OF_LM_EVAL = {
    "results": {
        "pair": {"acc,none": 0.55, "acc_stderr,none": "N/A"},
        "sums": {"alias": " - sums", "acc,none": 0.5, "acc_stderr,none": 0.1, "f1,strict": float("nan")},
        "more": {"acc,none": 0.6, "acc_stderr,none": 0.1},
    },
    "group_subtasks": {"pair": ["sums", "more"]},
    "n-shot": {"sums": 5, "more": 5},
    "n-samples": {"sums": {"original": 9, "effective": 6}, "more": {"original": 9, "effective": 4}},
    "config": {"model": "hf", "model_num_parameters": 1_235_814_400},
}


def written(path: Path, content: Any) -> str:
    path.write_text(json.dumps(content))
    return str(path)


def other(given: Any) -> Any:
    return TypeAdapter(RequestedOther).validate_python(given)


def test_a_file_of_lm_eval_gives_values_errors_items_shots_groups_and_parameters(tmp_path: Path) -> None:
    file = written(tmp_path / "results_2026.json", OF_LM_EVAL)
    found = read([other(f"llama={file}")])["llama"]
    assert found.results["sums"] == {
        "acc": MetricResult(value=0.5, stderr=0.1, n=6, shots=5, part_of="pair"),
        "f1,strict": MetricResult(value=None, n=6, shots=5, part_of="pair"),
    }
    assert found.results["pair"] == {"acc": MetricResult(value=0.55, n=10, shots=5)}
    assert found.model.parameters == 1_235_814_400
    assert found.source == "results_2026.json"


def test_members_of_a_group_without_a_metric_are_shown(tmp_path: Path) -> None:
    """Groups inside one another: `outer` has a metric, `inner` has none, and neither has `plain`."""
    content: dict[str, Any] = {
        "results": {
            "outer": {"acc,none": 0.5, "acc_stderr,none": 0.1},
            "inner": {" ": " "},
            "plain": {"alias": "plain", "acc,none": "N/A"},
            **{name: {"acc,none": 0.5} for name in ("a", "b", "c")},
        },
        "group_subtasks": {"outer": ["inner", "c"], "inner": ["a"], "plain": ["b"]},
    }
    found = read([other(f"x={written(tmp_path / 'r.json', content)}")])["x"]
    assert {name: metrics["acc"].part_of for name, metrics in found.results.items()} == {
        "outer": None,
        "a": "outer",
        "b": None,
        "c": "outer",
    }
    (metrics, _) = evaluation_tables([Evaluated("x", "other", found)])
    assert [row[0] for row in metrics.text()][-2:] == ["b.acc", "outer.acc"]


def test_values_given_by_hand_replace_those_of_a_file(tmp_path: Path) -> None:
    file = written(tmp_path / "r.json", OF_LM_EVAL)
    values = {"pair.acc": 0.6, "arc.acc_norm": 0.4}
    by_hand, both = (
        other({"name": name, "values": values, "parameters": "8B"} | more)
        for name, more in (("a", {}), ("b", {"file": file}))
    )
    found = read([by_hand, both])
    assert found["a"].results == {
        "pair": {"acc": MetricResult(value=0.6)},
        "arc": {"acc_norm": MetricResult(value=0.4)},
    }
    assert found["a"].source == "given by hand"
    assert found["b"].results["pair"]["acc"].value == 0.6
    assert found["b"].results["more"]["acc"].value == 0.6
    assert found["b"].model.parameters == 8_000_000_000


def test_the_name_of_a_task_may_hold_dots() -> None:
    found = read([other({"name": "a", "values": {"my.task.acc": 0.6}})])["a"]
    assert found.results == {"my.task": {"acc": MetricResult(value=0.6)}}


def test_a_file_of_minitron_gives_the_model_that_is_meant(tmp_path: Path) -> None:
    models = {"parent": evaluation(1.0), "child": evaluation(2.0), "twin": evaluation(3.0)}
    stored = {SCHEMA: EvaluationResult.schema_name} | EvaluationResult(models=models).model_dump(mode="json")
    file = written(tmp_path / "eval.json", {"stage": "evaluate", "result": stored})
    (named, same) = (other({"name": "x", "file": file, "model": "twin"}), other({"name": "child", "file": file}))
    found = read([named, same])
    assert [found[name].results["perplexity"]["loss"].value for name in ("x", "child")] == [3.0, 2.0]
    with pytest.raises(RecipeError, match="measures several models: choose one for y with model: LABEL"):
        read([other({"name": "y", "file": file})])


@pytest.mark.parametrize("content", [{}, {"results": []}, {"results": {"a": 1}}, {"results": {"a": {"acc": 1}}}])
def test_a_file_without_results_is_one_sentence(tmp_path: Path, content: Any) -> None:
    file = written(tmp_path / "r.json", content)
    with pytest.raises(RecipeError, match="has no results: give a file that lm-eval wrote"):
        read([other(f"a={file}")])


def test_names_files_and_values_are_checked(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="does not exist"):
        read([other(f"a={tmp_path / 'absent.json'}")])
    with pytest.raises(RecipeError, match="two models are called 'child'"):
        read([other({"name": "child", "values": {"a.acc": 1}})], taken=["parent", "child"])
    with pytest.raises(ValidationError, match="write NAME=FILE"):
        EvaluateConfig(others=("results.json",))
    with pytest.raises(ValidationError, match="give a file of results, or values"):
        other({"name": "a"})
    with pytest.raises(ValidationError, match=r"a metric is named TASK\.METRIC"):
        other({"name": "a", "values": {"acc": 1}})


def test_a_value_on_text_that_no_evaluation_measures_is_refused(tmp_path: Path) -> None:
    """Every table would fail on it."""
    file = written(tmp_path / "r.json", {"results": {"perplexity": {"acc,none": 0.5}}})
    for given, metric in (({"values": {"perplexity.ppl": 8.1}}, "ppl"), ({"file": file}, "acc")):
        with pytest.raises(RecipeError, match=f"'a': perplexity.{metric} is not measured on text; give one of loss, "):
            read([other({"name": "a", **given})])
    found = read([other({"name": "a", "values": {"perplexity.perplexity": 8.1}})])
    assert evaluation_tables([Evaluated("a", "other", found["a"])])


def test_others_are_not_part_of_the_identity_of_what_is_measured() -> None:
    others = ({"name": "a", "values": {"b.acc": 1}},)
    assert EvaluateConfig(others=others).model_dump() == EvaluateConfig().model_dump()


def test_a_model_measured_elsewhere_has_a_column_and_its_own_shots() -> None:
    quiz = {"quiz": {"acc": MetricResult(value=0.7, n=10, shots=0, chance=0.25)}}
    elsewhere = read([other({"name": "llama", "values": {"quiz.acc": 0.5}, "parameters": "2k"})])["llama"]
    shown = elsewhere.model_copy(update={"results": {"quiz": {"acc": MetricResult(value=0.5, n=99, shots=5)}}})
    metrics, sources = evaluation_tables(
        [evaluated("parent", "parent", tasks=quiz), Evaluated("llama", "other", shown)]
    )
    assert metrics.header == ("metric", "items", "chance", "parent", "llama")
    assert metrics.text()[0][-2:] == ("5", "2.00 k")
    assert metrics.text()[-1] == ("quiz.acc, 0-shot", "10", "0.250", "0.7", "0.5, 5-shot")
    assert sources.text() == [("llama", "given by hand")]
