"""A few items of every task of the Minitron suite, in the schema that each has on the hub."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

PUBLISHED_SHOTS = {
    "winogrande": 5,
    "arc_challenge": 25,
    "mmlu": 5,
    "hellaswag": 10,
    "gsm8k": 5,
    "truthfulqa_mc2": 0,
    "xlsum_en": 3,
    "mbpp": 0,
    "humaneval": 0,
}
"""Sreenivas et al. 2024, table 1."""
SHOTS = 26  # as many examples as the hungriest task wants, and one


def write(root: Path) -> Path:
    """`root/<task>/...`: some as the hub lays its Parquet out, some as plain JSON lines."""
    for name, rows in {
        "winogrande/winogrande_xl/train-00000-of-00001.parquet": [winogrande(i) for i in range(SHOTS)],
        "winogrande/winogrande_xl/validation-00000-of-00001.parquet": [winogrande(i) for i in range(4)],
        "arc_challenge/train.jsonl": [arc(i) for i in range(SHOTS)],
        "arc_challenge/test.jsonl": [arc(i) for i in range(4)],
        "mmlu/anatomy/dev-00000-of-00001.parquet": [mmlu(i, "anatomy") for i in range(5)],
        "mmlu/anatomy/test-00000-of-00001.parquet": [mmlu(i, "anatomy") for i in range(4)],
        "mmlu/world_religions/dev-00000-of-00001.parquet": [mmlu(i, "world_religions") for i in range(5)],
        "mmlu/world_religions/test-00000-of-00001.parquet": [mmlu(i, "world_religions") for i in range(4)],
        "hellaswag/data/train-00000-of-00001.parquet": [hellaswag(i) for i in range(SHOTS)],
        "hellaswag/data/validation-00000-of-00001.parquet": [hellaswag(i) for i in range(4)],
        "gsm8k/train.json": [gsm8k(i) for i in range(SHOTS)],
        "gsm8k/test.json": [gsm8k(i) for i in range(4)],
        "truthfulqa_mc2/multiple_choice/validation-00000-of-00001.parquet": [truthfulqa(i) for i in range(4)],
        "xlsum_en/train/0000.parquet": [xlsum(i) for i in range(SHOTS)],
        "xlsum_en/test/0000.parquet": [xlsum(i) for i in range(20)],  # of which the first 20 % are asked
        "mbpp/test.jsonl": [mbpp(i) for i in range(4)],
        "humaneval/openai_humaneval/test-00000-of-00001.parquet": [humaneval(i) for i in range(4)],
    }.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".parquet":
            pq.write_table(pa.Table.from_pylist(rows), path)
        elif path.suffix == ".json":
            path.write_text(json.dumps(rows))
        else:
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def winogrande(i: int) -> dict[str, str]:
    return {
        "sentence": f"The cup would not go into case {i} because the _ was too big.",
        "option1": "cup",
        "option2": "case",
        "answer": str(1 + i % 2),
    }


def arc(i: int) -> dict[str, object]:
    return {
        "id": f"Item_{i}",
        "question": f"What melts at {i} degrees?",
        "choices": {"text": ["ice", "iron", "glass", "stone"], "label": ["A", "B", "C", "D"]},
        "answerKey": "ABCD"[i % 4],
    }


def mmlu(i: int, subject: str) -> dict[str, object]:
    return {
        "question": f"Which is number {i}?",
        "subject": subject,
        "choices": [f"one {i}", f"two {i}", f"three {i}", f"four {i}"],
        "answer": i % 4,
    }


def hellaswag(i: int) -> dict[str, object]:
    return {
        "ind": i,
        "activity_label": "Baking",
        "ctx_a": f"A man takes {i} eggs.",
        "ctx_b": "he",
        "ctx": f"A man takes {i} eggs. he",
        "endings": ["beats them.", "paints the door. [step] He waits.", "drives off.", "sings."],
        "source_id": f"activitynet~{i}",
        "split": "val",
        "split_type": "indomain",
        "label": str(i % 4),
    }


def gsm8k(i: int) -> dict[str, str]:
    return {"question": f"Ann has {i} pens and buys 2. How many?", "answer": f"{i} + 2 = {i + 2}.\n#### {i + 2}"}


def truthfulqa(i: int) -> dict[str, object]:
    return {
        "question": f"What is at the end of street {i}?",
        "mc1_targets": {"choices": ["A house.", "A dragon."], "labels": [1, 0]},
        "mc2_targets": {"choices": ["A house.", "A garden.", "A dragon."], "labels": [1, 1, 0]},
    }


def xlsum(i: int) -> dict[str, str]:
    return {
        "id": str(i),
        "url": "https://example.org",
        "title": f"Rain {i}",
        "summary": f"It rained for {i} days.",
        "text": f"In the town it rained for {i} days. People stayed at home.",
    }


def mbpp(i: int) -> dict[str, object]:
    return {
        "task_id": i,
        "text": f"Write a function that adds {i}.",
        "code": f"def add(x):\n    return x + {i}",
        "test_list": [f"assert add({n}) == {n + i}" for n in range(3)],
        "test_setup_code": "",
        "challenge_test_list": [],
    }


def humaneval(i: int) -> dict[str, str]:
    return {
        "task_id": f"HumanEval/{i}",
        "prompt": f'def add(x):\n    """Adds {i}."""\n',
        "entry_point": "add",
        "canonical_solution": f"    return x + {i}\n",
        "test": f"def check(candidate):\n    assert candidate(1) == {1 + i}\n",
    }
