"""The pretrained models that `make real-models` assembles are the models they are taken for."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from scripts.real_models import GEMMA, MODELS, QWEN, RealModel
from tests.cli.program import invoke

Directory = Callable[[str], Path]
pytestmark = pytest.mark.slow

of_gemma = pytest.mark.real(GEMMA.name)
of_qwen = pytest.mark.real(QWEN.name)
NON_EMBEDDING = {GEMMA.name: 100_326_016, QWEN.name: 357_898_112}
TEXT = (
    "The river rises in the northern hills and flows south through three counties before it reaches the sea. Until "
    "the nineteenth century it was used to carry timber and wool to the port at its mouth; the last barges stopped in "
    "1911, when the railway took over their trade. Two reservoirs were built in the upper valley in the 1930s, and "
    "they still supply most of the drinking water of the region. The lower valley is known for its orchards, and for "
    "floods in early spring."
)


def opened(path: Path) -> tuple[Any, Any]:
    """The model, in fp32 to be fast on any processor, and its tokenizer."""
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval(), AutoTokenizer.from_pretrained(path)


@pytest.mark.parametrize("model", [pytest.param(m, id=m.name, marks=pytest.mark.real(m.name)) for m in MODELS.values()])
def test_inspect_counts_a_tied_bf16_model_of_the_published_size(model: RealModel, real_model: Directory) -> None:
    result = invoke("inspect", real_model(model.name), "--json")
    assert result.exit_code == 0, result.stderr
    facts = json.loads(result.stdout)
    assert facts["parameters"] == model.parameters
    assert facts["non_embedding"] == NON_EMBEDDING[model.name]
    assert facts["stored_bytes"] == 2 * model.parameters


@of_qwen
def test_qwen_knows_a_capital(real_model: Directory) -> None:
    model, tokenizer = opened(real_model(QWEN.name))
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    with torch.inference_mode():
        tokens = model.generate(**prompt, max_new_tokens=8, do_sample=False)
    assert tokenizer.decode(tokens[0]).startswith("The capital of France is Paris.")


@of_gemma
def test_gemma_predicts_text_far_better_after_its_bos(real_model: Directory) -> None:
    model, tokenizer = opened(real_model(GEMMA.name))
    tokens = tokenizer(TEXT, return_tensors="pt").input_ids
    assert tokens[0, 0] == tokenizer.bos_token_id
    with torch.inference_mode():
        with_bos, without = (mean_loss(model(t).logits, t, last=80) for t in (tokens, tokens[:, 1:]))
    assert with_bos < without - 1  # in nats per token; 1.7 were measured


def mean_loss(logits_BTV: torch.Tensor, tokens_BT: torch.Tensor, last: int) -> float:
    """Mean cross-entropy of the last tokens, in nats: the same ones whatever stands before the text."""
    logits_NV = logits_BTV[0, -last - 1 : -1]
    return torch.nn.functional.cross_entropy(logits_NV, tokens_BT[0, -last:]).item()
