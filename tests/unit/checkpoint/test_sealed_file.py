"""Files of unfinished work: every byte of them counts."""

import pytest
import torch

from minitron_cli.checkpoint import sealed_file
from minitron_cli.checkpoint.writer import write_safetensors
from minitron_cli.errors import InputError

TENSORS = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.tensor([1, 2], dtype=torch.int32), "none": torch.empty(0)}


def test_what_was_written_comes_back(tmp_path):
    sealed_file.replace_sealed(tmp_path / "one.safetensors", TENSORS)
    found = sealed_file.read_sealed(tmp_path / "one.safetensors")
    assert {name: tensor.tolist() for name, tensor in found.items()} == {
        name: tensor.tolist() for name, tensor in TENSORS.items()
    }
    assert sealed_file.first_damaged(tmp_path) is None


def test_a_flipped_bit_is_found_wherever_it_matters(tmp_path):
    """Every bit of the tensors, their names, shapes and dtypes; other bits change nothing that is read."""
    path = tmp_path / "deep" / "one.safetensors"
    path.parent.mkdir()
    sealed_file.replace_sealed(path, TENSORS)
    whole, harmless = path.read_bytes(), 0
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        if sealed_file.first_damaged(tmp_path) == path:
            with pytest.raises(InputError):
                sealed_file.read_sealed(path)
        else:
            harmless += 1
            found = sealed_file.read_sealed(path)
            assert found.keys() == TENSORS.keys()
            assert all(torch.equal(found[name], tensor) for name, tensor in TENSORS.items()), place
    assert harmless < len('"format":"pt",') + 8  # of padding
    path.write_bytes(whole[:-1])
    assert sealed_file.first_damaged(tmp_path) == path


def test_a_file_without_a_checksum_is_not_trusted(tmp_path):
    write_safetensors(tmp_path / "old.safetensors", TENSORS)
    with pytest.raises(InputError, match="is damaged: it is not what was written"):
        sealed_file.read_sealed(tmp_path / "old.safetensors")
