"""Names of tensors on disk: what stock transformers loads without a missing key is read, and is the same model."""

import json
import logging

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from minitron_cli import progress
from minitron_cli.checkpoint import hf
from minitron_cli.checkpoint.reader import Checkpoint
from minitron_cli.errors import CheckpointError
from minitron_cli.inputs.source_model import open_source_model
from minitron_cli.model.families import FAMILIES
from minitron_cli.model.runtime_tensors import runtime_tensor
from tests.conformance.test_families import assert_same
from tests.quick import each_family, without
from tests.tiny import tiny_config, tiny_model, write_tiny

IDS = torch.arange(12).reshape(2, 6)
WEIGHTS = "model.safetensors"


@pytest.fixture
def said(monkeypatch):
    remarks = []
    monkeypatch.setattr(progress, "warn_once", lambda text: None if text in remarks else remarks.append(text))
    return remarks


def renamed(path, rename):
    tensors = {rename(name): tensor for name, tensor in load_file(path / WEIGHTS).items()}
    save_file(tensors, path / WEIGHTS, metadata={"format": "pt"})


def added(path, **tensors):
    save_file(load_file(path / WEIGHTS) | tensors, path / WEIGHTS, metadata={"format": "pt"})


def stock_model(path):
    """Model of stock transformers, which must miss nothing."""
    logging.getLogger("transformers").setLevel(logging.CRITICAL)
    model, info = AutoModelForCausalLM.from_pretrained(path, output_loading_info=True, dtype=torch.float32)
    assert not info["missing_keys"]
    assert not info["mismatched_keys"]
    return model.eval()


def our_model(path):
    """Model that the table's view of the checkpoint is, each parameter read through it."""
    parent = open_source_model(path)
    model = hf.empty_model(path, dtype=torch.float32)
    tied = parent.family.tied if parent.shape.is_tied else {}
    read = lambda name: parent.checkpoint.read(tied.get(name, name))  # noqa: E731
    state = {
        name: runtime_tensor(parent.family, name, like, read, torch.device("cpu"))
        for name, like in model.state_dict().items()
    }
    model.load_state_dict(state, assign=True, strict=False)
    return model


@torch.no_grad()
def stock_logits(path):
    return stock_model(path)(IDS).logits


@torch.no_grad()
def our_logits(path):
    return our_model(path)(IDS).logits


@torch.no_grad()
def check_same(path):
    """Weights bit for bit; logits to rounding, since products depend on where in memory a file puts a matrix."""
    stock = stock_model(path)
    wanted = stock.state_dict()
    for model in (our_model(path), hf.load_model(path)):
        found = model.state_dict()
        assert found.keys() == wanted.keys()
        assert [name for name in wanted if not torch.equal(found[name], wanted[name])] == []
        assert_same(model(IDS).logits, stock(IDS).logits)


@each_family(without("llama4_text"))  # whose stock class takes another name for its own prefix
def test_names_without_the_base_models_prefix(model_type, tmp_path):
    tied = len(model_type) % 2 == 0  # some of each
    path = write_tiny(tmp_path, model_type, num_hidden_layers=2, tie_word_embeddings=tied)
    prefix = "gpt_neox." if model_type == "gpt_neox" else "model."
    renamed(path, lambda name: name.removeprefix(prefix))
    check_same(path)


@each_family()
def test_names_of_the_running_model_and_leftover_rotary_buffers(model_type, tmp_path, said):
    """Experts are joined in memory, and some writers store them so; older ones stored each layer's frequencies."""
    model = tiny_model(model_type, num_hidden_layers=2, tie_word_embeddings=False)
    model.save_pretrained(tmp_path)
    attention = "gpt_neox.layers.{}.attention" if model_type == "gpt_neox" else "model.layers.{}.self_attn"
    buffers = {f"{attention.format(i)}.rotary_emb.inv_freq": torch.ones(4) for i in range(2)}
    save_file(dict(model.state_dict()) | buffers, tmp_path / WEIGHTS, metadata={"format": "pt"})
    check_same(tmp_path)
    assert not said


@pytest.mark.parametrize(
    "name",
    ["v_head.summary.weight", "score.weight", "mtp.layers.0.fc.weight", "model.layers.0.self_attn.q_norm.weight"],
)
def test_a_tensor_that_transformers_ignores_is_left_out_with_one_remark(name, tmp_path, said):
    path = write_tiny(tmp_path, num_hidden_layers=2)
    added(path, **{name: torch.zeros(2, 32)})
    check_same(path)
    assert [text for text in said if name in text and "is left out" in text] == said
    assert len(said) == 1
    assert name not in open_source_model(path).checkpoint.tensors


def test_what_a_shard_holds_beside_the_index_is_read(tmp_path):
    tiny_model("llama", num_hidden_layers=2).save_pretrained(tmp_path, max_shard_size="60KB")
    index = tmp_path / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    del content["weight_map"]["model.norm.weight"]
    index.write_text(json.dumps(content))
    check_same(tmp_path)


def test_metadata_may_be_null(tmp_path):
    path = write_tiny(tmp_path, num_hidden_layers=2)
    save_file(load_file(path / WEIGHTS), path / WEIGHTS)
    data = (path / WEIGHTS).read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8 : 8 + length]) | {"__metadata__": None}).encode()
    (path / WEIGHTS).write_bytes(len(header).to_bytes(8, "little") + header + data[8 + length :])
    assert torch.equal(our_logits(path), stock_logits(path))


def test_a_quantization_that_no_weight_has_is_left_out_with_a_remark(tmp_path, said):
    path = write_tiny(tmp_path, num_hidden_layers=2)
    wanted, config = stock_logits(path), json.loads((path / "config.json").read_text())
    leftover = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (path / "config.json").write_text(json.dumps(config | {"quantization_config": leftover}))
    assert torch.equal(our_logits(path), wanted)
    assert torch.equal(hf.load_model(path)(IDS).logits, wanted)
    assert "quantization_config" not in open_source_model(path).checkpoint.config
    assert len(said) == 1
    assert "quantization_config" in said[0]


CAUSES = {
    "_orig_mod.": ("_orig_mod.{}", "prefix '_orig_mod' of torch.compile"),
    "module.": ("module.{}", "prefix 'module' of DistributedDataParallel"),
    "both": ("_orig_mod.module.{}", "prefix '_orig_mod'"),
    "part": ("language_model.{}", "prefix 'language_model.', so the model is a part of another"),
    "adapter": ("base_model.model.{}.lora_A.weight", "of an adapter: .* merge it into its base model first"),
    "awq": ("{}.qweight", "the checkpoint is quantized; give the original weights"),
}


@pytest.mark.parametrize("case", CAUSES)
def test_names_that_transformers_would_not_find_are_refused_with_the_cause(case, tmp_path):
    template, says = CAUSES[case]
    path = write_tiny(tmp_path, num_hidden_layers=2)
    renamed(path, template.format)
    with pytest.raises(CheckpointError, match=says) as caught:
        open_source_model(path)
    assert "families/" not in str(caught.value)
    assert len(str(caught.value)) <= 300


def test_one_tensor_under_two_names_is_refused(tmp_path):
    path = write_tiny(tmp_path, num_hidden_layers=2)
    added(path, **{"norm.weight": torch.ones(32)})
    with pytest.raises(CheckpointError, match=r"'model\.norm\.weight' is stored twice"):
        open_source_model(path)


def test_scales_of_a_quantization_are_not_left_out(tmp_path):
    path = write_tiny(tmp_path, num_hidden_layers=2)
    added(path, **{"model.layers.0.mlp.up_proj.weight_scale": torch.ones(48, 1)})
    with pytest.raises(CheckpointError, match="is quantized; give the original weights"):
        open_source_model(path)


def test_a_parameter_of_the_model_that_the_table_lacks_is_never_left_out(tmp_path, monkeypatch):
    path = write_tiny(tmp_path, num_hidden_layers=2)
    family = FAMILIES["llama"]
    monkeypatch.setattr("minitron_cli.inputs.source_model.family_of", lambda *_: without_norms(family))
    with pytest.raises(CheckpointError, match="no layout for it in family 'llama': report it"):
        open_source_model(path)


def without_norms(family):
    from dataclasses import replace

    return replace(family, tensors={t: text for t, text in family.tensors.items() if "layernorm" not in t})


def test_joined_experts_of_another_shape_are_refused(tmp_path):
    model = tiny_model("qwen3_moe", num_hidden_layers=1)
    model.save_pretrained(tmp_path)
    name = "model.layers.0.mlp.experts.down_proj"
    state = dict(model.state_dict())
    state[name] = state[name].transpose(1, 2).contiguous()
    save_file(state, tmp_path / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=f"'{name}' has shape .* fix config.json"):
        open_source_model(tmp_path)


def test_the_stored_dtype_decides_whatever_the_config_says(tmp_path, said):
    path = write_tiny(tmp_path, num_hidden_layers=2)
    config = json.loads((path / "config.json").read_text()) | {"dtype": "float16"}
    (path / "config.json").write_text(json.dumps(config))
    tensors = load_file(path / WEIGHTS)
    tensors["model.norm.weight"] *= 1e6  # beyond the largest float16
    save_file(tensors, path / WEIGHTS, metadata={"format": "pt"})
    open_source_model(path)
    assert said == [
        f"{path}: config.json says 'float16', but the weights are stored as float32: `--dtype auto` is float32"
    ]
    assert torch.equal(hf.load_model(path)(IDS).logits, stock_logits(path))
    assert hf.empty_model(path).dtype == torch.float32
    checkpoint = Checkpoint.open(path)
    state = {name: checkpoint.read(name) for name in checkpoint.tensors}
    assert hf.model_of(dict(checkpoint.config), state).dtype == torch.float32
    assert checkpoint.config["dtype"] == "float32", "so that a child does not state it wrongly"


def with_predictor(path, layers=1):
    """The model with a layer for multi-token prediction after its own, as DeepSeek V3 and GLM 4.5 are published."""
    tensors = load_file(path / WEIGHTS)
    last = 1 + max(int(name.split(".")[2]) for name in tensors if name.startswith("model.layers."))
    of_last = {name: tensor for name, tensor in tensors.items() if name.startswith(f"model.layers.{last - 1}.")}
    for i in range(layers):
        there = {name.replace(f".{last - 1}.", f".{last + i}.", 1): t.clone() for name, t in of_last.items()}
        added(path, **there, **{f"model.layers.{last + i}.{name}": torch.zeros(2) for name in ("enorm.weight", "eh")})
    return f"model.layers.{last}."


@pytest.mark.parametrize("model_type", ["deepseek_v3", "glm4_moe", "glm4_moe_lite"])
def test_a_layer_for_multi_token_prediction_is_left_out(model_type, tmp_path, said):
    path = write_tiny(tmp_path, model_type)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"num_nextn_predict_layers": 1}))
    predictor = with_predictor(path)
    check_same(path)
    found = open_source_model(path)
    assert not [name for name in found.checkpoint.tensors if name.startswith(predictor)]
    assert [text for text in said if "left out" in text]


@pytest.mark.parametrize("stated", [0, 1])
def test_more_layers_than_a_config_states_are_refused(stated, tmp_path):
    path = write_tiny(tmp_path, "deepseek_v3")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"num_nextn_predict_layers": stated}))
    with_predictor(path, layers=stated + 1)
    with pytest.raises(CheckpointError, match=r"unexpected tensor .*config\.json and the weights disagree"):
        open_source_model(path)


@pytest.mark.parametrize("model_type", ["deepseek_v2", "deepseek_v3", "glm4_moe", "glm4_moe_lite"])
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_a_model_without_shared_experts_is_refused_in_a_sentence(model_type, tmp_path):
    """transformers makes matrices without rows of them; no published model has none."""
    AutoModelForCausalLM.from_config(tiny_config(model_type, n_shared_experts=0)).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"unexpected tensor '.*shared_experts"):
        open_source_model(tmp_path)


def test_a_model_of_cwm_may_have_biases_in_its_neurons(tmp_path):
    check_same(write_tiny(tmp_path, "cwm", mlp_bias=True))
