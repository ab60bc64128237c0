"""A multimodal wrapper through the verbs: a wrapper comes out of each, or the text model alone where that is asked."""

import json
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from tests.cli.program import Run
from tests.tiny_wrappers import prompt, saved_wrapper, text_prompt

AROUND = {"gemma3": "vision_tower.", "qwen3_vl": "model.visual.blocks."}
TRAINING = ("--steps", 1, "--lr", 1e-3, "--batch-size", 2, "--micro-batch-size", 2, "eval_blocks=2")


def ids(path: Path) -> Path:
    draw = random.Random(0)
    lines = (json.dumps({"input_ids": [draw.randrange(1, 59) for _ in range(64)]}) for _ in range(40))
    path.write_text("\n".join(lines))
    return path


def image_logits(path: Path, kind: str) -> torch.Tensor:
    model, info = AutoModelForImageTextToText.from_pretrained(path, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.inference_mode():
        found: torch.Tensor = model.eval()(**prompt(kind)).logits
    return found


@pytest.mark.slow
@pytest.mark.parametrize("kind", AROUND)
def test_a_wrapper_through_the_verbs(kind: str, run: Run, tmp_path: Path) -> None:
    saved_wrapper(tmp_path / "model", kind)
    data = ("--data", f"ids:{ids(tmp_path / 'ids.jsonl')}", "--sequence-length", 16)

    def ok(*words: object) -> str:
        result = run(*words)
        assert result.exit_code == 0, result.stderr
        return result.stdout

    ok("importance", "model", *data, "--samples", 8)
    facts = json.loads(ok("inspect", "model", "--json"))
    assert facts["wrapper"]["model_type"] == kind
    ok("prune", "--shape", "hidden=24,ffn=40", "--repair", "none", "--as", "text", "-o", "text")
    ok("prune", "--shape", "hidden=24,ffn=40", "--repair", "none", "-o", "pruned")
    ok("distill", *TRAINING, "-o", "student")
    ok("eval", "--json")
    ok("report", "-o", "page.html")
    assert "on text alone" in Path("page.html").read_text()
    ok("distill", *TRAINING, "--as", "text", "-o", "student-text")
    ok("sparsify", "pruned", "--pattern", "50%", "--metric", "magnitude", "-o", "sparse")

    before = load_file("model/model.safetensors")
    for child in ("pruned", "student", "sparse"):
        after = load_file(f"{child}/model.safetensors")
        same = [name for name in before if name.startswith(AROUND[kind])]
        assert same
        assert all(torch.equal(before[name], after[name]) for name in same)
        assert image_logits(Path(child), kind).isfinite().all()
        assert (Path(child) / "preprocessor_config.json").is_file()
    assert not torch.equal(image_logits(Path("pruned"), kind), image_logits(Path("student"), kind))
    for wrapped, alone in (("pruned", "text"), ("student", "student-text")):
        text = AutoModelForCausalLM.from_pretrained(alone).eval()
        whole = AutoModelForImageTextToText.from_pretrained(wrapped).eval()
        with torch.inference_mode():
            assert torch.equal(text(text_prompt()).logits, whole(input_ids=text_prompt()).logits)


def test_as_is_an_option_of_what_writes_a_checkpoint(run: Run) -> None:
    for verb in ("prune", "distill", "sparsify", "correct"):
        assert "--as" in run(verb, "--help").stdout


RECIPE = """
model: model
data: {sources: [{kind: input_ids, paths: [ids.jsonl]}], sequence_length: 16}
importance: {samples: 4, layer_removal: false}
prune: {write_as: text, repair: none%s}
evaluate: {blocks: 2}
report: false
"""
SEARCH = """
search:
  {budget: {target: 75%, tolerance: 0.3}, retrain: null, score_blocks: 2, candidates: 2, space: {hidden: [24, 32]}}
distill: {steps: 1, batch_size: 2, micro_batch_size: 2, warmup_steps: 0, learning_rate: 1.0e-3, eval_blocks: 2}
controls: [{label: random, prune: random}]
"""


@pytest.mark.slow
def test_a_recipe_prunes_hidden_of_a_text_model_alone(run: Run, tmp_path: Path) -> None:
    """Where the wrapper has none to prune: as a shape, by a search, and in the control at random."""
    saved_wrapper(tmp_path / "model", "internvl")
    ids(tmp_path / "ids.jsonl")
    for name, text in (("shape", RECIPE % ", shape: {hidden: 24}"), ("search", RECIPE % "" + SEARCH)):
        (tmp_path / f"{name}.yaml").write_text(text)
        for words in (("--dry-run",), ()):
            result = run("run", f"{name}.yaml", "--run", name, *words)
            assert result.exit_code == 0, result.stderr
