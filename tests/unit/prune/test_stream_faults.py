import pytest
import torch
from safetensors.torch import load_file, save_file

from minitron_cli import progress
from minitron_cli.checkpoint.reader import Checkpoint
from minitron_cli.errors import CheckpointError, Interrupted
from minitron_cli.model.families.llama import LLAMA
from minitron_cli.model.shape import Shape
from minitron_cli.prune.plan import PrunePlan
from minitron_cli.prune.stream import prune_in_memory, write_child
from tests.tiny import tiny_model

HEAD, EMBED = "lm_head.weight", "model.embed_tokens.weight"


def saved(path, tensors, model):
    path.mkdir()
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    model.config.save_pretrained(path)
    return Checkpoint.open(path)


@pytest.fixture
def tied(tmp_path):
    """A tied checkpoint, its shape, and a way to store other tensors as well."""
    model = tiny_model("llama", tie_word_embeddings=True, num_hidden_layers=2)
    tensors = {n: t.contiguous() for n, t in model.state_dict().items() if n != HEAD}
    shape = Shape.of(LLAMA, model.config)
    return shape, lambda **more: saved(
        tmp_path / "parent", tensors | {n.replace("__", "."): t for n, t in more.items()}, model
    )


@pytest.fixture
def ffn_plan(tied):
    return PrunePlan(tied[0], {"hidden": torch.arange(0, 32, 2), "layer": torch.tensor([1])})


def test_a_stored_copy_of_a_tied_head_is_not_passed_on(tied, ffn_plan, tmp_path):
    _, store = tied
    embedding = tiny_model("llama", tie_word_embeddings=True, num_hidden_layers=2).model.embed_tokens.weight.detach()
    checkpoint = store(lm_head__weight=embedding.clone())
    assert HEAD in checkpoint.tensors
    (tmp_path / "child").mkdir()
    write_child(checkpoint, ffn_plan, tmp_path / "child")
    child = load_file(tmp_path / "child" / "model.safetensors")
    assert HEAD not in child
    assert torch.equal(child[EMBED], embedding[:, ::2])


def test_buffers_of_older_checkpoints_are_dropped(tied, ffn_plan):
    checkpoint = tied[1](model__layers__1__self_attn__rotary_emb__inv_freq=torch.ones(4))
    assert not [name for name in ffn_plan.sources(checkpoint.tensors) if "inv_freq" in name]


def test_survivors_keep_the_parents_order(tied, ffn_plan):
    checkpoint = tied[1]()
    pairs = ffn_plan.sources(checkpoint.tensors)
    order = list(checkpoint.tensors)
    assert [order.index(old) for old in pairs.values()] == sorted(order.index(old) for old in pairs.values())
    assert pairs["model.layers.0.mlp.up_proj.weight"] == "model.layers.1.mlp.up_proj.weight"


def test_only_what_survives_is_read(tied, ffn_plan):
    checkpoint = tied[1]()
    read = []
    prune_in_memory(ffn_plan, checkpoint.tensors, lambda name: read.append(name) or checkpoint.read(name))
    assert not [name for name in read if "layers.0" in name]
    assert len(read) == len(set(read)) == len(ffn_plan.child.tensors())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float8_e5m2])
def test_weights_that_are_no_numbers_are_refused(tmp_path, dtype, value):
    model = tiny_model("llama", num_hidden_layers=1)
    tensors = {n: t.to(dtype) for n, t in model.state_dict().items()}
    name = "model.layers.0.self_attn.k_proj.weight"
    tensors[name] = tensors[name].float().index_fill(0, torch.tensor([3]), value).to(dtype)
    checkpoint = saved(tmp_path / "parent", tensors, model)
    plan = PrunePlan(Shape.of(LLAMA, model.config), {"ffn": torch.tensor([[0]])})
    (tmp_path / "child").mkdir()
    with pytest.raises(CheckpointError, match=r"k_proj\.weight' holds NaN or infinity: the checkpoint is damaged"):
        write_child(checkpoint, plan, tmp_path / "child")


def test_pruning_can_be_stopped(tied, ffn_plan, tmp_path):
    checkpoint = tied[1]()
    (tmp_path / "child").mkdir()
    progress.request_stop(15)
    with pytest.raises(Interrupted):
        write_child(checkpoint, ffn_plan, tmp_path / "child")
