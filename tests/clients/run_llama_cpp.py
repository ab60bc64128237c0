"""Children converted and run by llama.cpp: for its own environment, which has no minitron (`make client-llama-cpp`).

`python run_llama_cpp.py DIRECTORY LLAMA_CPP_SOURCE RESULT.json`, on what tests/clients/write.py wrote. The converter is
llama.cpp's own; the one thing it is told is the name of the pre-tokenizer, since it knows that by a hash of the
tokens of published vocabularies, and the tiny models have a vocabulary of their own. Families that it takes with a
SentencePiece tokenizer only are given one here, of the same size.
"""

import ctypes
import json
import multiprocessing
import os
import runpy
import sys
import tempfile
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

SENTENCEPIECE = ("gemma2", "nemotron", "phi3")
VOCABULARY = 300  # of every tiny model
SAME = 2e-3  # of the logits' norm; llama.cpp sums in another order, and looks GELU up in a table of 16 bits


def main(root: Path, source: Path, result: Path) -> None:
    cases = json.loads((root / "cases.json").read_text())
    sys.path[:0] = [str(source), str(source / "gguf-py")]
    from conversion import base  # loads torch and transformers, which every case then has

    base.TextModel.get_vocab_base_pre = lambda self, tokenizer: "gpt-2"
    rows = [{"model_type": c["model_type"], "cut": c["cut"], **_apart(root, source, c)} for c in cases]
    versions = {name: version(name) for name in ("llama-cpp-python", "gguf", "transformers", "torch")}
    result.write_text(json.dumps({"versions": versions, "rows": rows}, indent=2) + "\n")
    for row in rows:
        print(*row.values(), sep="  ")
    sys.exit(not all(row["as_foretold"] for row in rows))


def _apart(root: Path, source: Path, case: dict[str, Any]) -> dict[str, Any]:
    """The outcome from a process of its own: an assertion of llama.cpp's ends the process that it runs in."""
    fork = multiprocessing.get_context("fork")
    receive, send = fork.Pipe(duplex=False)
    with tempfile.TemporaryFile() as log:

        def work() -> None:
            os.dup2(log.fileno(), sys.stdout.fileno())
            os.dup2(log.fileno(), sys.stderr.fileno())
            send.send(_outcome(root, source, case))

        process = fork.Process(target=work)
        process.start()
        send.close()
        process.join()
        if process.exitcode == 0:
            return receive.recv()
        log.seek(0)
        told = [line for line in log.read().decode().splitlines() if "ASSERT" in line]
    outcome = f"ended: {(told or [process.exitcode])[-1]}"
    return {"outcome": outcome, "quantised": {}, "as_foretold": False}


def _outcome(root: Path, source: Path, case: dict[str, Any]) -> dict[str, Any]:
    """What happened, and whether the serving table said so."""
    foretold = case["foretold"]
    try:
        if case["model_type"] in SENTENCEPIECE:
            _add_sentencepiece(root / case["child"], root / case["model_type"] / "text")
        path = _converted(root / case["child"], source)
        error = _compare(path, load_file(root / case["expected"]))
    except Exception as e:
        outcome = f"{type(e).__name__}: {str(e).strip().splitlines()[-1][:200].replace(str(root), '...')}"
        fails = "fails" in (foretold["llama.cpp"], foretold.get("llama.cpp layers"))
        return {"outcome": outcome, "quantised": {}, "as_foretold": fails}
    types = {name: _quantised(path, name) for name in ("Q8_0", "Q4_K_M")}
    is_whole = "F16" not in types["Q8_0"]  # every matrix took the type that was asked for
    as_foretold = foretold["llama.cpp"] == "ok" and is_whole == (foretold["GGUF Q4_0, Q8_0"] == "ok")
    outcome = "same" if error <= SAME else f"differs by {error:.1e}"
    is_same = outcome == "same"
    return {"outcome": outcome, "error": error, "quantised": types, "as_foretold": is_same and as_foretold}


def _add_sentencepiece(child: Path, text: Path) -> None:
    from sentencepiece import SentencePieceTrainer

    files = ",".join(str(path) for path in sorted(text.iterdir()))
    how = {"model_type": "bpe", "byte_fallback": True, "minloglevel": 2}
    SentencePieceTrainer.train(input=files, model_prefix=str(child / "tokenizer"), vocab_size=VOCABULARY, **how)
    (child / "tokenizer.vocab").unlink()


def _converted(child: Path, source: Path) -> Path:
    """The GGUF file, in fp32, by llama.cpp's converter as it is, but for the name of the pre-tokenizer."""
    target = child.parent / f"{child.name}.gguf"
    sys.argv = ["convert_hf_to_gguf.py", str(child), "--outfile", str(target), "--outtype", "f32"]
    try:
        runpy.run_path(str(source / "convert_hf_to_gguf.py"), run_name="__main__")
    except SystemExit as e:
        if e.code:
            raise RuntimeError(f"the converter ended with {e.code}") from e
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
    main(*map(Path, sys.argv[1:]))
