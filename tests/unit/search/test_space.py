import itertools

import pytest
from transformers import Gemma2Config, GPTNeoXConfig, LlamaConfig, MistralConfig

from minitron_cli.errors import InfeasibleError, InputError
from minitron_cli.model.families import family_of
from minitron_cli.model.shape import Shape
from minitron_cli.prune.config import Budget
from minitron_cli.search import space
from minitron_cli.search.feasible import feasible

DIMS = {
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}


def shape_of(config) -> Shape:
    return Shape.of(family_of(config), config)


@pytest.fixture(scope="module")
def llama_8b() -> Shape:
    return shape_of(LlamaConfig(**DIMS))


def parameters_by_hand(hidden: int, ffn: int, layers: int = 32, heads: int = 32) -> int:
    attention = 2 * hidden * heads * 128 + 2 * hidden * 8 * 128
    return 2 * 128256 * hidden + layers * (attention + 3 * hidden * ffn + 2 * hidden) + hidden


def test_the_feasible_set_is_what_counting_by_hand_admits(llama_8b):
    sizes = {"hidden": (2560, 3072, 3584), "ffn": (8192, 9216, 10240, 12288)}
    budget = Budget(target="4.5B")
    found = feasible(llama_8b, sizes, budget)
    by_hand = {
        (hidden, ffn)
        for hidden, ffn in itertools.product(*sizes.values())
        if 0.95 * 4.5e9 <= parameters_by_hand(hidden, ffn) <= 1.05 * 4.5e9
    }
    assert {(c.shape.sizes["hidden"], c.shape.sizes["ffn"]) for c in found} == by_hand
    assert by_hand
    assert all(c.parameters == parameters_by_hand(c.shape.sizes["hidden"], c.shape.sizes["ffn"]) for c in found)


def test_the_published_4b_is_not_within_five_percent_of_four_billion(llama_8b):
    published = {"hidden": (3072,), "ffn": (9216,)}
    with pytest.raises(InfeasibleError, match=r"hidden=3072.*4,512,746,496 \(\+12\.8%\)"):
        feasible(llama_8b, published, Budget(target="4B"))
    assert feasible(llama_8b, published, Budget(target="4B", tolerance=0.13))


def test_the_window_has_two_sides(llama_8b):
    sizes = {"ffn": (1024, 9216, 14336)}
    found = feasible(llama_8b, sizes, Budget(target="6B", tolerance=0.1))
    assert [c.shape.sizes["ffn"] for c in found] == [9216]


def test_non_embedding_budgets_do_not_count_the_embeddings(llama_8b):
    (found,) = feasible(
        llama_8b,
        {"hidden": (3072,), "ffn": (9216,)},
        Budget(target=3_724_741_632, count="non_embedding", tolerance=1e-9),
    )
    assert found.parameters == 3_724_741_632


def test_even_cuts_come_first(llama_8b):
    found = feasible(llama_8b, {"hidden": (), "ffn": ()}, Budget(target="4B"))
    ratios = [(c.shape.sizes["hidden"] / 4096, c.shape.sizes["ffn"] / 14336) for c in found]
    spreads = [max(pair) / min(pair) for pair in ratios]
    assert spreads[0] < 1.1
    assert spreads == sorted(spreads)


def test_default_sizes_are_multiples_that_servers_like(llama_8b):
    assert all(size % 256 == 0 for axis in ("hidden", "ffn") for size in space.choices(llama_8b, axis))
    assert all(size % 8 == 0 for size in space.choices(llama_8b, "head"))
    assert space.choices(llama_8b, "layer") == tuple(range(1, 33))


def test_a_hidden_size_that_heads_do_not_divide_is_left_out_for_llama_only(llama_8b):
    sizes = {"hidden": (3088,)}
    assert space.grid(llama_8b, sizes) == []
    assert len(space.grid(shape_of(MistralConfig(**DIMS)), sizes)) == 1


def test_a_target_above_the_parent_is_refused(llama_8b):
    with pytest.raises(InfeasibleError, match="above the parent's 8,030,261,248 total parameters: choose a smaller"):
        feasible(llama_8b, {"ffn": ()}, Budget(target="9B"))


def test_a_size_above_the_parents_is_refused(llama_8b):
    with pytest.raises(InputError, match="hidden=8192 is not within 1 to the parent's 4096"):
        feasible(llama_8b, {"hidden": (8192,)}, Budget(target="4B"))


def test_a_space_that_holds_only_the_parent_says_so(llama_8b):
    with pytest.raises(InfeasibleError, match="no shape smaller than the parent"):
        feasible(llama_8b, {"hidden": (4096,)}, Budget(target="4B"))


def test_a_named_shape_is_the_parents_but_for_what_is_named(llama_8b):
    shape = space.named(llama_8b, {"hidden": 3072, "ffn": 9216}, range(30, 32))
    assert shape.sizes == dict(llama_8b.sizes) | {"hidden": 3072, "ffn": 9216, "layer": 30}


@pytest.mark.parametrize(
    ("sizes", "drop_layers", "message"),
    [
        ({"ffm": 8}, (), "no axis 'ffm': choose among"),
        ({"ffn": 0}, (), "ffn=0 is not within 1 to the parent's 14336"),
        ({"hidden": 4097}, (), "hidden=4097 is not within 1 to the parent's 4096"),
        ({"hidden": 3088}, (), "hidden=3088 with head=32.*where hidden is a multiple of head; change one"),
        ({"head": 12}, (), "head=12 with kv_head=8: keep a multiple of kv_head, at most 4 a group"),
        ({}, (32,), "drop_layers names layer 32: the model.s layers are 0 to 31"),
        ({}, tuple(range(32)), "layer=0 is not within"),
        ({}, tuple(range(32)), "drop_layers names all of them; leave one out"),
    ],
)
def test_a_shape_that_cannot_be_is_refused(llama_8b, sizes, drop_layers, message):
    with pytest.raises(InputError, match=message):
        space.named(llama_8b, sizes, drop_layers)


def test_only_shapes_that_the_family_can_take_are_candidates():
    neox = shape_of(GPTNeoXConfig(**DIMS))
    found = space.grid(neox, {"hidden": (2048, 3072), "head": (16, 24)})
    assert [(s.sizes["hidden"], s.sizes["head"]) for s in found] == [(2048, 16), (3072, 24)]
    gemma = shape_of(Gemma2Config(**DIMS))
    assert [s.sizes["layer"] for s in space.grid(gemma, {"layer": ()})] == list(range(2, 33, 2))


def test_a_space_of_which_nothing_can_be_taken_says_why():
    neox = shape_of(GPTNeoXConfig(**DIMS))
    with pytest.raises(InfeasibleError, match=r"parent can be pruned to: hidden=2048 with head=32.*prune both"):
        feasible(neox, {"hidden": (2048,)}, Budget(target="1B"))
