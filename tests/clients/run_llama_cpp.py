"""Children converted and run by llama.cpp: for its own environment, which has no minitron (`make client-llama-cpp`).

`python run_llama_cpp.py DIRECTORY LLAMA_CPP_SOURCE RESULT.json [MODEL_TYPE ...]`, on what tests/clients/write.py wrote;
with model types, rows of others stay in the result. The converter is llama.cpp's own. It is told the name of the
pre-tokenizer, which it knows by a hash of the tokens of published vocabularies, and the numbers of special tokens that
it looks up by their published names: the tiny models have a vocabulary of their own. Families that it takes with a
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

SENTENCEPIECE = ("ernie4_5", "ernie4_5_moe", "gemma", "gemma2", "jamba", "nemotron", "phi3", "phimoe")
WITHOUT_NEXTN = ("qwen3_5_text", "qwen3_next")  # it expects heads that predict further tokens, which children lack
SPECIAL = ("[gMASK]", "<|endoftext|>", "<|observation|>", "<|user|>")
VOCABULARY = 300  # of every tiny model
os.environ["GGML_NO_BACKTRACE"] = "1"  # of an assertion, by gdb
SAME = 2e-3  # of the logits' norm; llama.cpp sums in another order, and looks GELU up in a table of 16 bits


def main(root: Path, source: Path, result: Path, *model_types: str) -> None:
    cases = json.loads((root / "cases.json").read_text())
    kept = json.loads(result.read_text())["rows"] if model_types and result.is_file() else []
    if model_types:
        cases = [case for case in cases if case["model_type"] in model_types]
        kept = [row for row in kept if row["model_type"] not in model_types]
    sys.path[:0] = [str(source), str(source / "gguf-py")]
    from conversion import base  # loads torch and transformers, which every case then has
    from transformers import PreTrainedTokenizerFast

    base.TextModel.get_vocab_base_pre = lambda self, tokenizer: "gpt-2"
    added_vocab = PreTrainedTokenizerFast.get_added_vocab
    PreTrainedTokenizerFast.get_added_vocab = lambda self: dict.fromkeys(SPECIAL, 0) | added_vocab(self)
    rows = []
    for case in cases:
        rows.append({"model_type": case["model_type"], "cut": case["cut"], **_apart(root, source, case)})
        print(*rows[-1].values(), sep="  ", flush=True)
    versions = {name: version(name) for name in ("llama-cpp-python", "gguf", "transformers", "torch")}
    every = sorted(kept + rows, key=lambda row: row["model_type"])
    result.write_text(json.dumps({"versions": versions, "rows": every}, indent=2) + "\n")
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
        told = ["ASSERT" + line.split("ASSERT")[-1] for line in log.read().decode().splitlines() if "ASSERT" in line]
    outcome = f"ended: {(told or [process.exitcode])[-1]}"
    return {"outcome": outcome, "quantised": {}, "as_foretold": _should_fail(case)}


def _should_fail(case: dict[str, Any]) -> bool:
    """Whether the serving table says that llama.cpp refuses the child, or computes something else."""
    return "fails" in (case["foretold"]["llama.cpp"], case["foretold"].get("llama.cpp layers"))


def _outcome(root: Path, source: Path, case: dict[str, Any]) -> dict[str, Any]:
    """What happened, and whether the serving table said so."""
    foretold = case["foretold"]
    try:
        if case["model_type"] in SENTENCEPIECE:
            _add_sentencepiece(root / case["child"], root / case["model_type"] / "text")
        path = _converted(root / case["child"], source, case["model_type"] in WITHOUT_NEXTN)
        error = _compare(path, load_file(root / case["expected"]))
    except Exception as e:
        outcome = f"{type(e).__name__}: {str(e).strip().splitlines()[-1][:200].replace(str(root), '...')}"
        return {"outcome": outcome, "quantised": {}, "as_foretold": _should_fail(case)}
    types = {name: _quantised(path, name) for name in ("Q8_0", "Q4_K_M")}
    is_whole = "F16" not in types["Q8_0"]  # every matrix took the type that was asked for
    is_same = error <= SAME
    as_foretold = is_same != _should_fail(case) and is_whole == (foretold["GGUF Q4_0, Q8_0"] == "ok")
    outcome = "same" if is_same else f"differs by {error:.1e}"
    return {"outcome": outcome, "error": error, "quantised": types, "as_foretold": as_foretold}


def _add_sentencepiece(child: Path, text: Path) -> None:
    from sentencepiece import SentencePieceTrainer

    files = ",".join(str(path) for path in sorted(text.iterdir()))
    how = {"model_type": "bpe", "byte_fallback": True, "minloglevel": 2}
    SentencePieceTrainer.train(input=files, model_prefix=str(child / "tokenizer"), vocab_size=VOCABULARY, **how)
    (child / "tokenizer.vocab").unlink()


def _converted(child: Path, source: Path, without_nextn: bool) -> Path:
    """The GGUF file, in fp32, by llama.cpp's converter as it is, but for the name of the pre-tokenizer."""
    target = child.parent / f"{child.name}.gguf"
    sys.argv = ["convert_hf_to_gguf.py", str(child), "--outfile", str(target), "--outtype", "f32"]
    sys.argv += ["--no-nextn"] * without_nextn
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
    main(*map(Path, sys.argv[1:4]), *sys.argv[4:])
