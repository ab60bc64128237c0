"""What a user may get wrong: exit code 2 or 3, one clear sentence, and nothing changed on disk."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.cli.program import Run

IMPORTANCE = ("importance", "model", "--data", "text.jsonl", "--samples", "2", "--sequence-length", "16", "--run", "r")

Case = tuple[Callable[[Path], None], tuple[str, ...], int, str]


def path_traversal(root: Path) -> None:
    shutil.move(root / "model/model.safetensors", root / "elsewhere.safetensors")
    names = load_file(root / "elsewhere.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "../elsewhere.safetensors")}
    (root / "model/model.safetensors.index.json").write_text(json.dumps(index))


def truncated(root: Path) -> None:
    os.truncate(root / "model/model.safetensors", (root / "model/model.safetensors").stat().st_size - 100)


def rewritten(root: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    path = root / "model/model.safetensors"
    tensors = load_file(path)
    change(tensors)
    path.unlink()
    save_file(tensors, path, metadata={"format": "pt"})


def missing_tensor(root: Path) -> None:
    rewritten(root, lambda tensors: tensors.pop("model.norm.weight"))


def not_a_number(root: Path) -> None:
    rewritten(root, lambda tensors: tensors["model.layers.1.mlp.up_proj.weight"][3].fill_(float("nan")))


def pickle_only(root: Path) -> None:
    (root / "model/model.safetensors").rename(root / "model/pytorch_model.bin")


def recipe(text: str) -> Callable[[Path], None]:
    return lambda root: (root / "r.yaml").write_text(text) and None


def empty_text(root: Path) -> None:
    (root / "text.jsonl").write_text("")


def unwritable(root: Path) -> None:
    (root / "file").write_text("not a directory")


RECIPE = "model: model\ndata: {sources: [{kind: files, paths: [text.jsonl]}]}\nprune: {shape: {hidden: 32}}\n"

CASES: dict[str, Case] = {
    "path traversal in the index": (path_traversal, IMPORTANCE, 2, "plain file name in the same directory"),
    "truncated shard": (truncated, IMPORTANCE, 2, "truncated .* download it again"),
    "missing tensor": (missing_tensor, IMPORTANCE, 2, r"missing tensors model\.norm\.weight"),
    "weights that are not numbers": (not_a_number, IMPORTANCE, 2, "not finite from decoder layer 1"),
    "pickle only": (pickle_only, IMPORTANCE, 2, "only pickled weights"),
    "unknown recipe key": (recipe(RECIPE + "distil: {steps: 1}\n"), ("run", "r.yaml"), 2, "did you mean distill"),
    "duplicate recipe key": (recipe(RECIPE + "model: other\n"), ("run", "r.yaml"), 2, "r.yaml.*twice|duplicate"),
    "target above the parent": (
        recipe(RECIPE.replace("{shape: {hidden: 32}}", "{budget: {target: 9B}}")),
        ("run", "r.yaml", "importance.samples=2", "data.sequence_length=16", "--dry-run"),
        2,
        "above the parent's .* choose a smaller target",
    ),
    "empty dataset": (empty_text, IMPORTANCE, 2, "text.jsonl.*(empty|no )"),
    "absent file": (lambda root: (root / "text.jsonl").unlink(), IMPORTANCE, 2, "text.jsonl"),
    "unwritable output": (unwritable, (*IMPORTANCE, "--runs-dir", "file/runs"), 3, "file"),
    "absent model offline": (
        lambda root: None,
        ("importance", "meta-llama/Absent-8B", "--data", "text.jsonl", "--offline"),
        3,
        "not in the local cache and downloads are off: fetch it with `hf download meta-llama/Absent-8B`",
    ),
    "no such directory": (
        lambda root: None,
        ("importance", "./absent", "--data", "text.jsonl"),
        2,
        "absent does not exist: give the directory",
    ),
    "more samples than text": (lambda root: None, (*IMPORTANCE, "--samples", "99999"), 2, "lower importance.samples"),
    "prune before importance": (lambda root: None, ("prune", "model", "--target", "1M"), 2, "minitron importance"),
}


def tree(root: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(root)): p.read_bytes() if p.is_file() else None for p in sorted(root.rglob("*"))}


def without_token_cache(files: dict[str, bytes | None]) -> dict[str, bytes | None]:
    """The text's tokens are whole and reusable: they may stay; so may the workspace that holds them and its lock."""
    kept = {"runs", "runs/r", "runs/r/.lock"}
    return {name: content for name, content in files.items() if name not in kept and "/tokens" not in name}


@pytest.mark.parametrize("name", CASES)
def test_broken_input_is_refused_in_one_sentence_and_leaves_nothing(name: str, run: Run, tiny: Path, tmp_path: Path):
    shutil.copytree(tiny, tmp_path, dirs_exist_ok=True)
    damage, command, code, message = CASES[name]
    damage(tmp_path)
    before = tree(tmp_path)

    result = run(*command)

    assert result.exit_code == code, result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    assert len(lines[0]) <= 400
    assert re.search(message, lines[0])
    assert without_token_cache(tree(tmp_path)) == before


@pytest.mark.slow
def test_a_teacher_of_another_vocabulary_is_refused(run: Run, tiny: Path, tmp_path: Path):
    from minitron_cli.data.tokenizer import train_bpe
    from tests.tiny import write_tiny

    shutil.copytree(tiny, tmp_path, dirs_exist_ok=True)
    assert run(*IMPORTANCE, "--no-layer-removal").exit_code == 0
    assert run("prune", "--shape", "hidden=32", "--run", "r").exit_code == 0
    texts = [json.loads(line)["text"] for line in (tmp_path / "text.jsonl").read_text().splitlines()]
    train_bpe(texts, 280, tmp_path / "other")
    write_tiny(tmp_path / "other", vocab_size=280, hidden_size=64, intermediate_size=128)

    result = run("distill", "other", "--steps", "1", "--run", "r")

    assert result.exit_code == 2, result.stderr
    assert "300" in result.stderr
    assert "280" in result.stderr
    assert "distill from the model that the student was pruned from" in result.stderr
    assert not (tmp_path / "runs/r/distill").exists()
