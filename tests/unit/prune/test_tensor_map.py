"""The map of one tensor: what a plan says of it, and that it is asked once."""

import pytest
import torch

from minitron_cli.checkpoint.reader import Checkpoint
from minitron_cli.model.families import family_of
from minitron_cli.model.shape import Shape
from minitron_cli.prune.plan import HeadResidual, PrunePlan
from minitron_cli.prune.stream import write_child
from minitron_cli.prune.tensor_map import Rescale, TensorMap
from minitron_cli.prune.transform import Repair
from tests.tiny import tiny_config, write_tiny

LAYER = "model.layers.{}."


def shape_of(model_type, **options):
    config = tiny_config(model_type, **options)
    return Shape.of(family_of(config), config)


def test_a_plain_tensor_is_selected_from_and_renamed():
    plan = PrunePlan(shape_of("llama"), {"layer": torch.tensor([1, 3]), "ffn": torch.arange(8).expand(4, 8)})
    found = TensorMap.of(plan, LAYER.format(3) + "mlp.down_proj.weight")
    assert found.name == LAYER.format(1) + "mlp.down_proj.weight"
    assert found.shape == (32, 8)
    assert found.indices[0] is None
    assert found.indices[1].tolist() == list(range(8))
    assert (found.left_DK, found.right_DK, found.merged, found.norm, found.rescale, found.fitted) == (None,) * 6


def test_a_dropped_tensor_has_no_map():
    plan = PrunePlan(shape_of("llama"), {"layer": torch.tensor([1, 3])})
    with pytest.raises(KeyError, match=r"the plan drops model\.layers\.2"):
        TensorMap.of(plan, LAYER.format(2) + "mlp.down_proj.weight")


def test_readers_multiply_from_the_right_and_writers_from_the_left():
    basis_DK = torch.linalg.qr(torch.randn(32, 24, generator=torch.Generator().manual_seed(0))).Q
    gain = {LAYER.format(0) + "input_layernorm.weight": torch.full((32,), 2.0)}
    plan = PrunePlan(shape_of("llama"), {}).repaired(Repair(basis_DK, gain_D=gain))
    reader, writer, norm, other = (
        TensorMap.of(plan, LAYER.format(0) + name)
        for name in (
            "self_attn.q_proj.weight",
            "self_attn.o_proj.weight",
            "input_layernorm.weight",
            "post_attention_layernorm.weight",
        )
    )
    torch.testing.assert_close(reader.right_DK, 2 * basis_DK)
    assert reader.left_DK is None
    assert torch.equal(writer.left_DK, basis_DK)
    assert writer.right_DK is None
    assert (norm.norm.is_folded, other.norm.is_folded) == (True, False)
    assert norm.shape == other.shape == (24,)


def test_merged_heads_are_rows_of_the_query_alone():
    heads = torch.tensor([[0, 4]] * 4)
    plan = PrunePlan(shape_of("llama"), {"head": heads}, HeadResidual(heads + 1, -1))
    query, key = (TensorMap.of(plan, LAYER.format(2) + f"self_attn.{name}.weight") for name in ("q_proj", "k_proj"))
    assert query.merged.other_K.tolist() == [*range(8, 16), *range(40, 48)]
    assert query.merged.factor == -1
    assert key.merged is None


def test_a_size_that_the_model_computes_with_is_corrected():
    plan = PrunePlan(shape_of("gemma2", tie_word_embeddings=False), {"hidden": torch.arange(8)})
    assert TensorMap.of(plan, "model.embed_tokens.weight").rescale == Rescale((8 / 32) ** -0.5, 0.0)
    assert TensorMap.of(plan, "model.norm.weight").rescale is None, "the head has numbers of its own"
    tied = PrunePlan(shape_of("gemma2", tie_word_embeddings=True), plan.kept)
    assert TensorMap.of(tied, "model.norm.weight").rescale == Rescale((8 / 32) ** 0.5, 1)


def test_a_map_is_made_once_for_each_tensor_however_many_blocks_it_has(tmp_path, monkeypatch):
    monkeypatch.setattr("minitron_cli.prune.stream.BLOCK_BYTES", 256)
    checkpoint, made, make = Checkpoint.open(write_tiny(tmp_path / "parent")), [], TensorMap.of
    plan = PrunePlan(shape_of("llama"), {"hidden": torch.arange(16), "layer": torch.tensor([0, 2])})
    monkeypatch.setattr(TensorMap, "of", lambda plan, source: made.append(source) or make(plan, source))
    (tmp_path / "child").mkdir()
    write_child(checkpoint, plan, tmp_path / "child")
    assert sorted(made) == sorted(plan.sources(checkpoint.tensors).values())
