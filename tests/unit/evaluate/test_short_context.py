"""A model whose context is too short for a task is refused in words, where lm-eval fails an assertion."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from minitron_cli.data.tokenizer import train_bpe
from minitron_cli.errors import InputError
from minitron_cli.evaluate.config import Task
from minitron_cli.evaluate.lm_eval_runner import run_tasks
from minitron_cli.evaluate.tasks import TaskLocations
from tests.tiny import tiny_model

CONTEXT = 24
COMMON = {
    "task": "own",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"validation": "items.jsonl"}},
    "validation_split": "validation",
    "doc_to_text": "{{question}}",
}
GENERATE = {"output_type": "generate_until", "doc_to_target": "answer", "metric_list": [{"metric": "exact_match"}]}
CHOICE = {
    "output_type": "multiple_choice",
    "doc_to_choice": "choices",
    "doc_to_target": "gold",
    "metric_list": [{"metric": "acc"}],
}


def ask(root: Path, task: dict[str, Any], answer: str) -> None:
    item = {"question": "which one?", "answer": answer, "choices": [answer, "no"], "gold": 0}
    (root / "items.jsonl").write_text("\n".join(json.dumps(item) for _ in range(3)))
    files = {"validation": str(root / "items.jsonl")}
    (root / "own.yaml").write_text(yaml.safe_dump(COMMON | {"dataset_kwargs": {"data_files": files}} | task))
    train_bpe(["which one? no answer " * 20], 260, root / "tokenizer")
    from minitron_cli.checkpoint import hf

    model = tiny_model("llama", vocab_size=260, max_position_embeddings=CONTEXT)
    run_tasks(model, hf.load_tokenizer(root / "tokenizer"), [Task.parse("own")], locations=TaskLocations(root))


@pytest.mark.parametrize("tokens", [CONTEXT, CONTEXT + 1])
def test_more_generated_tokens_than_the_context_has(tmp_path: Path, tokens: int) -> None:
    says = f"task 'own' generates up to {tokens} tokens, and the model's context has 24: leave the task out"
    with pytest.raises(InputError, match=says):
        ask(tmp_path, GENERATE | {"generation_kwargs": {"until": ["."], "max_gen_toks": tokens}}, "yes")


def test_an_answer_longer_than_the_context(tmp_path: Path) -> None:
    says = r"task 'own' has an answer of \d+ tokens, and the model's context has 24: leave the task out"
    with pytest.raises(InputError, match=says):
        ask(tmp_path, CHOICE, "xyz" * 20)


def test_what_just_fits_is_asked(tmp_path: Path) -> None:
    ask(tmp_path, GENERATE | {"generation_kwargs": {"until": ["."], "max_gen_toks": CONTEXT - 1}}, "yes")
