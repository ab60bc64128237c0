"""Compare benchmark tasks with lm-eval's own class for transformers, which computes logits of every position.

    python -m benchmarks tasks

Questions of four answers, as the cloze task asks them, put to a model of random weights in the shape of Gemma 3 270M:
CPU seconds of one thread, and memory beyond the model.
"""

import argparse
import statistics
import sys

import torch
from lm_eval.models.huggingface import HFLM
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.harness import alternate, peak_memory, ratio, record
from minitron_cli.evaluate.lm_eval_model import Model

VOCAB, HIDDEN, FFN, LAYERS = 262_144, 640, 2048, 18
QUESTIONS, CHOICES, BATCH = 4, 4, 8
PROMPT, ANSWER = (100, 160), (8, 14)  # shortest and longest, in tokens
OWN, THEIRS = "logits of the answers", "lm-eval's class"

Request = tuple[tuple[str, str], list[int], list[int]]


def requests() -> list[Request]:
    """Every answer of every question, in random ids."""
    generator = torch.Generator().manual_seed(0)

    def ids(shortest: int, longest: int) -> list[int]:
        count = int(torch.randint(shortest, longest + 1, (), generator=generator))
        return torch.randint(VOCAB, (count,), generator=generator).tolist()

    found: list[Request] = []
    for question in range(QUESTIONS):
        prompt = ids(*PROMPT)
        found += [((f"{question}", f"{choice}"), prompt, ids(*ANSWER)) for choice in range(CHOICES)]
    return found


def main(arguments: list[str]) -> None:
    """Run both and record the results."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks tasks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    shape = {"vocab_size": VOCAB, "hidden_size": HIDDEN, "intermediate_size": FFN, "num_hidden_layers": LAYERS}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256, "tie_word_embeddings": True}
    model = LlamaForCausalLM(LlamaConfig(**shape, **heads)).eval()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), eos_token="</s>")
    asked = requests()
    ways = {
        name: kind(pretrained=model, tokenizer=tokenizer, batch_size=BATCH)
        for name, kind in ((OWN, Model), (THEIRS, HFLM))
    }
    calls = {name: lambda lm=lm: lm._loglikelihood_tokens(asked, disable_tqdm=True) for name, lm in ways.items()}
    peaks = {}
    for name, call in calls.items():
        with peak_memory() as peak:
            call()
        peaks[name] = peak.grown
    seconds = alternate(calls, options.rounds)
    rows = [
        {
            "way": name,
            "CPU seconds": statistics.median(seconds[name]),
            "x lm-eval's": ratio(seconds, name, THEIRS),
            "GB beyond the model": peaks[name] / 1e9,
        }
        for name in calls
    ]
    note = f"{QUESTIONS} questions of {CHOICES} answers; {LAYERS} layers of hidden size {HIDDEN}, vocabulary {VOCAB}."
    record("tasks", "Questions with several answers", rows, [note])


if __name__ == "__main__":
    main(sys.argv[1:])
