import itertools
import random

import pytest
import torch

from minitron_cli.errors import InputError
from minitron_cli.sparse import groups
from minitron_cli.sparse import pattern as module
from minitron_cli.sparse.mask_file import pack
from minitron_cli.sparse.pattern import Pattern


def kept_of(line, count):
    """Indices of the highest scores of a list; of equal ones the lower index."""
    return set(sorted(range(len(line)), key=lambda i: (-line[i], i))[:count])


def brute_force(scores, text):
    """Mask of a list of lines."""
    found = []
    for line in scores.tolist():
        if ":" in text:
            kept, group = map(int, text.split(":"))
            starts, size = range(0, len(line), group), group
        else:
            kept, starts, size = len(line) - len(line) * int(text[:-1]) // 100, [0], len(line)
        indices = {start + i for start in starts for i in kept_of(line[start : start + size], kept)}
        found.append([i in indices for i in range(len(line))])
    return torch.tensor(found)


TEXTS = ("2:4", "1:4", "3:4", "4:8", "1:8", "7:8", "1:3", "5:24", "1:2", "7:12", "4:4", "50%", "0%", "33%", "99%")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int16, torch.float64, torch.int32, torch.int64])
@pytest.mark.parametrize("text", TEXTS)
def test_the_highest_of_each_group_are_kept_and_of_equal_ones_the_first(text, dtype):
    draw = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 5, (7, 24), generator=draw).to(dtype)
    pattern = Pattern.parse(text)
    mask = pattern.keep(scores)
    assert torch.equal(mask, brute_force(scores, text))
    assert pattern.holds(mask)
    assert torch.equal(pattern.keep(scores.T, 0), mask.T)
    assert torch.equal(pattern.keep(scores.reshape(7, 24, 1).expand(7, 24, 3), 1)[..., 2], mask)


@pytest.mark.parametrize("text", ["1:2", "2:4", "5:8"])
@pytest.mark.parametrize("count", [24, 64, 72, 200])
def test_blocks_of_groups_choose_what_sorting_chooses(text, count, monkeypatch):
    scores = torch.randint(-3, 3, (3, count), generator=torch.Generator().manual_seed(4)).short()
    pattern, in_blocks = Pattern.parse(text), []
    monkeypatch.setattr(groups, "BLOCK", 64)
    monkeypatch.setattr(groups, "_of_block", lambda *a, f=groups._of_block: in_blocks.append(len(a[0])) or f(*a))
    assert torch.equal(pattern.keep(scores), brute_force(scores, text))
    assert sum(in_blocks) == scores.numel(), "this is the way that was taken"


@pytest.mark.parametrize("text", ["2:4", "5:8", "12:16"])
def test_comparing_and_sorting_choose_the_same(text, monkeypatch):
    scores = torch.randint(0, 4, (50, 16), generator=torch.Generator().manual_seed(1)).float()
    compared = Pattern.parse(text).keep(scores)
    monkeypatch.setattr(groups, "SIZES", ())
    assert torch.equal(Pattern.parse(text).keep(scores), compared)
    monkeypatch.setattr(module, "PAIRWISE_UP_TO", 0)
    assert torch.equal(Pattern.parse(text).keep(scores), compared)


def test_a_share_of_a_whole_tensor_leaves_its_lines_free():
    scores = torch.tensor([[1.0, 1.0, 1.0], [2.0, 3.0, 4.0]])
    mask = Pattern.parse("50%").keep(scores, None)
    assert mask.tolist() == [[False] * 3, [True] * 3]
    assert Pattern.parse("50%").holds(mask, None)
    assert not Pattern.parse("50%").holds(mask, -1)


def test_a_mask_with_one_weight_more_or_less_does_not_hold():
    for text, axis in itertools.product(["2:4", "3:8", "1:2", "50%", "25%"], [0, 1]):
        pattern = Pattern.parse(text)
        mask = pattern.keep(torch.rand(8, 8, generator=torch.Generator().manual_seed(2)), axis)
        for i in random.Random(3).sample(range(64), 10):
            other = mask.clone().contiguous()
            other.view(-1)[i] ^= True
            assert not pattern.holds(other, axis)
            if pattern.group and axis == 1:
                assert pattern.holds_in_bits(pack(mask))
                assert not pattern.holds_in_bits(pack(other))
    assert not Pattern.parse("2:4").holds(torch.ones(1, 6, dtype=torch.bool))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("2:4", "2:4"),
        ("16:32", "16:32"),
        ("4:4", "4:4"),
        ("50%", "50%"),
        ("0.5", "50%"),
        (".5", "50%"),
        ("0.4731", "47.31%"),
        ("33.3 %", "33.3%"),
        ("0", "0%"),
        ("10%", "10%"),
        ("12.345678901234567%"[:17] + "%", "12.34567890123456%"),
    ],
)
def test_a_pattern_reads_what_it_writes(text, shown):
    pattern = Pattern.parse(text)
    assert str(pattern) == shown
    assert Pattern.parse(shown) == pattern


@pytest.mark.parametrize("text", ["", "0:4", "5:4", "2-4", "100%", "1", "1.5", "-5%", "2:4:8", "nan", "half", "150%"])
def test_what_is_no_pattern_is_refused(text):
    with pytest.raises(InputError, match=r"keep from 1 to|write N:M such as 2:4"):
        Pattern.parse(text)


def test_groups_that_do_not_divide_the_inputs_are_refused():
    with pytest.raises(
        InputError, match="of groups of 4: use a pattern whose group size divides 10, or a share such as 5"
    ):
        Pattern.parse("2:4").keep(torch.rand(4, 10))
