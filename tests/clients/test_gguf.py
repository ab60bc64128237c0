"""A child written as GGUF, the format of llama.cpp, and read back by transformers: the same model.

The writer below is the test's own, from the format's description: what a converter must do, in forty lines.
"""

import json
from pathlib import Path

import gguf
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from minitron_cli import io
from minitron_cli.checkpoint.reader import Checkpoint
from minitron_cli.model.families import family_of
from minitron_cli.model.shape import Shape
from minitron_cli.prune.child_config import child_config
from minitron_cli.prune.plan import PrunePlan
from minitron_cli.prune.stream import write_child
from tests.conformance.masked import random_survivors
from tests.quick import each_family
from tests.tiny import tiny_model

PRUNINGS = {"width": {"hidden": 24, "ffn": 20}, "heads": {"head": 4, "hidden": 24}, "depth": {"layer": 2}}
# The descriptions of these two know no biases, and transformers takes Qwen 3's heads to be 128 wide, as all are.
FAMILIES = {
    "llama": {"attention_bias": False, "mlp_bias": False},
    "qwen3": {"attention_bias": False, "head_dim": 128},
}


@pytest.mark.parametrize("pruning", PRUNINGS)
@each_family(FAMILIES)
def test_a_child_survives_the_way_to_gguf_and_back(model_type, pruning, tmp_path):
    child = write_cut(tmp_path, model_type, PRUNINGS[pruning])
    write_gguf(child, tmp_path / "child.gguf")
    model = AutoModelForCausalLM.from_pretrained(child).eval()
    back = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="child.gguf", dtype=torch.float32).eval()
    assert back.config.head_dim == model.config.head_dim != back.config.hidden_size // back.config.num_attention_heads
    tokens = torch.randint(1, 64, (2, 17), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(back(tokens).logits, model(tokens).logits, rtol=0, atol=1e-5)


def write_cut(root: Path, model_type: str, sizes: dict[str, int]) -> Path:
    model = tiny_model(model_type, **FAMILIES[model_type])
    model.save_pretrained(root / "parent")
    source, pruning = Checkpoint.open(root / "parent"), random_survivors(model.config, 2, **sizes)
    kept = {axis: torch.tensor(getattr(pruning, axis)) for axis in sizes}
    plan = PrunePlan(Shape.of(family_of(model.config), model.config), kept)
    (root / "child").mkdir()
    write_child(source, plan, root / "child")
    io.write_new_json(root / "child" / "config.json", child_config(source.config, plan))
    return root / "child"


def write_gguf(child: Path, path: Path) -> None:
    config = json.loads((child / "config.json").read_text())
    kind = config["model_type"]
    writer = gguf.GGUFWriter(path, kind)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[kind.upper()], config["num_hidden_layers"])
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    for name, tensor in load_file(child / "model.safetensors").items():
        count = heads.get(name.split(".")[-2]) if kind == "llama" else None
        array = (permuted(tensor, count) if count else tensor).numpy()
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def permuted(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Llama's rotation pairs neighbours in GGUF, and the two halves of a head in transformers."""
    rows, columns = weight.shape
    return weight.view(heads, 2, rows // heads // 2, columns).transpose(1, 2).reshape(rows, columns)
