"""Children exported by optimum and run by ONNX Runtime, in an environment without minitron (`make client-onnx`).

`python run_onnx.py DIRECTORY RESULT.json`, on what tests/clients/write_for_tools.py wrote. The lines are those of
docs/serving.md.
"""

import sys
import tempfile
from pathlib import Path

import transformers
from optimum.onnxruntime import ORTModelForCausalLM
from tools import Case, difference, expected, report, within

SAME = 1e-4


def exported(root: Path, case: Case) -> float:
    """Difference of the exported model, once it was saved and loaded again.

    Without a cache: for Llama and Qwen 3 optimum 0.1.0 makes one of heads of hidden / heads channels.
    """
    wanted = expected(root, case)
    with tempfile.TemporaryDirectory() as place:
        ORTModelForCausalLM.from_pretrained(root / case["child"], export=True, use_cache=False).save_pretrained(place)
        model = ORTModelForCausalLM.from_pretrained(place, use_cache=False)
        found = model(wanted["tokens"], attention_mask=wanted["tokens"].new_ones(wanted["tokens"].shape)).logits
    return within(difference(found, wanted["logits"]), SAME)


def main(root: Path, result: Path) -> None:
    transformers.logging.set_verbosity_error()
    report(
        root,
        result,
        ("transformers", "torch", "optimum-onnx", "onnxruntime"),
        {"ONNX export, without a cache": exported},
    )


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
