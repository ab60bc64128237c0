import pytest
from pydantic import ValidationError

from minitron_cli.errors import RecipeError
from minitron_cli.evaluate.config import EvaluateConfig, Gates, Task


def test_a_task_is_its_name_and_its_shots():
    assert Task.parse("winogrande:5") == Task(name="winogrande", num_fewshot=5)
    assert Task.parse("winogrande") == Task(name="winogrande")
    assert Task.parse("winogrande:0").num_fewshot == 0


@pytest.mark.parametrize("text", ["winogrande:", "winogrande:five", ":5", "", "a:-1", "a:1.5"])
def test_anything_else_after_the_colon_is_refused(text):
    with pytest.raises(RecipeError, match="NAME:SHOTS"):
        Task.parse(text)


def test_a_recipe_may_write_tasks_as_on_the_command_line():
    config = EvaluateConfig(tasks=["arc_challenge:25", {"name": "mmlu", "limit": 0.5}])
    assert config.tasks == (Task(name="arc_challenge", num_fewshot=25), Task(name="mmlu", limit=0.5))


def test_json_holds_what_is_measured_and_not_where_tasks_are_or_what_is_demanded():
    """JSON of the config is the identity of a result."""
    demands = {"gates": {"minimum": {"arc_challenge.acc": 0.5}}, "include_path": "tasks", "task_data": "data"}
    config = EvaluateConfig(tasks=["arc_challenge:25"], **demands)
    assert EvaluateConfig.model_validate_json(config.model_dump_json()) == EvaluateConfig(tasks=["arc_challenge:25"])


@pytest.mark.parametrize("limit", [0, -1, 2.5])
def test_a_limit_is_a_count_or_a_fraction(limit):
    with pytest.raises(ValidationError):
        Task(name="mmlu", limit=limit)


def test_our_own_name_is_not_free():
    with pytest.raises(ValidationError, match="rename it"):
        Task(name="perplexity")


def test_gates_are_read_from_the_command_line():
    gates = Gates.parse(["a.acc=0.5", "b.exact_match,strict-match=1e-2"], ["perplexity.loss=2"])
    assert gates == Gates(minimum={"a.acc": 0.5, "b.exact_match,strict-match": 0.01}, maximum={"perplexity.loss": 2})


@pytest.mark.parametrize("text", ["a.acc", "a.acc=", "=3", "a.acc=x", "acc=0.5", "a.=0.5", "a.acc=nan", "a.acc=inf"])
def test_a_gate_that_is_no_bound_is_refused(text):
    with pytest.raises(RecipeError, match=r"TASK\.METRIC=VALUE"):
        Gates.parse([text])


def test_no_bound_is_infinite():
    with pytest.raises(ValidationError):
        Gates(minimum={"a.acc": float("nan")})


def test_a_gate_names_a_task_and_its_metric():
    with pytest.raises(ValidationError, match=r"named TASK\.METRIC, such as winogrande\.acc"):
        Gates(maximum={"loss": 2.0})
