"""A student, a teacher and a few blocks of text, small enough to train within a test."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from minitron_cli import progress
from minitron_cli.distill.config import DistillConfig
from minitron_cli.distill.trainer import TrainResult, train

VOCAB, LENGTH = 61, 12


def llama(seed: int, hidden: int = 16, layers: int = 2, **fields: Any) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=fields.pop("vocab_size", VOCAB),
        hidden_size=hidden,
        intermediate_size=24,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=4,
        initializer_range=0.2,  # at the usual 0.02 all distributions of a tiny model are nearly uniform
        attn_implementation="sdpa",
        **fields,
    )
    torch.manual_seed(seed)
    return LlamaForCausalLM(config).eval()


def student(**fields: Any) -> LlamaForCausalLM:
    return llama(1, **fields)


def teacher(**fields: Any) -> LlamaForCausalLM:
    return llama(2, **{"hidden": 24, "layers": 3, **fields})


class TinyBlocks:
    """Blocks in memory: random tokens, and a document that starts inside every third block."""

    sequence_length = LENGTH

    def __init__(self, count: int = 10, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.ids = torch.randint(0, VOCAB, (count, LENGTH), generator=generator)
        self.fingerprint = hashlib.sha256(self.ids.numpy().tobytes()).hexdigest()
        self.seen: list[int] = []

    def __len__(self) -> int:
        return len(self.ids)

    def tokens(self, i: int) -> Tensor:
        self.seen.append(i)
        return self.ids[i]

    def loss_mask(self, i):
        return None

    def positions(self, i: int) -> Tensor:
        whole = torch.arange(LENGTH)
        return torch.where(whole < 5, whole, whole - 5) if i % 3 == 0 else whole


CONFIG = DistillConfig(
    steps=6,
    batch_size=4,
    micro_batch_size=3,
    learning_rate=1e-2,
    min_learning_rate=1e-3,
    warmup_steps=2,
    eval_every=3,
    save_every=2,
    precision="fp32",
)


def configured(**changes: Any) -> DistillConfig:
    return DistillConfig.model_validate({**CONFIG.model_dump(), **changes})


def run(scratch: Path | None, config: DistillConfig = CONFIG, **options: Any) -> tuple[LlamaForCausalLM, TrainResult]:
    """The trained student and its figures, from fresh copies of everything."""
    model, mentor = options.pop("student", None), options.pop("teacher", None)
    model, mentor = model or student(), mentor or teacher()
    blocks = options.pop("blocks") if "blocks" in options else TinyBlocks()
    held_out = options.pop("held_out") if "held_out" in options else TinyBlocks(5, seed=1)
    return model, train(model, mentor, blocks, held_out, config, scratch, **options)


def state(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


class AfterStep:
    """A display that acts when the bar reaches a step, and keeps what was said."""

    def __init__(self, step: int | None = None, action: Callable[[], None] = lambda: None) -> None:
        self.step, self.action, self.done = step, action, 0
        self.messages: list[str] = []
        self.warned: list[str] = []

    def start(self, title: str, total: int | None, unit: str) -> progress.Step:
        def show(n: int = 1, **figures: float | int | str) -> None:
            self.done += n
            if n and self.done == self.step:
                self.action()

        return show

    def finish(self, step: progress.Step) -> None:
        pass

    def say(self, text: str) -> None:
        self.messages.append(text)

    def priced(self, price: Any) -> None:
        pass

    def warn(self, text: str) -> None:
        self.warned.append(text)
