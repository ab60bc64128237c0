"""Compare what two commits compute: tensors and figures of four small families, bit for bit.

    python scripts/same_results.py run /tmp/before --checkout ../minitron-before
    python scripts/same_results.py run /tmp/after
    python scripts/same_results.py compare /tmp/before /tmp/after

`run` makes four random parents, a tokenizer and text, runs the stages below through the command line of a checkout, and
keeps their artifacts with a record of every tensor and number in them. It uses one thread, no accelerator and no
network. A run that was stopped continues with the family that was not finished. `compare` exits with 1 if the second
record lacks something of the first or has another value for it.

Result files may change their layout between two commits, so each tensor and number is looked up twice: where it was
(same file, same name or JSON path), and if nothing is there, anywhere else in the results of the same step (*moved*).
A list of numbers counts as one value, so it can move but not change its order. Single small integers that moved prove
little, as others may have the same value; full-precision floats and hashes of tensors do.

Exempt:
- the ends of confidence intervals (EXEMPT), because Student's t was approximated by hand and is now scipy's. They are
  listed, before and after;
- manifests except their summary (commits before result.json), because keys, hashes and stage versions identify an
  artifact and how it is stored, and follow from the layout of its files;
- `run.json`, which holds clocks and the host, and tokenizer files, which are copied.
"""

import argparse
import hashlib
import json
import os
import platform
import random
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

Value = str
"""Dtype, shape and hash of a tensor, or the exact digits of a number or of a list of numbers."""
Places = dict[str, Value]
"""File and tensor name, or file and JSON path -> value."""

WORDS = "the cat sat on a mat and dog ran over hills while birds sing in tall trees near old stone walls"
PARAMETERS: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}


@dataclass(frozen=True)
class Family:
    """A parent, and the shape that it is pruned to."""

    shape: str
    axes: str
    options: Mapping[str, Any]
    dtype: str = "float32"
    """Dtype of the stored parent."""


FAMILIES = {
    "llama": Family("hidden=48,ffn=64,layer=3", "hidden,ffn,layer", {"attention_bias": True, "mlp_bias": True}),
    "qwen3": Family("hidden=48,ffn=64,head=6", "hidden,ffn", {"attention_bias": True, "tie_word_embeddings": True}),
    "gemma3_text": Family(
        "hidden=48,ffn=64,layer=2",
        "hidden,ffn",
        {"tie_word_embeddings": True, "sliding_window": 12, "sliding_window_pattern": 2, "query_pre_attn_scalar": 8},
        dtype="bfloat16",
    ),
    "mixtral": Family("hidden=48,ffn=64,expert=3", "hidden,ffn", {"num_local_experts": 4, "num_experts_per_tok": 2}),
}

TRAINING = "--steps 6 --batch-size 4 --micro-batch-size 2 --warmup-steps 2 --lr 1e-3 eval_every=3 eval_blocks=6"
STEPS = {
    "importance": "importance parents/{name} --data train.jsonl --validation validation.jsonl --sequence-length 32 "
    "--samples 32 --batch-size 8 --layer-removal pre_activation=true blocks=[2]",
    "search": "search --target 75% --tolerance 0.15 --axes {axes} --candidates 3 --top 2 --rungs 2 "
    "--retrain-tokens 512 --batch-size 4 --lr 1e-3 score_blocks=6 retrain.micro_batch_size=4 retrain.warmup_steps=1",
    "prune plain": "prune --shape {shape} --repair none",
    "prune repaired": "prune --shape {shape} repair_samples=32",
    "distill hidden": f"distill {TRAINING} precision=fp32 'hidden={{{{}}}}' "
    "'losses=[{{kind: forward_kl}}, {{kind: reverse_kl}}, {{kind: cross_entropy}}]'",
    "prune winner": "prune repair_samples=32",
    "distill": f"distill {TRAINING} --export best",
    "eval": "eval --cloze blocks=16 cloze.items=24 cloze.context_words=16 cloze.continuation_words=4",
    "cost": "show cost",
}
"""The command of each step. Steps of a family share a workspace, where each finds the results of those before it."""
COMPUTE = "--device cpu --threads 1 --offline"
"""Options of every command but `show`."""

MANIFEST = "manifest.json"
SUMMARY = "summary"  # part of a manifest that holds results, in commits before result.json
IGNORED_FILES = {"run.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"}
STORED_ELSEWHERE = {"ledger"}
"""Keys of results that are not looked for in artifacts: the cost of a stage is compared as `show cost` prints it."""
CLOCKS = {"run", "device_hours"}
"""Keys of what commands print that hold clocks."""
EXEMPT = {"low", "high"}
"""The ends of 95 % confidence intervals."""
ORIGIN, RECORDS = "origin.json", "records"
MOST_SHOWN = 20  # differences of one step
PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "lm-eval", "datasets", "accelerate")


@dataclass
class Results:
    """Tensors and numbers in the artifacts of one step."""

    tensors: Places = field(default_factory=dict)
    figures: Places = field(default_factory=dict)
    shown: Places = field(default_factory=dict)
    """Numbers that the command printed, which are only searched for figures that moved."""


# Text, tokenizer and parents


def documents(count: int, seed: int, words: int = 300) -> list[str]:
    """Text in which the next word depends on the last one."""
    draw = random.Random(seed)
    lexicon = WORDS.split()
    followers = {word: random.Random(word).sample(lexicon, 4) for word in lexicon}

    def document() -> Iterator[str]:
        word = draw.choice(lexicon)
        for _ in range(words):
            yield word
            word = draw.choice(followers[word])

    return [" ".join(document()) for _ in range(count)]


def write_text(path: Path, texts: Sequence[str]) -> None:
    """Write texts as JSON Lines."""
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def write_tokenizer(directory: Path, texts: Sequence[str]) -> None:
    """A byte-level BPE of the texts, as transformers loads it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    end = "<|endoftext|>"
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=PARAMETERS["vocab_size"], special_tokens=[end], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=end, eos_token=end, pad_token=end).save_pretrained(
        directory
    )


def write_parent(directory: Path, name: str, family: Family) -> None:
    """A random checkpoint whose logits spread by about 1. Norms and biases are random as well."""
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    config = CONFIG_MAPPING[name](**{**PARAMETERS, **family.options})
    generator = torch.Generator().manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for weight in model.parameters():
            noise = torch.randn(weight.shape, generator=generator)
            weight.copy_(1 + 0.3 * noise if weight.ndim == 1 else noise * 1.5 / weight.shape[-1] ** 0.5)
    model.to(getattr(torch, family.dtype)).save_pretrained(directory)


def write_inputs(out: Path) -> None:
    """Write text and parents, unless they exist."""
    if (done := out / "inputs.done").exists():
        return
    train, validation = documents(200, seed=1), documents(12, seed=2)
    write_text(out / "train.jsonl", train)
    write_text(out / "validation.jsonl", validation)
    for name, family in FAMILIES.items():
        write_parent(out / "parents" / name, name, family)
        write_tokenizer(out / "parents" / name, train)
    done.touch()


# Results of a step


def tensors_in(path: Path) -> Places:
    """Dtype, shape and hash of every tensor in a safetensors file, by name."""
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    header.pop("__metadata__", None)
    found = {}
    for name, entry in header.items():
        first, last = (start + offset for offset in entry["data_offsets"])
        found[name] = f"{entry['dtype']} {entry['shape']} {hashlib.sha256(content[first:last]).hexdigest()}"
    return found


def exact(number: Any) -> Value:
    """Digits of a number, equal exactly if two numbers are; 3 and 3.0 are equal."""
    return repr(number).removesuffix(".0")


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def figures_of(content: Any, ignored: Set[str], place: str = "") -> Iterator[tuple[str, Value]]:
    """JSON path and value of each number, or each list of numbers and gaps, except below ignored keys."""
    if is_number(content):
        yield place, exact(content)
    elif isinstance(content, list) and any(map(is_number, content)):
        yield place, " ".join(map(exact, content))
    elif isinstance(content, list):
        for i, value in enumerate(content):
            yield from figures_of(value, ignored, f"{place}[{i}]")
    elif isinstance(content, dict):
        for key in sorted(content.keys() - ignored):
            yield from figures_of(content[key], ignored, f"{place}.{key}")


def figures_in(path: Path) -> Places:
    """Numbers of a JSON or JSON Lines file; of a manifest, those of its summary."""
    text = path.read_text()
    content: Any = [json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else json.loads(text)
    return dict(figures_of(content.get(SUMMARY) if path.name == MANIFEST else content, STORED_ELSEWHERE))


def collect(directory: Path, results: Results) -> None:
    """Add the tensors and figures of one artifact to the results."""
    for path in sorted(directory.iterdir()):
        if path.suffix == ".safetensors":
            results.tensors |= {f"{path.name} {name}": value for name, value in tensors_in(path).items()}
        elif path.suffix in (".json", ".jsonl") and path.name not in IGNORED_FILES:
            results.figures |= {f"{path.name} {place}": value for place, value in figures_in(path).items()}


# Running a checkout


def called(checkout: Path, out: Path, arguments: Sequence[str]) -> str:
    """Output of a Python process in `out` with the package of a checkout, one thread and no network.

    If it fails, the script ends with what the process wrote on stderr.
    """
    environment = os.environ | {
        "PYTHONPATH": str(checkout),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "XDG_CACHE_HOME": str(out / "cache"),
        "MINITRON_RUNS": str(out / "runs"),
    }
    done = subprocess.run([sys.executable, *arguments], cwd=out, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(arguments)}\nfailed with exit code {done.returncode}:\n{done.stderr}")
    return done.stdout


def run_step(checkout: Path, out: Path, name: str, step: str) -> Results:
    """Run one command in the workspace of a family, and collect what it made."""
    family, workspace = FAMILIES[name], out / "runs" / name
    words = [word.format(name=name, axes=family.axes, shape=family.shape) for word in shlex.split(STEPS[step])]
    options = ["--run", name, "--json", *([] if words[0] == "show" else COMPUTE.split())]
    before = set(workspace.rglob(MANIFEST))
    printed = json.loads(called(checkout, out, ["-m", "minitron_cli", *words, *options]))
    results = Results(shown=dict(figures_of(printed, CLOCKS)))
    for manifest in sorted(set(workspace.rglob(MANIFEST)) - before):
        collect(manifest.parent, results)
    if words[0] == "show":  # the names of artifacts end in a part of their key
        results.figures = {re.sub(r"-[0-9a-f]{8}\b", "", place): value for place, value in results.shown.items()}
    if not results.figures:
        sys.exit(f"{name}, {step}: no result with a number in it was found below {workspace}")
    return results


def run_family(checkout: Path, out: Path, name: str) -> None:
    """Run every step on one family, and write the record of what they made. A finished family is left alone."""
    record = out / RECORDS / f"{name}.json"
    if record.exists():
        return
    shutil.rmtree(out / "runs" / name, ignore_errors=True)
    results = {"parent": Results(tensors=tensors_in(out / "parents" / name / "model.safetensors"))}
    for step in STEPS:
        started = time.monotonic()
        results[step] = run_step(checkout, out, name, step)
        print(f"{name}, {step}: {time.monotonic() - started:.0f} s", flush=True)
    write_json(record, {step: asdict(some) for step, some in results.items()})


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file, whole or not at all."""
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=1))
    temporary.replace(path)


def origin(checkout: Path, out: Path) -> dict[str, Any]:
    """Hashes of the checkout's package and commands, and the libraries and processor that rounding depends on."""
    place = called(checkout, out, ["-c", "import minitron_cli; print(minitron_cli.__file__)"]).strip()
    package = checkout / "minitron_cli"
    if Path(place).parent != package:
        sys.exit(f"{place} would be run instead of {package}: give the root of a checkout with --checkout")
    files = sorted(package.rglob("*.py"))
    source = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()
    processor = called(checkout, out, ["-c", "import torch; print(torch.backends.cpu.get_cpu_capability())"]).strip()
    libraries = {name: version(name) for name in PACKAGES}
    commands = hashlib.sha256(repr((PARAMETERS, FAMILIES, STEPS, COMPUTE)).encode()).hexdigest()
    return {
        "source": source,
        "commands": commands,
        "libraries": libraries | {"python": platform.python_version()},
        "processor": processor,
    }


def run(checkout: Path, out: Path, jobs: int) -> None:
    """Make the inputs, run every family, and leave a record of each."""
    out.mkdir(parents=True, exist_ok=True)
    found = origin(checkout, out)
    if (file := out / ORIGIN).exists() and json.loads(file.read_text()) != found:
        sys.exit(f"{out} was started with another commit, other commands or other libraries: give another directory")
    write_json(file, found)
    write_inputs(out)
    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(lambda name: run_family(checkout, out, name), FAMILIES))


# Comparing two records


@dataclass(frozen=True)
class Difference:
    """Value of the first record that the second has neither in the same place nor elsewhere in the step."""

    place: str
    before: Value
    after: Value | None


def is_exempt(place: str) -> bool:
    """Whether a figure is an end of a confidence interval."""
    return place.rpartition(".")[2] in EXEMPT


def compared(before: Places, after: Places, elsewhere: Collection[Value]) -> tuple[int, list[Difference]]:
    """Number of values that moved, and every value that differs or is missing."""
    moved, differences = 0, []
    for place, value in before.items():
        if place not in after and value in elsewhere:
            moved += 1
        elif after.get(place) != value and not is_exempt(place):
            differences.append(Difference(place, value, after.get(place)))
    return moved, differences


def compare_step(name: str, step: str, before: Results, after: Results) -> int:
    """Print one row of the table and the differences below it. Return the number of differences."""
    tensors_moved, tensors = compared(before.tensors, after.tensors, set(after.tensors.values()))
    _, added = compared(after.tensors, before.tensors, set(before.tensors.values()))
    tensors += [Difference(new.place, "none", new.before) for new in added if new.after is None]
    anywhere = {*after.figures.values(), *after.shown.values()}
    checked = {place: value for place, value in before.figures.items() if not is_exempt(place)}
    figures_moved, figures = compared(checked, after.figures, anywhere)
    row = len(before.tensors), tensors_moved, len(tensors), len(checked), figures_moved, len(figures)
    print(f"{name:12} {step:15}" + "".join(f"{count:9,}" for count in row))
    for difference in [*tensors, *figures][:MOST_SHOWN]:
        print(f"    {difference.place}: {difference.before}, then {difference.after or 'not found'}")
    return len(tensors) + len(figures)


def exempt_lines(step: str, before: Results, after: Results) -> Iterator[str]:
    """The ends of confidence intervals in either record."""
    for place in dict.fromkeys([*before.figures, *after.figures]):
        if is_exempt(place):
            yield f"  {step}: {place}: {before.figures.get(place, 'none')}, then {after.figures.get(place, 'none')}"


def records(directory: Path) -> dict[tuple[str, str], Results]:
    """Results by family and step. The script ends if a family is missing."""
    found: dict[tuple[str, str], Results] = {}
    for name in FAMILIES:
        if not (file := directory / RECORDS / f"{name}.json").exists():
            sys.exit(f"{file} does not exist: finish `python {sys.argv[0]} run {directory}` first")
        found |= {(name, step): Results(**some) for step, some in json.loads(file.read_text()).items()}
    return found


def check_origins(first: Path, second: Path) -> None:
    """Print whether the records are of one commit. The script ends if libraries or processors differ."""
    before, after = (json.loads((directory / ORIGIN).read_text()) for directory in (first, second))
    same = before.pop("source") == after.pop("source")
    del before["commands"], after["commands"]  # flags may be renamed between two commits
    print("Both records are of the same source." if same else "The records are of two versions of the source.")
    if before != after:
        sys.exit(
            f"libraries or processors differ, so rounding may differ: {before}, then {after}; run both on one machine"
        )


def compare(first: Path, second: Path) -> int:
    """Print the tables. Return 1 if anything differs that is not exempt."""
    check_origins(first, second)
    before, after = records(first), records(second)
    if before.keys() != after.keys():
        sys.exit(f"the records have different steps, {sorted(before.keys() ^ after.keys())}: run both with one script")
    columns = ("tensors", "moved", "differ", "figures", "moved", "differ")
    print(f"\n{'family':12} {'step':15}" + "".join(f"{column:>9}" for column in columns))
    differences = sum(compare_step(*at, before[at], after[at]) for at in before)
    print("\nExempt: ends of 95 % confidence intervals, before and after")
    for at in before:
        for line in exempt_lines(", ".join(at), before[at], after[at]):
            print(line)
    print(f"\n{differences:,} values differ." if differences else "\nEverything else is equal, bit for bit.")
    return min(differences, 1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    running = verbs.add_parser("run", help="run a checkout and record its results")
    running.add_argument(
        "out", type=Path, help="directory of the record and the artifacts; an unfinished one continues"
    )
    running.add_argument("--checkout", type=Path, default=Path(__file__).parents[1], help="root with minitron_cli/")
    running.add_argument("--jobs", type=int, default=1, help="families that run at a time, one thread each")
    comparing = verbs.add_parser("compare", help="compare two records; exit with 1 if they differ")
    comparing.add_argument("first", type=Path)
    comparing.add_argument("second", type=Path)
    args = parser.parse_args()
    if args.verb == "compare":
        return compare(args.first, args.second)
    run(args.checkout.resolve(), args.out.resolve(), args.jobs)
    return 0


if __name__ == "__main__":
    sys.exit(main())
