"""What holds for every kind of constraint."""

import typing

import pytest
from transformers import LlamaConfig

from minitron_cli.figures import Figure
from minitron_cli.model.families import family_of
from minitron_cli.model.shape import Shape
from minitron_cli.search.constraints import Constraint, figure_of
from minitron_cli.search.constraints.base import Between, Counted, Timed, Timing
from minitron_cli.search.constraints.serving import Serving

KINDS = typing.get_args(typing.get_args(Constraint)[0])
SIZES = [kind for kind in KINDS if kind is not Serving]  # which counts programs
CUTS = ({"layer": 2}, {"hidden": 16}, {"head": 4}, {"ffn": 32}, {"kv_head": 1, "head": 4})


@pytest.fixture(scope="module")
def parent() -> Shape:
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=2,
    )
    return Shape.of(family_of(config), config)


def clock(shape, workload) -> Timing:
    return Timing(shape.flops_per_token(workload.length) / 1e9, 1.0)


def cost(constraint, shape, parent) -> float:
    if isinstance(constraint, Counted):
        return constraint.cost(shape)
    found = constraint.measure(shape, parent, clock).value
    return -found if constraint.kind == "throughput" else found


@pytest.mark.parametrize("kind", SIZES)
@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_a_smaller_shape_costs_less(parent, kind, cut):
    options = {"context": 16} if kind.model_fields.keys() & {"context"} else {}
    constraint = kind(at_most="100%", **options)
    before, after = cost(constraint, parent, parent), cost(constraint, parent.resize(**cut), parent)
    assert after <= before
    if kind.model_fields["kind"].default not in ("memory",) or cut != {"head": 4}:
        assert after < before


@pytest.mark.parametrize("kind", SIZES)
def test_limits_are_where_they_are_said_to_be(kind):
    limits = kind(at_least="20%", at_most="50%").limits(1000)
    assert [limits.admit(value) for value in (199, 200, 500, 501)] == [False, True, True, False]
    assert limits.miss(100) == pytest.approx(-0.5)
    assert limits.miss(750) == pytest.approx(0.5)
    assert limits.miss(300) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_it_says_what_it_demands(kind):
    constraint = kind() if kind is Serving else kind(at_most="50%")
    assert constraint.demand(2000.0)
    assert constraint.quantity.startswith(kind.figure.title) or constraint.quantity.endswith(kind.figure.title)
    assert kind.model_fields["kind"].default == constraint.kind
    assert kind.__doc__


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_counted_or_timed(kind):
    assert issubclass(kind, Counted) != issubclass(kind, Timed)


@pytest.mark.parametrize(("base", "missing"), [(Counted, "cost"), (Timed, "of_round")])
def test_one_that_does_not_say_its_cost_cannot_be_made(base, missing):
    half = type("Half", (Between, base), {"__module__": __name__, "figure": Figure("half")})
    with pytest.raises(TypeError, match=missing):
        half(at_most=1)


@pytest.mark.parametrize("kind", KINDS)
def test_its_figure_is_found_by_its_name(kind):
    figure = figure_of(kind.model_fields["kind"].default)
    assert figure is kind.figure
    assert figure.title
    assert figure.better in ("lower", "higher")


def test_a_kind_that_is_not_installed_goes_by_its_name():
    assert figure_of("kv_cache_tokens").heading == "kv cache tokens"
