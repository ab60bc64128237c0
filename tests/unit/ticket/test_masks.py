"""Masks of tickets: exact counts, what is lost stays lost, and controls of the density that they are to have."""

from fractions import Fraction

import pytest
import torch

from minitron_cli.errors import RecipeError
from minitron_cli.model.families import family_of
from minitron_cli.model.shape import Shape
from minitron_cli.sparse.mask_file import MaskFile
from minitron_cli.sparse.pattern import Pattern
from minitron_cli.ticket import masks
from minitron_cli.ticket.config import RoundConfig, SupermaskConfig, TicketConfig, TicketTraining, TransferConfig
from tests.tiny import tiny_config

SHAPES = {"a": (40, 25), "b": (7, 11), "c": (3, 5)}


def random_weights(seed=0):
    draw = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=draw) for name, shape in SHAPES.items()}


def whole():
    return {name: torch.ones(shape, dtype=torch.bool) for name, shape in SHAPES.items()}


def test_the_last_layer_loses_at_half_the_rate():
    typed = tiny_config("llama")
    shape = Shape.of(family_of(typed), typed)
    last = masks.last_layer(shape)
    assert len(last) == 7
    assert all("layers.3." in name for name in last)
    kept = masks.all_kept(shape)
    for number in range(1, 4):
        own = config(number, "layer_half_last")
        weights = {name: torch.rand(mask.shape) for name, mask in kept.items()}
        others = dict.fromkeys(last, own.last_lost_share)
        kept = masks.by_magnitude(weights.__getitem__, kept, own.lost_share, own.scope, others)
    for name, mask in kept.items():
        wanted = (0.9 if name in last else 0.8) ** 3 * mask.numel()
        assert abs(int(mask.sum()) - wanted) < 1, name
    assert config(3, "layer").last_lost_share == config(3, "layer").lost_share


def config(number, scope):
    return RoundConfig(arm="ticket", round=number, rate=0.2, scope=scope, training=TicketTraining())


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_ten_rounds_of_a_fifth_leave_what_they_are_to_leave(scope):
    kept = whole()
    for number in range(1, 11):
        before, share = kept, config(number, scope).lost_share
        kept = masks.by_magnitude(random_weights(number).__getitem__, before, share, scope)
        assert all(not (kept[name] & ~before[name]).any() for name in kept), "what is lost stays lost"
    assert share == 1 - Fraction(4, 5) ** 10
    counts = {name: (int(mask.sum()), 0.8**10 * mask.numel()) for name, mask in kept.items()}
    if scope == "layer":
        assert all(abs(left - wanted) < 1 for left, wanted in counts.values())
    left, wanted = (sum(one) for one in zip(*counts.values(), strict=True))
    assert abs(left - wanted) < (1 if scope == "global" else len(counts))


def test_the_smallest_go_and_ties_keep_the_lower_index():
    weights = {"a": torch.tensor([[3.0, -1.0], [2.0, 1.0]]), "b": torch.tensor([[-9.0, 8.0]])}
    full = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()}
    kept = masks.by_magnitude(weights.__getitem__, full, Fraction(1, 2), "global")
    assert kept["a"].tolist() == [[True, False], [False, False]]
    assert kept["b"].tolist() == [[True, True]]
    kept = masks.by_magnitude(weights.__getitem__, full, Fraction(1, 4), "layer")
    assert kept["a"].tolist() == [[True, True], [True, False]]


def test_a_lost_weight_that_training_would_have_made_large_stays_lost():
    before = {"a": torch.tensor([[True, False, True, True]])}
    kept = masks.by_magnitude({"a": torch.tensor([[1.0, 99.0, 2.0, 3.0]])}.__getitem__, before, Fraction(1, 2), "layer")
    assert kept["a"].tolist() == [[False, False, True, True]]


def test_no_matrix_is_emptied():
    weights = {"tiny": torch.full((2, 2), 1e-9), "large": torch.randn(10, 10)}
    full = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()}
    kept = masks.by_magnitude(weights.__getitem__, full, Fraction(9, 10), "global")
    assert int(kept["tiny"].sum()) == 1
    assert sum(int(mask.sum()) for mask in kept.values()) == 104 - 93


def test_tickets_that_would_leave_a_matrix_empty_are_refused():
    typed = tiny_config("llama", num_hidden_layers=1)
    shape = Shape.of(family_of(typed), typed)
    weights = sum(mask.numel() for mask in masks.all_kept(shape).values())
    by_round = [weights - int(config(number, "global").lost_share * weights) for number in range(60)]
    most = max(number for number, kept in enumerate(by_round) if kept >= 7)
    masks.check_none_empty(shape, TicketConfig(rounds=most))
    message = (
        rf"^{most + 1} rounds of 0\.2 leave {by_round[most + 1]} weights in 7 matrices, .*fewer rounds or a lower rate"
    )
    with pytest.raises(RecipeError, match=message):
        masks.check_none_empty(shape, TicketConfig(rounds=most + 1))
    masks.check_none_empty(shape, TicketConfig(rounds=most + 1, scope="layer"))


def test_controls_have_the_density_that_they_are_to_have():
    ticket = masks.by_magnitude(random_weights().__getitem__, whole(), Fraction(3, 4), "global")
    ticket["c"][:] = True
    shuffled, drawn = masks.shuffled(ticket, 1), masks.random_like(ticket, 1)
    assert {name: int(m.sum()) for name, m in shuffled.items()} == {name: int(m.sum()) for name, m in ticket.items()}
    assert sum(int(m.sum()) for m in drawn.values()) == sum(int(m.sum()) for m in ticket.values())
    assert int(drawn["c"].sum()) < ticket["c"].numel()
    for control in (shuffled, drawn):
        assert not torch.equal(control["a"], ticket["a"])
    assert torch.equal(masks.shuffled(ticket, 1)["a"], shuffled["a"])
    assert not torch.equal(masks.shuffled(ticket, 2)["a"], shuffled["a"])


@pytest.mark.parametrize("zeros", [0, 1, 500, 893, 999])
def test_a_masks_exact_number_of_zeros_survives_its_pattern(zeros):
    mask = torch.arange(1000).reshape(40, 25) >= zeros
    spec = masks.spec_of(mask)
    assert spec.zeros == zeros
    assert Pattern.parse(str(spec.pattern)) == spec.pattern


def test_masks_are_read_as_they_were_written_and_set_weights_to_zero(tmp_path):
    typed = tiny_config("llama")
    shape = Shape.of(family_of(typed), typed)
    full = masks.all_kept(shape)
    assert len(full) == 4 * 7
    assert not any("norm" in name or "embed" in name or "lm_head" in name for name in full)
    drawn = masks.random_like({name: torch.rand(m.shape) > 0.5 for name, m in full.items()}, 0)
    for _ in range(2):  # the second time over the first
        masks.written(drawn, tmp_path / "masks", shape)
    found = masks.read(MaskFile.open(tmp_path / "masks"))
    assert all(torch.equal(found[name], drawn[name]) for name in full)


def test_the_distance_is_that_of_the_masked_weights():
    before, after = {"a": torch.zeros(1, 4)}, {"a": torch.tensor([[3.0, 4.0, 9.0, 9.0]])}
    pair = {"a": torch.tensor([[True, True, False, False]])}
    assert masks.moved(before.__getitem__, after.__getitem__, pair) == pytest.approx((25 / 2) ** 0.5)
    assert masks.moved(before.__getitem__, after.__getitem__, {"a": torch.zeros(1, 4, dtype=torch.bool)}) is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rewind": "step:-1"}, "write init, step:K or none"),
        ({"rewind": "start"}, "write init, step:K or none"),
        ({"rate": 1.0}, "less than 1"),
        ({"start": "model", "controls": ("reinit",)}, "no control for a model's own weights"),
        ({"training": {"losses": [{"kind": "forward_kl"}]}}, "trained on the text with its mask"),
        ({"training": {"seed": 7}}, "set seed beside training, not in it"),
    ],
)
def test_what_makes_no_ticket_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        TicketConfig(**given)


def test_a_training_of_a_repetition_has_its_seed():
    config = TicketConfig(training={"steps": 4})
    again = TicketConfig.model_validate(config.model_dump())  # as from a manifest, which states all values
    assert again == config
    assert RoundConfig(
        arm="ticket", round=0, rate=0.2, scope="global", training=config.training.model_copy(update={"seed": 3})
    )
    with pytest.raises(ValueError, match="set seed beside training"):
        SupermaskConfig(training={"steps": 4, "seed": 7})
    with pytest.raises(ValueError, match="set seed beside training"):
        TransferConfig(training={"steps": 4, "seed": 7})


def test_what_is_named_twice_is_trained_once():
    assert TicketConfig(controls=("reinit", "shuffled", "reinit")).controls == ("reinit", "shuffled")
    assert TransferConfig(controls=("own", "own")).controls == ("own",)
    assert SupermaskConfig(criteria=("random", "random", "edge_popup")).criteria == ("random", "edge_popup")


def test_places_to_rewind_to():
    assert [TicketConfig(rewind=text).rewind_step for text in ("init", "none", "step:7")] == [0, None, 7]
