import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minitron_cli.model.families import FAMILIES
from minitron_cli.model.layout import Layout, parse

QUICK = settings(deadline=None, derandomize=True, max_examples=60)
AXES = ("hidden", "head", "kv_head", "head_dim", "ffn")

factors = st.one_of(st.sampled_from(AXES), st.integers(1, 4))
sections = st.lists(factors, min_size=1, max_size=3).map(tuple)
dims = st.lists(sections, min_size=1, max_size=3).map(tuple)
layouts = st.lists(dims, min_size=0, max_size=3).map(lambda dims: Layout(tuple(dims)))
all_sizes = st.fixed_dictionaries({axis: st.integers(1, 5) for axis in AXES})


@st.composite
def survivors(draw, sizes):
    """Per axis None, or some of its positions in any order."""
    kept = {}
    for axis, size in sizes.items():
        if draw(st.booleans()):
            kept[axis] = draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=size, unique=True))
    return kept


def reference(array: np.ndarray, layout: Layout, kept, sizes):
    """The child by reshape and take, one dim, one section, one factor after another."""
    for d, dim in enumerate(layout.dims):
        array, parts, start = np.moveaxis(array, d, 0), [], 0
        for section in dim:
            lengths = [f if isinstance(f, int) else sizes[f] for f in section]
            part = array[start : start + math.prod(lengths)].reshape(*lengths, *array.shape[1:])
            start += math.prod(lengths)
            for position, factor in enumerate(section):
                if factor in kept:
                    part = np.take(part, kept[factor], axis=position)
            parts.append(part.reshape(-1, *array.shape[1:]))
        array = np.moveaxis(np.concatenate(parts), 0, d)
    return array


@QUICK
@given(layout=layouts)
def test_what_is_printed_parses_to_the_same_layout(layout):
    assert parse(str(layout)) == layout


@QUICK
@given(layout=layouts, sizes=all_sizes, data=st.data())
def test_selection_equals_reshape_and_take(layout, sizes, data):
    kept = data.draw(survivors(sizes))
    shape = layout.shape(sizes)
    array = np.arange(math.prod(shape)).reshape(shape)
    found = layout.select(torch.from_numpy(array), lambda a: torch.tensor(kept[a]) if a in kept else None, sizes)
    np.testing.assert_array_equal(found.numpy(), reference(array, layout, kept, sizes))
    assert found.shape == layout.shape(sizes | {axis: len(indices) for axis, indices in kept.items()})


@QUICK
@given(layout=layouts, sizes=all_sizes)
def test_nothing_is_copied_where_everything_survives(layout, sizes):
    tensor = torch.zeros(layout.shape(sizes))
    assert layout.select(tensor, lambda axis: None, sizes) is tensor
    assert layout.indices(lambda axis: None, sizes) == (None,) * len(layout.dims)


@QUICK
@given(layout=layouts, sizes=all_sizes, data=st.data())
def test_ascending_survivors_give_ascending_positions(layout, sizes, data):
    """Streaming in blocks of rows relies on it."""
    kept = {axis: sorted(indices) for axis, indices in data.draw(survivors(sizes)).items()}
    for index in layout.indices(lambda a: torch.tensor(kept[a]) if a in kept else None, sizes):
        assert index is None or bool((index.diff() > 0).all())


def test_a_product_is_row_major():
    kept = {"head": torch.tensor([0, 2])}
    (index,) = parse("(head head_dim)").indices(kept.get, {"head": 3, "head_dim": 2})
    assert index.tolist() == [0, 1, 4, 5]
    (index,) = parse("(head_dim head)").indices(kept.get, {"head": 3, "head_dim": 2})
    assert index.tolist() == [0, 2, 3, 5]


def test_a_sum_stacks_its_sections():
    (index,) = parse("(ffn + ffn)").indices({"ffn": torch.tensor([1])}.get, {"ffn": 3})
    assert index.tolist() == [1, 4]
    (index,) = parse("(2 ffn)").indices({"ffn": torch.tensor([1])}.get, {"ffn": 3})
    assert index.tolist() == [1, 4]


def test_axes_of_a_dim():
    layout = parse("(head head_dim + 2 kv_head head_dim) hidden")
    assert layout.axes(0) == {"head", "kv_head", "head_dim"}
    assert layout.axes(1) == {"hidden"}


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_every_table_entry_is_readable(family):
    for text in family.tensors.values():
        assert str(parse(text)) == text


UNREADABLE = [
    "()",
    "(ffn",
    "ffn)",
    "ffn + ffn",
    "((head head_dim)) hidden",
    "(ffn +) hidden",
    "(+ ffn)",
    "(ffn ++ ffn)",
]


@pytest.mark.parametrize("text", UNREADABLE)
def test_what_cannot_be_read_is_named(text):
    with pytest.raises(ValueError, match="write dims as axis names") as caught:
        parse(text)
    assert repr(text) in str(caught.value)
