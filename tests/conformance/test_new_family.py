"""A family is added by one file and one name: a toy one, written to a temporary module, goes through every stage."""

import importlib.util

import pytest
import torch
from torch import nn
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModelForCausalLM
from transformers.models.llama import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

from minitron_cli.checkpoint import hf
from minitron_cli.checkpoint.reader import Checkpoint
from minitron_cli.distill.config import DistillConfig
from minitron_cli.evaluate.config import EvaluateConfig
from minitron_cli.importance.config import ImportanceConfig
from minitron_cli.inputs.source_model import open_source_model
from minitron_cli.model import serving
from minitron_cli.model.families import FAMILIES
from minitron_cli.prune.config import PruneConfig
from minitron_cli.prune.plan import PrunePlan
from minitron_cli.prune.stream import prune_in_memory
from minitron_cli.recipe import Recipe
from minitron_cli.search.config import SearchConfig
from tests.unit.stages.place import context, data, write_place

TABLE = '''
"""Toy: Llama with other names in the MLP, whose two input matrices are stored as one, and a bias on its output."""

from minitron_cli.model.families import llama as L
from minitron_cli.model.family import Family, Serving

MLP = {
    "model.layers.{layer}.mlp.into.weight": "(ffn + ffn) hidden",
    "model.layers.{layer}.mlp.out.weight": "hidden ffn",
    "model.layers.{layer}.mlp.out.bias": "hidden",
}

TOY = Family(
    model_type="toy",
    tensors=L.EMBEDDING | L.ATTENTION | MLP | L.NORMS | L.FINAL,
    sizes=L.SIZES,
    stored_if=L.UNTIED_HEAD,
    links=L.LINKS | {"model.layers.{layer}.post_attention_layernorm.weight": ("model.layers.{layer}.mlp.into.weight",)},
    tied=L.TIED,
    hidden_is_multiple_of_heads=True,
    serving=Serving(vllm="through_transformers"),
)
'''


class ToyConfig(LlamaConfig):
    model_type = "toy"


class ToyMLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.into = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.out = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x):
        gate, up = self.into(x).chunk(2, dim=-1)
        return self.out(nn.functional.silu(gate) * up)


class ToyForCausalLM(LlamaForCausalLM):
    config_class = ToyConfig

    def __init__(self, config):
        super().__init__(config)
        for layer in self.model.layers:
            layer.mlp = ToyMLP(config)
        self.post_init()


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """The toy family: known to transformers as any model type is, and to minitron by its table."""
    logging.disable_progress_bar()
    AutoConfig.register("toy", ToyConfig)
    AutoModelForCausalLM.register(ToyConfig, ToyForCausalLM)
    (tmp_path / "toy_table.py").write_text(TABLE)
    spec = importlib.util.spec_from_file_location("toy_table", tmp_path / "toy_table.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setitem(FAMILIES, "toy", module.TOY)
    yield module.TOY
    CONFIG_MAPPING._extra_content.pop("toy")
    MODEL_FOR_CAUSAL_LM_MAPPING._extra_content.pop(ToyConfig)


@pytest.fixture
def place(toy, tmp_path):
    write_place(tmp_path, "toy")
    return tmp_path


def test_a_table_is_all_that_counting_and_serving_need(place):
    parent = open_source_model(place / "model")
    model = hf.load_model(place / "model")
    assert parent.shape.parameters() == sum(p.numel() for p in model.parameters())
    found = {row.reader: row.level for row in serving.findings(parent.shape.resize(ffn=30), parent=parent.shape)}
    assert (found["vLLM"], found["llama.cpp"]) == ("slower", "unknown")
    assert found["fp8"] == "fails"


@pytest.mark.slow
@pytest.mark.parametrize("repair", ["none", "all"])
def test_a_toy_family_goes_from_importance_to_the_report(place, repair):
    asked = Recipe(
        model=str(place / "model"),
        data=data(place),
        importance=ImportanceConfig(samples=8, batch_size=4),
        search=SearchConfig(budget={"target": "70%", "tolerance": 0.2}, candidates=2, retrain=None),
        prune=PruneConfig(repair=repair, repair_samples=8),
        distill=DistillConfig(steps=2, batch_size=2, micro_batch_size=2, warmup_steps=1, eval_blocks=2),
        evaluate=EvaluateConfig(blocks=2),
    )
    from minitron_cli import pipeline  # which imports every stage

    (made,) = pipeline.run(asked, context(place / "run"))
    parent, child = open_source_model(place / "model").shape, open_source_model(made.product.path).shape
    assert child.family.model_type == "toy"
    assert child.parameters() < 0.9 * parent.parameters()
    assert Checkpoint.open(made.product.path).shapes == child.tensors()
    assert isinstance(hf.load_model(made.product.path), ToyForCausalLM)
    assert "toy runs through transformers" in next((place / "run").rglob("report.html")).read_text()


def test_a_pruned_toy_computes_what_its_masked_parent_computes(place):
    """Neurons by index: the child equals a parent whose other neurons write nothing."""
    parent, checkpoint = open_source_model(place / "model"), Checkpoint.open(place / "model")
    generator = torch.Generator().manual_seed(0)
    kept = torch.stack([torch.randperm(48, generator=generator)[:20].sort().values for _ in range(4)])
    plan = PrunePlan(parent.shape, {"ffn": kept})
    model, ids = hf.load_model(place / "model"), torch.arange(1, 30)[None]
    state = prune_in_memory(plan, checkpoint.tensors, checkpoint.read)
    child = hf.model_of(parent.config.to_dict() | {"intermediate_size": 20}, state)
    with torch.no_grad():
        for layer, survivors in zip(model.model.layers, kept, strict=True):
            gone = torch.ones(48, dtype=torch.bool)
            gone[survivors] = False
            layer.mlp.out.weight[:, gone] = 0
        torch.testing.assert_close(child(ids).logits, model(ids).logits, rtol=1e-4, atol=1e-4)
