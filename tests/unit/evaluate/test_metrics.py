"""Every measured value has a title and a direction; lm-eval's own registry is the oracle of its metrics."""

from dataclasses import fields

import pytest

from minitron_cli.evaluate.generation_speed import GenerationRates, SpeedComparison
from minitron_cli.evaluate.metrics import SPEED_FIGURES, metric_figure, task_figure


def test_directions_are_lm_evals():
    import lm_eval.api.metrics  # noqa: F401 - registers them
    from lm_eval.api.registry import HIGHER_IS_BETTER_REGISTRY

    assert len(HIGHER_IS_BETTER_REGISTRY) > 10
    for name, is_higher_better in HIGHER_IS_BETTER_REGISTRY.items():
        assert task_figure(name).better == ("higher" if is_higher_better else "lower"), name


@pytest.mark.parametrize("metric", ["acc,none", "exact_match,strict-match", "pass_at_1", "pass@1", "rougeL", "rouge_l"])
def test_accuracies_under_any_filter_are_better_higher(metric):
    assert task_figure(metric).better == "higher"


def test_a_filter_is_part_of_the_title():
    assert task_figure("exact_match,strict-match").title == "exact_match (strict-match)"


def test_a_metric_of_the_tasks_author_has_no_direction():
    assert task_figure("regret").better is None


def test_text_metrics_have_units_and_task_metrics_of_the_same_name_do_not():
    assert metric_figure("perplexity", "loss").heading == "loss (nats/token)"
    assert metric_figure("perplexity", "kl").better == "lower"
    assert metric_figure("wikitext", "loss").unit == ""
    assert metric_figure("winogrande", "acc").better == "higher"


def test_every_speed_measurement_has_a_figure():
    measured = {field.name for kind in (GenerationRates, SpeedComparison) for field in fields(kind)} - {
        "parent",
        "model",
    }
    assert {name for name in measured if not name.endswith("_range")} <= SPEED_FIGURES.keys()
    assert SPEED_FIGURES["time_to_first_token_seconds"].better == "lower"
