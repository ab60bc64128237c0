"""Generation speed of two models, timed in alternation, and the peak memory of each. Knows no text.

The speed of a machine drifts, so parent and child alternate and medians are reported. Generation is that of
transformers, with its KV cache. Memory is that of a separate process, which loads one model and generates once.
"""

# B sequence of the batch, T token of the prompt

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minitron_cli import memory, progress, stopping
from minitron_cli.checkpoint import hf
from minitron_cli.errors import InputError, RunFailed
from minitron_cli.evaluate.config import Speed

SEED = 0


@dataclass(frozen=True)
class GenerationRates:
    """Speed of one model; medians over the rounds."""

    prefill_tokens_per_second: float
    """Prompt tokens read per second, until the first new token."""
    decode_tokens_per_second: float
    """New tokens per second after the first, over all sequences of the batch."""
    time_to_first_token_seconds: float


@dataclass(frozen=True)
class SpeedComparison:
    """Speed of two models, timed in alternation."""

    parent: GenerationRates
    model: GenerationRates
    prefill_ratio: float
    """Speed over the parent's, median over rounds."""
    prefill_range: tuple[float, float]
    """Lowest and highest ratio of a round."""
    decode_ratio: float
    decode_range: tuple[float, float]


def compare(model: Any, parent: Any, config: Speed) -> SpeedComparison:
    """Time both models on the same prompts, in alternation; the order is reversed every round."""
    check_lengths([model.config, parent.config], config)
    prompt_BT = _prompt(min(parent, model, key=lambda one: one.config.vocab_size), config)  # tokens that both have
    subjects = {"parent": parent, "model": model}
    for subject in subjects.values():
        _generate(subject, prompt_BT, config)  # warm-up: kernels are selected and memory is allocated
    rounds: dict[str, list[GenerationRates]] = {name: [] for name in subjects}
    with progress.track("speed", total=config.rounds, unit="rounds") as step:
        for i in range(config.rounds):
            for name in sorted(subjects, reverse=i % 2 == 0):
                rounds[name].append(_generate(subjects[name], prompt_BT, config))
            step(decode=_ratios(rounds, "decode_tokens_per_second")[-1])
    prefill, decode = (_ratios(rounds, f"{phase}_tokens_per_second") for phase in ("prefill", "decode"))
    return SpeedComparison(
        parent=_median(rounds["parent"]),
        model=_median(rounds["model"]),
        prefill_ratio=statistics.median(prefill),
        prefill_range=(min(prefill), max(prefill)),
        decode_ratio=statistics.median(decode),
        decode_range=(min(decode), max(decode)),
    )


def check_lengths(configs: Iterable[Any], config: Speed) -> None:
    """Raise InputError if a model has too few positions for the prompt and the new tokens."""
    limit = min(one.get_text_config().max_position_embeddings for one in configs)
    if (length := config.prompt_tokens + config.new_tokens) > limit:
        raise InputError(
            f"speed: a prompt of {config.prompt_tokens:,} and {config.new_tokens:,} new tokens are {length:,}, and the "
            f"model has {limit:,} positions; lower speed.prompt_tokens or speed.new_tokens"
        )


def _ratios(rounds: Mapping[str, list[GenerationRates]], figure: str) -> list[float]:
    pairs = zip(rounds["model"], rounds["parent"], strict=True)
    return [getattr(model, figure) / getattr(parent, figure) for model, parent in pairs]


def _median(rounds: list[GenerationRates]) -> GenerationRates:
    return GenerationRates(
        **{name: statistics.median(asdict(rates)[name] for rates in rounds) for name in asdict(rounds[0])}
    )


def _prompt(model: Any, config: Speed) -> Tensor:
    """Random tokens [B, T]; the work does not depend on their content."""
    generator = torch.Generator().manual_seed(SEED)
    size = config.batch_size, config.prompt_tokens
    return torch.randint(model.config.vocab_size, size, generator=generator).to(model.device)


@torch.inference_mode()
def _generate(model: Any, prompt_BT: Tensor, config: Speed) -> GenerationRates:
    """Speed of one generation, timed at every new token."""
    from transformers import LogitsProcessorList

    clock = _TokenTimes(model.device)
    cache = {"cache_implementation": "static"} if config.cache == "static" else {}
    started = clock.now()
    with hf.without_generation_config(model):
        tokens_BT = model.generate(
            prompt_BT,
            attention_mask=torch.ones_like(prompt_BT),
            do_sample=False,
            min_new_tokens=config.new_tokens,
            max_new_tokens=config.new_tokens,
            pad_token_id=0,
            logits_processor=LogitsProcessorList([clock]),
            **cache,
        )
    assert tokens_BT.shape[1] == prompt_BT.shape[1] + config.new_tokens
    first, last = clock.times[0], clock.times[-1]
    return GenerationRates(
        prompt_BT.numel() / (first - started),
        len(prompt_BT) * (config.new_tokens - 1) / (last - first),
        first - started,
    )


class _TokenTimes:
    """Logits processor that records the time at which the logits of each token are ready."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.times: list[float] = []

    def __call__(self, tokens_BT: Tensor, logits_BV: Tensor) -> Tensor:
        self.times.append(self.now())
        return logits_BV

    def now(self) -> float:
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)
        return time.perf_counter()


# memory


def peak_memory(path: Path, config: Speed, *, device: str, dtype: str) -> dict[str, int]:
    """Peak memory of a process that loads the model and generates once: `peak_bytes`, of which `libraries_bytes` were
    in use before the model was loaded.

    Accelerator memory on an accelerator, else resident memory. Empty if the system does not report it.
    """
    asked = [str(path), config.model_dump_json(), device, dtype]
    command = [sys.executable, "-m", "minitron_cli.evaluate.generation_speed", *asked]
    with stopping.interruptible():
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RunFailed(f"the memory of {path} could not be measured ({last[:200]}); leave out --speed")
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found


def _measure_alone(path: str, settings: str, device: str, dtype: str) -> dict[str, int]:
    from minitron_cli.checkpoint import hf

    config = Speed.model_validate_json(settings)
    torch.zeros(1, device=device)
    before = memory.peak_bytes(device)
    model = hf.load_model(Path(path), device=device, dtype=dtype)
    _generate(model, _prompt(model, config), config)
    after = memory.peak_bytes(device)
    return {"peak_bytes": after, "libraries_bytes": before} if before is not None and after is not None else {}


if __name__ == "__main__":
    print(json.dumps(_measure_alone(*sys.argv[1:])))
