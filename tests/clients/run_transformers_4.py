"""Children read by transformers 4.57: for its own environment, which has no minitron (`make client-transformers-4`).

`python run_transformers_4.py DIRECTORY RESULT.json`, on what tests/clients/write.py wrote.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

SAME = 1e-5  # of the logits' norm


def main(root: Path, result: Path) -> None:
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    rows = [{"model_type": c["model_type"], "cut": c["cut"], **_outcome(root, c)} for c in _cases(root)]
    versions = {"transformers": transformers.__version__, "torch": torch.__version__}
    result.write_text(json.dumps({"versions": versions, "rows": rows}, indent=2) + "\n")
    for row in rows:
        print(*row.values(), sep="  ")
    sys.exit(any(row["outcome"] != "same" for row in rows))


def _cases(root: Path) -> list[dict[str, Any]]:
    return json.loads((root / "cases.json").read_text())


def _outcome(root: Path, case: dict[str, Any]) -> dict[str, Any]:
    try:
        error = _compare(root / case["child"], load_file(root / case["expected"]))
    except Exception as e:
        return {"outcome": f"{type(e).__name__}: {str(e).strip().splitlines()[-1][:200]}"}
    return {"outcome": "same" if error <= SAME else "differs", "error": error}


def _compare(child: Path, expected: dict[str, torch.Tensor]) -> float:
    """Relative difference of the logits. AssertionError where keys, tokens or tokenizer differ."""
    how = {"attn_implementation": "eager"}  # 4.57's other kernels leave out Gemma 2's cap on attention logits
    model, info = AutoModelForCausalLM.from_pretrained(child, output_loading_info=True, **how)
    wrong = [key for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") for key in info[kind]]
    assert not wrong, f"keys: {wrong}"
    tokenizer = AutoTokenizer.from_pretrained(child)
    assert tokenizer.decode(tokenizer("the old stone wall")["input_ids"]) == "the old stone wall"
    tokens = expected["tokens"]
    with torch.no_grad():
        logits = model.eval()(tokens).logits
    count = expected["greedy"].shape[1] - tokens.shape[1]
    model.generation_config = GenerationConfig(pad_token_id=0)  # no token ends it
    settings = GenerationConfig(do_sample=False, max_new_tokens=count, pad_token_id=0)
    made = model.generate(tokens, generation_config=settings, attention_mask=torch.ones_like(tokens))
    assert torch.equal(made, expected["greedy"]), "greedy generation gives other tokens"
    return float((logits - expected["logits"]).norm() / expected["logits"].norm())


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
