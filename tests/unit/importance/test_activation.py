"""What is kept of an activation, on numbers small enough to check by hand."""

import math

import pytest
import torch

from minitron_cli.importance.activation import AGGREGATIONS, channels, over_sample, sequence_aggregates
from minitron_cli.model.families import FAMILIES


def test_sequence_aggregates_run_over_the_tokens_of_each_sample():
    values_BTC = torch.tensor([[[1.0, 0.0], [-3.0, 0.0]], [[2.0, 5.0], [2.0, -5.0]]])
    found = dict(zip(AGGREGATIONS, sequence_aggregates(values_BTC, over_sample(values_BTC)).tolist(), strict=True))
    assert found["mean"] == [[2, 0], [2, 5]]
    assert found["l2"] == [pytest.approx([math.sqrt(10), 0]), pytest.approx([math.sqrt(8), math.sqrt(50)])]
    assert found["var"] == [[4, 0], [0, 25]]


def test_a_head_is_one_channel_with_the_norm_of_its_own_features():
    features = torch.tensor([[[3.0, 4.0, 0.0, 0.0, 5.0, 12.0]]])
    assert channels(features, 3).tolist() == [[[5, 0, 13]]]


def test_a_neuron_is_a_channel_and_keeps_its_sign():
    features = torch.tensor([[[1.5, -2.0]]], dtype=torch.bfloat16)
    assert channels(features, 2).dtype == torch.float32
    assert channels(features, 2).tolist() == [[[1.5, -2]]]


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_only_the_residual_stream_is_shared_by_all_layers(family):
    assert family.owners("hidden") == ()
    assert all(family.owners(axis) == ("layer",) for axis in ("head", "kv_head") if axis in family.sizes)
    assert family.owners("ffn") == (("layer", "expert") if "expert" in family.sizes else ("layer",))
