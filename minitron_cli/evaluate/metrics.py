"""Figures of everything an evaluation measures: title, unit and direction of each. Importable without torch."""

from minitron_cli.evaluate.config import PERPLEXITY as TEXT
from minitron_cli.figures import Figure

LOSS = Figure("loss", "nats/token", better="lower")
PERPLEXITY = Figure("perplexity", better="lower")
KL = Figure("KL to the parent", "nats/token", better="lower")
KL_ORIGINAL = Figure("KL to the original", "nats/token", better="lower")
TEXT_FIGURES = {
    "loss": LOSS,
    "perplexity": PERPLEXITY,
    "kl": KL,
    "kl_original": KL_ORIGINAL,
    "bits_per_byte": Figure("loss per byte", "bits", better="lower"),
    "byte_perplexity": Figure("perplexity per byte", better="lower"),
}
"""Metric -> figure, of what is measured on validation blocks."""

SPEED_FIGURES = {
    "prefill_tokens_per_second": Figure("prefill", "tokens/s", better="higher"),
    "prefill_ratio": Figure("prefill / parent", better="higher"),
    "decode_tokens_per_second": Figure("decode", "tokens/s", better="higher"),
    "decode_ratio": Figure("decode / parent", better="higher"),
    "time_to_first_token_seconds": Figure("time to first token", "s", better="lower"),
    "peak_bytes": Figure("peak memory", style="bytes", better="lower"),
    "libraries_bytes": Figure("memory before loading", style="bytes", better="lower"),
}
"""Field of a speed measurement -> figure."""

LOWER = ("loss", "perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte", "brier_score", "ter")
HIGHER = ("exact_match", "em", "f1", "mcc", "likelihood", "bypass", "chrf", "chrf++", "score")
HIGHER_PREFIXES = ("acc", "bleu", "rouge", "pass@", "pass_at_")


def metric_figure(task: str, metric: str) -> Figure:
    """Figure of a measured value, by the names of its task and metric in the results: (`winogrande`, `acc`)."""
    return TEXT_FIGURES[metric] if task == TEXT else task_figure(metric)


def task_figure(metric: str) -> Figure:
    """Figure of an lm-eval metric, such as `acc`, or `exact_match,strict-match` with its filter after the comma.

    The direction is that of lm-eval's `higher_is_better`; None for names that only the task's author can judge.
    """
    name, _, filter_name = metric.partition(",")
    is_higher = name in HIGHER or name.startswith(HIGHER_PREFIXES)
    title = f"{name} ({filter_name})" if filter_name else name
    return Figure(title, better="lower" if name in LOWER else "higher" if is_higher else None)
