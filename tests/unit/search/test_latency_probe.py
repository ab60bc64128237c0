"""What a measured time is kept for."""

from types import SimpleNamespace

import pytest

from minitron_cli.inputs.source_model import open_source_model
from minitron_cli.search.constraints.base import Workload
from minitron_cli.search.latency_probe import LatencyProbe
from tests.tiny import write_tiny


def as_it_is(shape):
    return SimpleNamespace(child=shape)


@pytest.mark.parametrize("options", [{"tie_word_embeddings": True}, {"sliding_window": 3}, {"num_key_value_heads": 2}])
def test_a_time_is_kept_for_the_model_that_took_it(options, tmp_path):
    """Sizes are not all: a head that is tied, a window, and what else the config says."""
    facts = []
    for name, given in (("plain", {}), ("other", options)):
        source = open_source_model(write_tiny(tmp_path / name, "mistral", **given))
        context = SimpleNamespace(dtype="auto", device="cpu")
        probe = LatencyProbe(SimpleNamespace(parent=source, context=context, plan=as_it_is))
        facts.append(probe._facts(source.shape, Workload()))
    assert (facts[0] == facts[1]) == (options == {"num_key_value_heads": 2})


def test_a_time_is_kept_for_the_kinds_of_layers_that_stay(tmp_path):
    """Of a hybrid's layers, those with attention take another time, and the ranking says which stay."""
    source = open_source_model(write_tiny(tmp_path / "model", "bamba"))
    assert len(set(source.family.layers)) == 2
    facts = []
    for kind in sorted(set(source.family.layers)):
        kept = source.shape.of_layers([source.family.layers.index(kind)])
        builder = SimpleNamespace(
            parent=source, context=SimpleNamespace(dtype="auto", device="cpu"), plan=lambda _, kept=kept: as_it_is(kept)
        )
        facts.append(LatencyProbe(builder)._facts(source.shape.resize(layer=1), Workload()))
    assert facts[0] != facts[1]
