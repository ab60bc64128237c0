"""Metrics of the tasks in this directory."""

from typing import Any

from rouge_score.rouge_scorer import RougeScorer

from minitron_cli.evaluate.code_execution import pass_rate

ROUGE = RougeScorer(["rougeL"], use_stemmer=True)


def rouge_l(references: list[str], predictions: list[str]) -> float:
    """ROUGE-L: F-measure of the longest common subsequence of words."""
    return float(ROUGE.score(references[0], predictions[0])["rougeL"].fmeasure)


def completed(responses: list[list[str]], documents: list[dict[str, Any]]) -> list[list[str]]:
    """Programs that the answers complete: the prompt followed by each answer."""
    return [
        [document["prompt"] + answer for answer in some] for some, document in zip(responses, documents, strict=True)
    ]


def pass_at_1(references: list[str], predictions: list[Any]) -> float:
    """Fraction of a problem's answers that pass its tests."""
    answers = [predictions[0]] if isinstance(predictions[0], str) else predictions[0]
    return pass_rate([f"{answer}\n{references[0]}" for answer in answers])
