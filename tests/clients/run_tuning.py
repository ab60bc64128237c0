"""Children fine-tuned by peft and quantized by torchao, in an environment without minitron (`make client-tuning`).

`python run_tuning.py DIRECTORY RESULT.json`, on what tests/clients/write_for_tools.py wrote. The lines are those of
docs/serving.md.
"""

import copy
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from tools import Case, difference, expected, report, texts, within
from torchao.quantization import Int8WeightOnlyConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TorchAoConfig

SAME = 1e-5
INT8 = 0.05  # random weights, which lose more than trained ones


def loaded(root: Path, case: Case, **how: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(root / case["child"], **how).eval()


def logits(model: Any, root: Path, case: Case) -> torch.Tensor:
    with torch.no_grad():
        return model(expected(root, case)["tokens"]).logits


def lora(root: Path, case: Case) -> float:
    """Difference that merging makes; the adapter learns, is saved, and loads."""
    model, tokenizer = loaded(root, case), AutoTokenizer.from_pretrained(root / case["child"])
    before = copy.deepcopy(model.state_dict())
    tuned = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"))
    ids = tokenizer(texts(root, case)[:8], return_tensors="pt", padding=False, truncation=True, max_length=32).input_ids
    losses = _train(tuned, torch.as_tensor(ids))
    assert losses[-1] < losses[0] - 0.1, f"nothing learned: {losses}"
    found = logits(tuned.eval(), root, case)
    with tempfile.TemporaryDirectory() as place:
        tuned.save_pretrained(place)
        again = PeftModel.from_pretrained(loaded(root, case), place).eval()
        within(difference(logits(again, root, case), found), SAME)
    merged = tuned.merge_and_unload()
    assert merged.state_dict().keys() == before.keys(), "the merged model has other tensors"
    return within(difference(logits(merged, root, case), found), SAME)


def _train(model: Any, ids: torch.Tensor) -> list[float]:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    losses = []
    for _ in range(12):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
    return losses


def int8(root: Path, case: Case) -> float:
    model = loaded(root, case, quantization_config=TorchAoConfig(Int8WeightOnlyConfig()))
    return within(difference(logits(model, root, case), expected(root, case)["logits"]), INT8)


def dequantized(root: Path, case: Case) -> float:
    """Difference of a model whose weights were quantized and written back, from the quantized one."""
    model = loaded(root, case, quantization_config=TorchAoConfig(Int8WeightOnlyConfig()))
    found = logits(model, root, case)
    plain = loaded(root, case)
    whole = {n: t.dequantize() if hasattr(t, "dequantize") else t for n, t in model.state_dict().items()}
    plain.load_state_dict(whole)
    with tempfile.TemporaryDirectory() as place:
        plain.save_pretrained(place)
        again = AutoModelForCausalLM.from_pretrained(place).eval()
    return within(difference(logits(again, root, case), found), SAME)


def main(root: Path, result: Path) -> None:
    transformers.logging.set_verbosity_error()
    packages = ("transformers", "torch", "peft", "torchao")
    report(root, result, packages, {"peft LoRA": lora, "torchao int8": int8, "torchao int8, dequantized": dequantized})


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
