"""Children converted and run by llama.cpp: for its own environment, which has no minitron (`make client-llama-cpp`).

`python run_llama_cpp.py DIRECTORY LLAMA_CPP_SOURCE RESULT.json`, on what tests/clients/write.py wrote. The converter is
llama.cpp's own; the one thing it is told is the name of the pre-tokenizer, since it knows that by a hash of the
tokens of published vocabularies, and the tiny models have a vocabulary of their own.
"""

import ctypes
import json
import runpy
import subprocess
import sys
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

SAME = 1e-3  # of the logits' norm; llama.cpp sums in another order, and looks GELU up in a table of 16 bits


def main(root: Path, source: Path, result: Path) -> None:
    cases = json.loads((root / "cases.json").read_text())
    rows = [{"model_type": c["model_type"], "cut": c["cut"], **_outcome(root, source, c)} for c in cases]
    versions = {name: version(name) for name in ("llama-cpp-python", "gguf", "transformers", "torch")}
    result.write_text(json.dumps({"versions": versions, "rows": rows}, indent=2) + "\n")
    for row in rows:
        print(*row.values(), sep="  ")
    sys.exit(any(row["as_foretold"] is False for row in rows))


def _outcome(root: Path, source: Path, case: dict[str, Any]) -> dict[str, Any]:
    """What happened, and whether the serving table said so."""
    foretold = case["foretold"]
    try:
        path = _converted(root / case["child"], source)
        error = _compare(path, load_file(root / case["expected"]))
    except Exception as e:
        outcome = f"{type(e).__name__}: {str(e).strip().splitlines()[-1][:200].replace(str(root), '...')}"
        not_tried = "tokenizer.model" in outcome  # the converter takes this family with SentencePiece alone
        fails = "fails" in (foretold["llama.cpp"], foretold.get("llama.cpp layers"))
        return {"outcome": outcome, "quantised": {}, "as_foretold": None if not_tried else fails}
    types = {name: _quantised(path, name) for name in ("Q8_0", "Q4_K_M")}
    is_whole = "F16" not in types["Q8_0"]  # every matrix took the type that was asked for
    as_foretold = foretold["llama.cpp"] == "ok" and is_whole == (foretold["GGUF Q4_0, Q8_0"] == "ok")
    outcome = "same" if error <= SAME else f"differs by {error:.1e}"
    return {"outcome": outcome, "quantised": types, "as_foretold": outcome == "same" and as_foretold}


def _converted(child: Path, source: Path) -> Path:
    """The GGUF file, in fp32. RuntimeError with the converter's last line if it fails."""
    target = child.parent / f"{child.name}.gguf"
    command = [sys.executable, __file__, "convert", str(source), str(child), "--outfile", str(target)]
    done = subprocess.run([*command, "--outtype", "f32"], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the converter: {(done.stderr.strip() or '?').splitlines()[-1]}")
    return target


def _quantised(path: Path, name: str) -> dict[str, int]:
    """How many matrices of each type llama.cpp makes of a file that it is to quantise; it loads what it made."""
    import llama_cpp
    from gguf import GGUFReader

    target = path.with_suffix(f".{name}.gguf")
    how = llama_cpp.llama_model_quantize_default_params()
    how.ftype, how.nthread = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{name}"), 1
    assert llama_cpp.llama_model_quantize(str(path).encode(), str(target).encode(), ctypes.byref(how)) == 0
    llama_cpp.Llama(str(target), n_ctx=256, n_threads=1, verbose=False).eval([1, 2, 3])
    return dict(Counter(tensor.tensor_type.name for tensor in GGUFReader(target).tensors if len(tensor.shape) > 1))


def convert(source: Path, *arguments: str) -> None:
    """Run llama.cpp's converter as it is, but for the name of the pre-tokenizer."""
    sys.path[:0] = [str(source), str(source / "gguf-py")]
    from conversion import base

    base.TextModel.get_vocab_base_pre = lambda self, tokenizer: "gpt-2"
    sys.argv = ["convert_hf_to_gguf.py", *arguments]
    runpy.run_path(str(source / "convert_hf_to_gguf.py"), run_name="__main__")


def _compare(path: Path, expected: dict[str, np.ndarray]) -> float:
    """Relative difference of the logits. AssertionError where greedy generation gives other tokens."""
    from llama_cpp import GGML_TYPE_F32, Llama

    llama = Llama(
        str(path), n_ctx=256, n_threads=1, logits_all=True, type_k=GGML_TYPE_F32, type_v=GGML_TYPE_F32, verbose=False
    )
    greedy = expected["greedy"][0].tolist()
    llama.eval(greedy[:-1])
    start = expected["tokens"].shape[1]
    chosen = llama.scores[start - 1 : len(greedy) - 1].argmax(-1).tolist()
    assert chosen == greedy[start:], f"greedy generation gives {chosen}, not {greedy[start:]}"
    wanted = expected["logits"][0]
    return float(np.linalg.norm(llama.scores[:start] - wanted) / np.linalg.norm(wanted))


if __name__ == "__main__":
    if sys.argv[1] == "convert":
        convert(Path(sys.argv[2]), *sys.argv[3:])
    else:
        main(*map(Path, sys.argv[1:]))
