"""Figures counted by hand for a model small enough to do so."""

import pytest

from minitron_cli.cost import compute
from minitron_cli.cost.compute import Entry, Pass, model_size
from minitron_cli.model.families import FAMILIES
from minitron_cli.model.shape import Shape
from minitron_cli.results.base import ModelSize
from tests.tiny import tiny_config

# Of the tiny Llama, hidden 32, 8 heads and 2 key-value heads of 8, ffn 48, vocabulary 64, 4 layers:
# q and o 32 x 64, k and v 32 x 16, three of 32 x 48 = 4,096 + 1,024 + 4,608 = 9,728 weights a layer, 2,048 in the head.
# With 10 positions attended to, 4 * 8 heads * 8 channels * 10 = 2,560 a layer.
LAYER = 2 * 9_728 + 2_560
HEAD = 2 * 2_048
FORWARD = 4 * LAYER + HEAD
LENGTH = 20  # of which half is attended to


SHAPE = Shape.of(FAMILIES["llama"], tiny_config("llama"))


@pytest.fixture(scope="module")
def model() -> ModelSize:
    return model_size(SHAPE, LENGTH)


@pytest.fixture(scope="module")
def child() -> ModelSize:
    """Half of the layers: half of everything but the head."""
    return model_size(SHAPE.resize(layer=2), LENGTH)


def test_a_forward_pass_is_two_per_weight_and_four_per_channel_and_position(model):
    assert (model.flops, model.decoder_flops, model.head_flops) == (FORWARD, 4 * LAYER, HEAD)


def test_of_experts_those_count_that_a_token_uses():
    def forward(**experts: int) -> int:
        config = tiny_config("mixtral", **experts)
        return model_size(Shape.of(FAMILIES["mixtral"], config), LENGTH).flops

    router, expert = 2 * 32, 2 * 3 * 32 * 48
    few = forward(num_local_experts=6, num_experts_per_tok=2)
    assert forward(num_local_experts=6, num_experts_per_tok=3) == few + 4 * expert
    assert forward(num_local_experts=7, num_experts_per_tok=2) == few + 4 * router


def test_training_costs_three_forward_passes_and_the_teachers_one(model, child):
    student = 2 * LAYER + HEAD
    assert compute.merged(compute.training(child, model, 100)) == [
        Entry("training", 100, 3 * 100 * student),
        Entry("teacher", 100, 100 * FORWARD),
    ]
    assert compute.merged(compute.training(child, None, 100)) == [Entry("training", 100, 300 * student)]


def test_calibration_needs_no_head(model):
    assert compute.merged(compute.calibration(model, 100, [])) == [Entry("calibration", 100, 100 * 4 * LAYER)]


@pytest.mark.parametrize(
    ("removed", "layers", "cuts"),
    [([1], 3 + 2 + 1 + 0, 4), ([2], 2 + 1 + 0, 3), ([1, 3], 3 + 2 + 1 + 0 + 1 + 0, 4 + 2)],
)
def test_removing_layers_runs_those_behind_again_and_the_head_each_time(removed, layers, cuts, model):
    found = compute.calibration(model, 100, removed)[1]
    assert found == Pass("layer removal", 100, 100 * layers * LAYER, 100 * (cuts + 1) * HEAD)


@pytest.mark.parametrize(
    ("given", "tokens", "scored"),
    [((10, 8, None, None), 80, 80), ((10, 8, 3, 2), 24, 6), ((2, 8, 3, 99), 16, 16)],
)
def test_removal_runs_few_samples_and_scores_fewer_tokens(given, tokens, scored, model):
    on = compute.Removal.of(*given)
    assert on == (tokens, scored)
    found = compute.calibration(model, 80, [1], on)[1]
    assert found == Pass("layer removal", tokens, tokens * (3 + 2 + 1) * LAYER, scored * 5 * HEAD)


def test_every_model_that_is_measured_reads_the_text(model, child):
    assert compute.held_out([model, child], 100, "kl") == Pass("held-out text", 200, 600 * LAYER, 200 * HEAD, "kl")


def test_entries_of_one_kind_add_up_and_work_without_flops_is_left_out():
    entries = [Entry("training", 1, 10), Entry("teacher", 2, 20), Entry("training", 3, 30), Entry("nothing", 5, 0)]
    assert compute.merged(entries) == [Entry("training", 4, 40), Entry("teacher", 2, 20)]
    assert compute.total(entries) == Entry("total", 11, 60)
