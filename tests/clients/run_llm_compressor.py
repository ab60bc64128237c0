"""Children quantized by llm-compressor, in an environment without minitron (`make client-llm-compressor`).

`python run_llm_compressor.py DIRECTORY RESULT.json`, on what tests/clients/write_for_tools.py wrote. The lines are
those of docs/serving.md. vLLM, which runs what is written, needs a GPU; transformers loads it here.
"""

import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.quantization import GPTQModifier, QuantizationModifier
from tools import Case, difference, expected, report, texts, within
from transformers import AutoModelForCausalLM, AutoTokenizer

METHODS: dict[
    str, tuple[Any, float]
] = {  # and the difference of logits, of random weights, which lose more than trained
    "GPTQ, 4 bits": (partial(GPTQModifier, targets="Linear", scheme="W4A16", ignore=["lm_head"]), 0.6),
    "fp8": (partial(QuantizationModifier, targets="Linear", scheme="FP8_DYNAMIC", ignore=["lm_head"]), 0.2),
}
"""AWQ is not among them: without an accelerator, llm-compressor's ends with a RuntimeError that names it."""


def quantized(method: str, root: Path, case: Case) -> float:
    modifier, bound = METHODS[method]
    model = AutoModelForCausalLM.from_pretrained(root / case["child"], dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(root / case["child"])
    text = Dataset.from_dict({"text": texts(root, case)[:32]})
    with tempfile.TemporaryDirectory() as place:
        oneshot(
            model=model,
            tokenizer=tokenizer,
            dataset=text,
            recipe=modifier(),
            max_seq_length=64,
            num_calibration_samples=32,
            output_dir=place,
        )
        again = AutoModelForCausalLM.from_pretrained(place).eval()
        wanted = expected(root, case)
        with torch.no_grad():
            return within(difference(again(wanted["tokens"]).logits, wanted["logits"]), bound)


def main(root: Path, result: Path) -> None:
    transformers.logging.set_verbosity_error()
    packages = ("transformers", "torch", "llmcompressor", "compressed-tensors")
    report(root, result, packages, {name: partial(quantized, name) for name in METHODS})


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
