import pytest

from minitron_cli.errors import GateMissed, RecipeError
from minitron_cli.evaluate.config import Gates
from minitron_cli.evaluate.gate import Miss, check, misses

RESULTS = {
    "perplexity": {"loss": {"value": 2.5, "stderr": 0.1}},
    "winogrande": {"acc": {"value": 0.61}, "acc_norm": {"value": None}},
}


@pytest.mark.parametrize(
    ("gates", "missed"),
    [
        ({"minimum": {"winogrande.acc": 0.6}}, []),
        ({"minimum": {"winogrande.acc": 0.61}}, []),  # a bound is met by reaching it
        ({"minimum": {"winogrande.acc": 0.62}}, ["winogrande.acc"]),
        ({"maximum": {"perplexity.loss": 2.5}}, []),
        ({"maximum": {"perplexity.loss": 2.4}}, ["perplexity.loss"]),
        (
            {"minimum": {"perplexity.loss": 2.6}, "maximum": {"winogrande.acc": 0.5}},
            ["perplexity.loss", "winogrande.acc"],
        ),
        ({"maximum": {"winogrande.acc_norm": 9}}, ["winogrande.acc_norm"]),  # no value meets no bound
        ({}, []),
    ],
)
def test_a_value_beyond_its_bound_is_missed(gates, missed):
    assert [miss.name for miss in misses(Gates(**gates), RESULTS)] == missed


def test_a_miss_says_by_how_much():
    (miss,) = misses(Gates(minimum={"winogrande.acc": 0.7}), RESULTS)
    assert miss == Miss("winogrande.acc", "minimum", 0.7, 0.61)
    assert miss.by == pytest.approx(0.09)


def test_the_error_lists_every_miss():
    gates = Gates(minimum={"winogrande.acc": 0.7, "perplexity.loss": 1}, maximum={"perplexity.loss": 2})
    with pytest.raises(GateMissed) as caught:
        check(gates, RESULTS)
    assert str(caught.value) == (
        "2 of 3 gates missed: winogrande.acc is 0.61, 0.09 below its minimum 0.7; "
        "perplexity.loss is 2.5, 0.5 above its maximum 2"
    )
    assert caught.value.exit_code == 4


def test_met_gates_pass_silently():
    assert check(Gates(maximum={"perplexity.loss": 3}), RESULTS) is None


def test_a_gate_on_nothing_measured_suggests_what_was_meant():
    with pytest.raises(RecipeError, match=r"did you mean 'winogrande\.acc'\?"):
        check(Gates(minimum={"winogrand.acc": 0.7}), RESULTS)
    with pytest.raises(RecipeError, match=r"gates can name perplexity\.loss, winogrande\.acc"):
        check(Gates(minimum={"x": 0.7}), RESULTS)
    with pytest.raises(RecipeError, match="nothing was measured"):
        check(Gates(minimum={"x": 0.7}), {})
