"""Run the README's lines on `llama-3.1-8b` itself, downloaded from a hub on this machine that serves random weights.

    python scripts/alias_lines.py --data text.txt    # 40 GB of disk

The model has the shape of Llama 3.1 8B and the demo's tokenizer, so that what it says of text means nothing: it is
about names, sizes, time and memory. Each line runs as a user starts it, in a process of its own; words after the
README's make it small enough for two cores. A line that is done is not run again. Writes a table to --output, or
prints it.
"""

import argparse
import os
import shutil
from pathlib import Path

from four_verbs import Usage, Verbs, table
from stand_in_hub import serving
from studies import write_page

from benchmarks.layer_major import write_random
from minitron_cli.checkpoint import model_names
from minitron_cli.checkpoint.aliases import aliases

ALIAS = "llama-3.1-8b"
LINES = {  # verb -> the README's words after the model and text, and those that make it small
    "importance": ([], ["--sequence-length", "64", "--samples", "4"]),
    "prune": (["--width", "--target", "4B"], ["--candidates", "1", "--repair", "none"]),
    "distill": ([], ["--tokens", "2k", "--dry-run"]),
    "eval": ([], ["--blocks", "4"]),
}


def served(directory: Path) -> Path:
    """Directory of the model, written once."""
    path, unfinished = directory / "served", directory / "unfinished"
    if not path.is_dir():
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        config = dict(aliases()[ALIAS].config) | {"architectures": ["LlamaForCausalLM"], "dtype": "bfloat16"}
        write_random(unfinished, config | {"max_position_embeddings": 8192})
        for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
            shutil.copy(model_names.demo_teacher() / name, unfinished / name)
        unfinished.rename(path)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="text file")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"), help="directory for the model and results")
    parser.add_argument("--lines", nargs="+", choices=LINES, help="only these")
    parser.add_argument("--output", type=Path, help="page to write")
    args = parser.parse_args()
    directory = args.runs_dir.resolve() / "alias-lines"
    rows: dict[str, Usage] = {}
    with serving({aliases()[ALIAS].hub_id: served(directory)}) as address:
        os.environ |= {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(directory / "cache")}
        verbs = Verbs(directory)
        for verb in args.lines or LINES:
            words, smaller = LINES[verb]
            given = [ALIAS, "--data", str(args.data)] if verb == "importance" else []
            shown = [ALIAS, "--data", args.data.name] if given else []
            rows[" ".join(["minitron", verb, *shown, *words, *smaller])] = verbs.usage(verb, [*given, *words, *smaller])
    lines = list(table(rows))
    write_page(args.output, lines) if args.output else print("\n".join(lines))


if __name__ == "__main__":
    main()
