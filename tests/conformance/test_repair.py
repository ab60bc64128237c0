"""Every family that may be rotated, against plain arithmetic in transformers' own modules."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from safetensors.torch import load_file, save_file

from minitron_cli.checkpoint import hf
from minitron_cli.checkpoint.reader import Checkpoint
from minitron_cli.checkpoint.safetensors_file import read_header
from minitron_cli.errors import CheckpointError, RunFailed
from minitron_cli.model.families import FAMILIES, family_of
from minitron_cli.model.residual_stream import foldable, rotation_obstacle
from minitron_cli.model.shape import Shape
from minitron_cli.prune import export_check
from minitron_cli.prune.plan import PrunePlan
from minitron_cli.prune.stream import prune_in_memory
from minitron_cli.prune.transform import Repair, norm_gains
from minitron_cli.repair.pca_rotation import check_rotatable
from minitron_cli.repair.store import RepairStore
from tests.anatomy import anatomy
from tests.by_table import opened
from tests.conformance.masked import masked, random_survivors
from tests.conformance.test_families import assert_same, logits_of, plan_of, reload, shape_of, stored, write
from tests.quick import each_family
from tests.tiny import BASE, tiny_config, tiny_model

HIDDEN = BASE["hidden_size"]


@cache
def rotatable():
    """Families whose tiny model, untied, has no obstacle."""
    configs = {t: tiny_config(t, tie_word_embeddings=False) for t in sorted(FAMILIES)}
    return [t for t, config in configs.items() if rotation_obstacle(Shape.of(FAMILIES[t], config)) is None]


OTHERS = {
    "cohere",
    "cohere2",
    "exaone4",
    "flex_olmo",
    "gemma2",
    "gemma3_text",
    "glm4",
    "gpt_neox",
    "jais2",
    "lfm2",
    "nemotron",
    "olmo",
    "olmo2",
    "olmo3",
    "olmoe",
    "phimoe",
    "starcoder2",
}  # see docs/repair.md
ROTATABLE = each_family(rotatable())
HYBRIDS = ("bamba", "falcon_h1", "granitemoehybrid", "jamba", "nemotron_h", "qwen3_5_text", "qwen3_next")
NAMED_AS_LLAMA = [t for t in rotatable() if t not in (*HYBRIDS, "llama4_text")]  # by whose names plain arithmetic goes
ROTATABLE_DENSE = each_family([t for t in rotatable() if "expert" not in FAMILIES[t].sizes])
PLAIN = each_family(NAMED_AS_LLAMA)
DENSE = each_family([t for t in NAMED_AS_LLAMA if "expert" not in FAMILIES[t].sizes])


def saved(path, model_type, **options):
    model = tiny_model(model_type, **{"rms_norm_eps": 0.02, "tie_word_embeddings": False} | options)
    model.save_pretrained(path)
    return model, opened(path)


def random_basis(count, seed=0):
    noise = torch.randn(HIDDEN, HIDDEN, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return torch.linalg.qr(noise).Q[:, :count].float()


def turned(plan, checkpoint, basis_DK):
    gain_D = norm_gains(plan.parent, foldable(plan.parent), checkpoint.read)
    return plan.repaired(Repair(basis_DK, gain_D=gain_D))


def test_the_families_that_must_be_rotatable_are():
    known = {
        "apertus",
        "arcee",
        "bamba",
        "cwm",
        "deepseek_v2",
        "deepseek_v3",
        "ernie4_5",
        "ernie4_5_moe",
        "falcon_h1",
        "gemma",
        "glm",
        "glm4_moe",
        "glm4_moe_lite",
        "gpt_oss",
        "granite",
        "granitemoe",
        "granitemoehybrid",
        "hunyuan_v1_dense",
        "jamba",
        "llama",
        "llama4_text",
        "mellum",
        "minimax_m2",
        "ministral",
        "ministral3",
        "mistral",
        "mixtral",
        "nemotron_h",
        "phi3",
        "qwen2",
        "qwen2_moe",
        "qwen3",
        "qwen3_moe",
        "qwen3_5_text",
        "qwen3_next",
        "seed_oss",
        "smollm3",
        "vaultgemma",
    }
    assert known == set(rotatable())
    assert set(FAMILIES) - known == OTHERS


@ROTATABLE
def test_in_another_basis_the_whole_model_is_the_parent(model_type, tokens, tmp_path):
    model, checkpoint = saved(tmp_path / "parent", model_type)
    plan = turned(PrunePlan(shape_of(model), {}), checkpoint, random_basis(HIDDEN))
    child = reload(write(checkpoint, plan, tmp_path / "child"))
    assert not torch.allclose(child.get_input_embeddings().weight, model.get_input_embeddings().weight, atol=0.1)
    assert_same(logits_of(child, tokens), logits_of(model, tokens))


@PLAIN
@torch.no_grad()
def test_a_tied_model_whose_last_norm_is_even_is_the_parent_in_another_basis_too(model_type, tokens, tmp_path):
    model = tiny_model(model_type, rms_norm_eps=0.02, tie_word_embeddings=True)
    model.model.norm.weight.fill_(1.3)
    model.save_pretrained(tmp_path / "parent")
    plan = turned(PrunePlan(shape_of(model), {}), checkpoint := opened(tmp_path / "parent"), random_basis(HIDDEN))
    child = reload(write(checkpoint, plan, tmp_path / "child"))
    assert child.lm_head.weight.data_ptr() == child.model.embed_tokens.weight.data_ptr()
    assert not torch.allclose(child.model.embed_tokens.weight, model.model.embed_tokens.weight, atol=0.1)
    assert_same(logits_of(child, tokens), logits_of(model, tokens))


def by_hand(parent, kept_DK, tokens, mixing=None, scales=None):
    """Logits of a parent that keeps of its residual stream only some directions, module by module in plain torch.

    transformers' modules do the attention and the MLP, in the parent's coordinates. `mixing` makes what a norm gives
    out of what is left of the stream; `scales` is what each norm's output is multiplied by.
    """
    model, config = parent.model, parent.config
    project = kept_DK @ kept_DK.T
    names = {module: f"{name}.weight" for name, module in parent.named_modules()}
    is_tied = parent.lm_head.weight is model.embed_tokens.weight
    residual = getattr(config, "residual_multiplier", 1.0)
    parts, epsilon = anatomy(config.model_type), config.rms_norm_eps

    def norm(module, x):
        left = x @ kept_DK
        left = left * torch.rsqrt(left.square().mean(-1, keepdim=True) + epsilon)
        gain = module.weight + parts.norm_offset
        if is_tied and module is model.norm:  # of its weight the diagonal is left, direction by direction
            given = left * torch.einsum("dk,d,dk->k", kept_DK, gain, kept_DK) @ kept_DK.T
        else:
            given = left @ mixing[names[module]].T if mixing else left @ kept_DK.T * gain
        return given * (scales[names[module]] if scales else 1.0)

    x = model.embed_tokens(tokens) * getattr(config, "embedding_multiplier", 1.0) @ project
    positions = torch.arange(tokens.shape[1])[None]
    for layer in model.layers:
        mask = causal(tokens.shape[1], window_of(layer, config))
        rotary = model.rotary_emb(x, positions, *rotary_kind(layer, config))
        before_attention, before_mlp = (layer.get_submodule(name) for name in parts.norms)
        written, _ = layer.self_attn(
            norm(before_attention, x), position_embeddings=rotary, attention_mask=mask, position_ids=positions
        )
        x = x + written @ project * residual
        written = layer.get_submodule(parts.experts.rpartition(".")[0] or "mlp")(norm(before_mlp, x))
        x = x + (written[0] if isinstance(written, tuple) else written) @ project * residual
    logits = parent.lm_head(norm(model.norm, x)) / getattr(config, "logits_scaling", 1.0)
    cap = getattr(config, "final_logit_softcapping", None)
    return logits if cap is None else torch.tanh(logits / cap) * cap


def rotary_kind(layer, config):
    """The layer's kind, where each kind has rotary parameters of its own."""
    kind = config.layer_types[layer.self_attn.layer_idx] if getattr(config, "layer_types", None) else ""
    return (kind,) if kind in config.rope_parameters else ()


def window_of(layer, config):
    kinds = getattr(config, "layer_types", None)
    slides = kinds[layer.self_attn.layer_idx] == "sliding_attention" if kinds else True
    return getattr(config, "sliding_window", None) if slides else None


def causal(length, window):
    distance = torch.arange(length)[:, None] - torch.arange(length)
    seen = (distance >= 0) & (distance < (window or length))
    return torch.zeros(length, length).masked_fill(~seen, float("-inf"))[None, None]


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@each_family([t for t in NAMED_AS_LLAMA if "hidden" not in FAMILIES[t].not_prunable])
@torch.no_grad()
def test_pruned_in_a_basis_is_the_parent_without_the_other_directions(model_type, tied, tokens, tmp_path):
    model, checkpoint = saved(tmp_path / "parent", model_type, tie_word_embeddings=tied)
    plan = turned(PrunePlan(shape_of(model), {"hidden": torch.arange(24)}), checkpoint, random_basis(24))
    assert plan.child.sizes["hidden"] == 24
    assert "hidden" not in plan.kept
    child = reload(write(checkpoint, plan, tmp_path / "child"))
    assert_same(logits_of(child, tokens), by_hand(model, random_basis(24), tokens))


@ROTATABLE_DENSE
def test_with_other_axes_pruned_too_the_basis_is_that_of_the_masked_parent(model_type, tokens, tmp_path):
    model, checkpoint = saved(tmp_path / "parent", model_type)
    pruning = random_survivors(model.config, 3, head=4, ffn=20)
    plain = plan_of(model, pruning)
    same = turned(plain, checkpoint, random_basis(HIDDEN))
    children = [reload(write(checkpoint, p, tmp_path / name)) for name, p in (("plain", plain), ("turned", same))]
    assert_same(logits_of(children[1], tokens), logits_of(children[0], tokens))


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@ROTATABLE_DENSE
def test_streamed_is_in_memory(model_type, tied, tmp_path, monkeypatch):
    model, checkpoint = saved(tmp_path / "parent", model_type, tie_word_embeddings=tied)
    plan = turned(
        plan_of(model, random_survivors(model.config, 9, hidden=24, ffn=20, head=6)), checkpoint, random_basis(24)
    )
    monkeypatch.setattr("minitron_cli.prune.stream.BLOCK_BYTES", 3 * 64 * 4)
    read, sizes = Checkpoint.read_rows, []

    def noted(self, name, start, stop, *buffer):
        rows = read(self, name, start, stop, *buffer)
        sizes.append(rows.nbytes)
        return rows

    monkeypatch.setattr(Checkpoint, "read_rows", noted)
    streamed = stored(write(checkpoint, plan, tmp_path / "child"))
    assert max(sizes) <= 3 * 64 * 4, "where rows are mixed too, no more than a block is read at once"
    in_memory = prune_in_memory(plan, checkpoint.tensors, checkpoint.read)
    assert streamed.keys() == in_memory.keys() == plan.child.tensors().keys()
    for name, tensor in in_memory.items():
        torch.testing.assert_close(streamed[name], tensor, rtol=1e-5, atol=1e-6)  # sums in another order


def readouts_of(model, kept_DK, directory, seed=3):
    """Random maps from what is left of the stream to what each norm gives, as a checkpoint and as tensors."""
    directory.mkdir()
    generator = torch.Generator().manual_seed(seed)
    family = family_of(model.config)
    names = [name for template in family.links for name in shape_of(model).names(template)]
    mixing = {name: kept_DK.contiguous() + 0.2 * torch.randn(HIDDEN, 24, generator=generator) for name in names}
    save_file(mixing, directory / "readouts.safetensors")
    return Checkpoint(directory, {}, read_header(directory / "readouts.safetensors")), mixing


@pytest.mark.parametrize("is_turned", [False, True], ids=["channels", "directions"])
@DENSE
@torch.no_grad()
def test_everything_at_once_is_what_plain_arithmetic_gives(model_type, is_turned, tokens, tmp_path):
    """Basis or channels, fitted matrices and readouts, and scales, with heads and neurons pruned as well."""
    model, checkpoint = saved(tmp_path / "parent", model_type)
    pruning = random_survivors(model.config, 5, hidden=24, ffn=20, head=4)
    plan, parent = plan_of(model, pruning), masked(model, replace(pruning, hidden=None))
    kept_DK = random_basis(24) if is_turned else torch.eye(HIDDEN)[:, pruning.hidden]
    readouts, mixing = readouts_of(model, kept_DK, tmp_path / "readouts")
    scales = {name: 0.5 + i / 10 for i, name in enumerate(mixing)}
    store = RepairStore(tmp_path / "readouts")
    for layer in range(4):
        name = f"model.layers.{layer}.mlp.down_proj.weight"
        fitted = torch.randn(24, 20, generator=torch.Generator().manual_seed(layer)) / 5
        store.put("fitted", name, fitted)
        parent.get_parameter(name)[:, pruning.ffn[layer]] = kept_DK @ fitted
    gain_D = norm_gains(plan.parent, plan.parent.family.links, checkpoint.read)
    repair = Repair(kept_DK if is_turned else None, None, gain_D, readouts, scales, store.tensors("fitted"))
    child = reload(write(checkpoint, plan.repaired(repair), tmp_path / "child"))
    assert_same(logits_of(child, tokens), by_hand(parent, kept_DK, tokens, mixing, scales))


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@each_family(sorted(t for t, f in FAMILIES.items() if f.norm == "rms" and "hidden" not in f.not_prunable))
def test_norms_folded_into_their_readers_change_nothing(model_type, tied, tokens, tmp_path):
    """Where the stream keeps channels, sandwiched or tied too: each family's offset, and which norms can be."""
    model, checkpoint = saved(tmp_path / "parent", model_type, tie_word_embeddings=tied)
    pruning = random_survivors(model.config, 5, hidden=24)
    plan, kept_DK = plan_of(model, pruning), torch.eye(HIDDEN)[:, pruning.hidden].contiguous()
    gain_D = norm_gains(plan.parent, foldable(plan.parent), checkpoint.read)
    assert len(gain_D) == len(list(norms_of(plan.parent))) - plan.parent.is_tied, "the norm before a tied head stays"
    folded = plan.repaired(Repair(channels_DK=kept_DK, gain_D=gain_D))
    child, plain = (reload(write(checkpoint, p, tmp_path / name)) for p, name in ((folded, "child"), (plan, "plain")))
    assert_same(logits_of(child, tokens), logits_of(plain, tokens))
    for name in gain_D:
        weight = child.get_parameter(name) + plan.parent.family.norm_offset
        assert torch.equal(weight, torch.ones(24))


def norms_of(shape):
    return (name for template in shape.family.links for name in shape.names(template))


@pytest.mark.parametrize("model_type", sorted(set(FAMILIES) - set(rotatable())))
def test_what_cannot_be_rotated_says_why(model_type, tmp_path):
    """That the others can is claimed by their tables, and shown above."""
    model, _ = saved(tmp_path / "parent", model_type)
    with pytest.raises(CheckpointError, match="cannot be rotated"):
        check_rotatable(Shape.of(family_of(model.config), model.config))


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("mode", ["whole", "sampled"])
@DENSE
def test_the_export_check_knows_a_repaired_child_from_a_damaged_one(model_type, mode, tied, tmp_path):
    model, checkpoint = saved(tmp_path / "parent", model_type, tie_word_embeddings=tied)
    plan = turned(
        plan_of(model, random_survivors(model.config, 9, hidden=24, ffn=20, head=6)), checkpoint, random_basis(24)
    )
    child = write(checkpoint, plan, tmp_path / "child")
    hf.copy_files(checkpoint.path, child, hf.side_files(checkpoint))
    written = export_check.WrittenChild(child, checkpoint, plan, mode)
    weights, source = load_file(child / "model.safetensors"), torch.Generator().manual_seed(0)
    noise = {
        name: t + 1e-7 * t.std() * torch.randn(t.shape, generator=source) for name, t in weights.items() if t.ndim > 1
    }
    save_file(weights | noise, child / "model.safetensors", metadata={"format": "pt"})
    export_check.check_child(written)  # other sums round otherwise
    name = "model.layers.3.mlp.down_proj.weight"
    save_file(weights | {name: weights[name].flip(0)}, child / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RunFailed, match="other numbers than the pruned parent"):
        export_check.check_child(export_check.WrittenChild(child, checkpoint, plan, mode))
