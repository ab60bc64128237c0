import json

import pytest
import torch
from safetensors.torch import load_file

from minitron_cli.checkpoint.writer import replace_safetensors
from minitron_cli.errors import CheckpointError
from minitron_cli.sparse import mask_file
from minitron_cli.sparse.mask_file import MASKS, MaskFile, MaskSpec, new_mask_file, pack, unpack
from minitron_cli.sparse.pattern import Pattern

SPECS = {
    "b.weight": MaskSpec((3, 8), Pattern.parse("2:4"), 1),
    "a.weight": MaskSpec((5, 7), Pattern.parse("50%"), 1),
    "experts": MaskSpec((3, 6, 5), Pattern.parse("1:3"), 1),
    "whole": MaskSpec((11, 3), Pattern.parse("40%"), None),
    "one": MaskSpec((1, 1), Pattern.parse("0%"), 0),
}


def masks(specs=SPECS):
    draw = torch.Generator().manual_seed(0)
    return {name: spec.pattern.keep(torch.rand(spec.shape, generator=draw), spec.axis) for name, spec in specs.items()}


def written(directory, specs=SPECS):
    with new_mask_file(directory / MASKS, specs) as file:
        for name, mask in masks(specs).items():
            file.put(name, mask)
    return directory / MASKS


def test_masks_are_read_as_they_were_written(tmp_path):
    written(tmp_path)
    found = MaskFile.beside(tmp_path)
    assert found is not None
    assert dict(found.specs) == SPECS
    for name, mask in masks().items():
        assert name in found
        assert torch.equal(found.read(name), mask)
    zeros = sum(int((~mask).sum()) for mask in masks().values())
    assert found.sparsity() == zeros / sum(mask.numel() for mask in masks().values())
    assert found.patterns == ("0%", "1:3", "2:4", "40%", "50%")
    assert MaskFile.beside(tmp_path / "elsewhere") is None


def test_the_bits_are_little_endian_and_row_major(tmp_path):
    mask = torch.tensor([[1, 0, 0, 1, 1], [0, 1, 0, 1, 1]]).bool()
    assert pack(mask).tolist() == [0b01011001, 0b11]
    stored = load_file(written(tmp_path))["a.weight"]
    for i, bit in enumerate(masks()["a.weight"].reshape(-1).tolist()):
        assert (int(stored[i // 8]) >> (i % 8)) & 1 == bit


@pytest.mark.parametrize("shape", [(), (1,), (8,), (9, 1), (3, 5, 7), (0, 4)])
def test_packing_is_undone_for_any_shape(shape):
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(1)) < 0.5
    assert torch.equal(unpack(pack(mask), shape), mask)


def test_the_file_is_the_same_whatever_the_order(tmp_path):
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
    written(tmp_path / "x")
    written(tmp_path / "y", dict(reversed(SPECS.items())))
    # The second draws other scores, so only the header is compared.
    headers = [(tmp_path / name / MASKS).read_bytes()[: 8 + 64] for name in ("x", "y")]
    assert headers[0] == headers[1]


def test_a_pruned_weight_that_is_not_zero_is_found(tmp_path):
    file = MaskFile.open(written(tmp_path))
    weights = {name: mask.to(torch.bfloat16) for name, mask in masks().items()}
    file.check(weights.__getitem__)
    place = tuple((~masks()["whole"]).nonzero()[3])
    weights["whole"][place] = 1e-30
    with pytest.raises(CheckpointError, match="1 pruned weights of 'whole' are not zero: sparsify"):
        file.check(weights.__getitem__)
    weights["whole"] = weights["whole"].T
    with pytest.raises(CheckpointError, match=r"'whole' is \(3, 11\), and its mask \(11, 3\)"):
        file.check(weights.__getitem__)


def test_a_flipped_bit_is_found(tmp_path):
    path = written(tmp_path)
    tensors = load_file(path)
    content = bytearray(path.read_bytes())
    start = content.index(bytes(tensors["a.weight"].tolist()), 8)
    for offset, bit in ((0, 1), (4, 1 << 7)):  # a mask's bit, and one after its end
        damaged = bytearray(content)
        damaged[start + offset] ^= bit
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"the mask of 'a.weight' has not the pattern 50%"):
            MaskFile.open(path).read("a.weight")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ([[5, 8], "50%", 1], ""),
        ([[5, 9], "50%", 1], "wrongly"),
        ([[5, -8], "50%", 1], "wrongly"),
        ([[5, 8], "50%", 2], "wrongly"),
        ([[5, 8], "7", 1], "wrongly"),
        ([[5, 8], "2:4", None], "wrongly"),
        ([[5, 8], "2:3", 1], "wrongly"),
        ([[5, 8]], "wrongly"),
        (None, "wrongly"),
        ("missing", "does not describe"),
    ],
)
def test_a_header_that_does_not_describe_the_masks_is_refused(tmp_path, entry, message):
    path = tmp_path / MASKS
    described = {} if entry == "missing" else {"w": entry}
    sized = {"w": mask_file.TensorSpec((5,), torch.uint8)}
    with mask_file.blank_file(path, sized, {mask_file.FORMAT: json.dumps(described)}) as blank:
        blank.fill("w", [torch.zeros(5, dtype=torch.uint8)])
    if not message:
        assert MaskFile.open(path).specs["w"].shape == (5, 8)
    else:
        with pytest.raises(CheckpointError, match=f"{message}.*sparsify the model again"):
            MaskFile.open(path)


def test_other_files_are_no_masks(tmp_path):
    path = tmp_path / MASKS
    replace_safetensors(path, {"w": torch.zeros(5, dtype=torch.uint8)})
    with pytest.raises(CheckpointError, match="does not describe its masks"):
        MaskFile.open(path)
    path.write_bytes(b"no masks")
    with pytest.raises(CheckpointError, match="not a complete safetensors file"):
        MaskFile.open(path)


def test_a_mask_without_its_pattern_is_not_written(tmp_path):
    spec = {"w": MaskSpec((2, 4), Pattern.parse("2:4"), 1)}
    with pytest.raises(AssertionError, match="has not the pattern 2:4"), new_mask_file(tmp_path / MASKS, spec) as file:
        file.put("w", torch.ones(2, 4, dtype=torch.bool))
