"""Pages that answer one question: short, and their commands run one after the other on tiny models.

What a page says of an 8B model on GPUs is done here with one of a few thousand weights: sizes and lengths are replaced
by small ones, and what needs hardware or packages that are not here is left out.
"""

import json
import random
import shutil
from importlib.util import find_spec
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from minitron_cli.evaluate import generation_speed
from minitron_cli.evaluate.config import Speed
from tests.cli.program import invoke
from tests.docs.commands import of_minitron, scripts
from tests.docs.pages import ROOT, code
from tests.processes import apart
from tests.tiny import write_tiny
from tests.unit.evaluate import suite_data
from tests.unit.stages.place import WORDS

HOW_TO = sorted((ROOT / "docs" / "how-to").glob("*.md"))
LONGEST = 60
MODELS = (
    "llama-3.1-8b",
    "llama-3.2-3b",
    "meta-llama/Llama-3.2-3B-Instruct",
    "qwen3-4b",
    "qwen3-8b",
    *(f"models/{name}" for name in ("parent", "child", "one", "other", "small-int8")),
)
ONLY_READ = ("run", "study", "push")  # by tests/docs/test_commands.py: they take minutes, or a network
SMALL = {
    "--sequence-length": "16",
    "--tokens": "128",
    "--batch-size": "4",
    "--drop-layers": "1",
    "--lr": "1e-4",
    "--target": "75%",
}
CLOZE = ["cloze.items=8", "cloze.context_words=6", "cloze.continuation_words=2"]
HARDWARE = {"--gpus", "--sharding", "--tracker"}
TEMPLATE = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


@pytest.mark.parametrize("page", HOW_TO, ids=lambda page: page.stem)
def test_a_page_is_short_and_has_commands(page: Path) -> None:
    assert len(page.read_text().splitlines()) <= LONGEST
    assert calls(page)


def calls(page: Path) -> list[list[str]]:
    """The arguments of every call of the program in a block of a page."""
    blocks = (piece for piece in code(page) if piece.is_block)
    return [words for block in blocks for script in scripts(block) for words in of_minitron(script)]


def in_small(words: list[str]) -> list[str]:
    """A command as it is run here."""
    found: list[str] = []
    for before, word in zip(["", *words], words, strict=False):
        if word in HARDWARE or before in HARDWARE:
            continue
        if word == "optimizer=adamw_8bit" and not find_spec("torchao"):
            continue
        shorter = SMALL.get(before, word)
        if before == "--target" and word == "95%":
            shorter = word
        if before == "--shape":
            shorter = _shape(word)
        found.append(shorter.replace("[[30, 30]]", "[[2, 2]]"))
    return found + _further(found)


def _shape(text: str) -> str:
    """Sizes below those of the tiny model; of a single axis, the size that the model in `small` has."""
    if "," in text:
        return "hidden=48,ffn=96"
    return f"ffn={json.loads(Path('small/config.json').read_text())['intermediate_size']}"


def _further(words: list[str]) -> list[str]:
    """Settings without which a small run would be a long one."""
    texts = "--data" in words and "--sequence-length" not in words
    near = ["--tolerance", "0.2", "--candidates", "2"]
    of = {
        "importance": ["--samples", "4", "batch_size=4"],
        "prune": [*(near if {"--target", "--method"} & {*words} else []), "repair_samples=16"],
        "search": [*near, "score_blocks=8"],
        "distill": ["eval_blocks=4"],
        "eval": [] if "--no-perplexity" in words else ["blocks=8"],
    }
    return [
        *(["--sequence-length", "16"] if texts else []),
        *of.get(words[0], []),
        *(["speed.prompt_tokens=8", "speed.new_tokens=2", "speed.rounds=1"] if "--speed" in words else []),
        *(CLOZE if "--cloze" in words else []),
    ]


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with all models and texts that the pages name."""
    from minitron_cli.data.tokenizer import train_bpe

    root = tmp_path_factory.mktemp("how-to")
    draw = random.Random(0)
    documents = [" ".join(draw.choices(WORDS.split(), k=80)) for _ in range(200)]
    train_bpe(documents, 300, root / "tokenizer")
    write_tiny(root / "tiny", vocab_size=300, hidden_size=64, intermediate_size=128, max_position_embeddings=1024)
    for file in (root / "tokenizer").iterdir():
        shutil.copy(file, root / "tiny")
    for name in MODELS:
        (root / name).parent.mkdir(exist_ok=True)
        shutil.copytree(root / "tiny", root / name)
        if not name.startswith("llama-"):  # base models
            _add_template(root / name / "tokenizer_config.json")
    for name in ("corpus/a.parquet", "more/b.parquet"):
        (root / name).parent.mkdir(exist_ok=True)
        pq.write_table(pa.table({"text": documents}), root / name)
    (root / "held-out.jsonl").write_text("".join(json.dumps({"text": text[::-1]}) + "\n" for text in documents[:20]))
    turns = [[{"role": "user", "content": a[:40]}, {"role": "assistant", "content": a[40:120]}] for a in documents]
    (root / "chats.jsonl").write_text("".join(json.dumps({"messages": turn}) + "\n" for turn in turns))
    suite_data.write(root / "benchmarks")
    (root / "benchmarks" / "gsm8k").rename(root / "benchmarks" / "moved")
    (root / "benchmarks" / "gsm8k").mkdir()
    (root / "benchmarks" / "moved").rename(root / "benchmarks" / "gsm8k" / "main")  # where the hub has it
    return root


def _add_template(path: Path) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": TEMPLATE}))


def _peak_memory(path: Path, config: Speed, *, device: str, dtype: str) -> dict[str, int]:
    """In a fork instead of a new program, which tests/unit/evaluate/test_generation_speed.py starts."""
    found: dict[str, int] = apart(generation_speed._measure_alone, str(path), config.model_dump_json(), device, dtype)
    return found


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("page", HOW_TO, ids=lambda page: page.stem)
def test_the_commands_of_a_page_run(page: Path, stage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for entry in stage.iterdir():
        (tmp_path / entry.name).symlink_to(entry)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MINITRON_RUNS", raising=False)
    monkeypatch.setattr(generation_speed, "peak_memory", _peak_memory)
    run = [words for words in calls(page) if words[0] not in ONLY_READ]
    assert run
    for words in map(in_small, run):  # each once the one before has run
        result = invoke(*words)
        assert result.exit_code == 0, f"minitron {' '.join(words)}\n{result.output}"
