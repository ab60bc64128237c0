"""The model as lm-eval calls it: its own class for transformers, which computes only the logits that are read.

lm-eval takes logits of every position of a prompt and reads those of the answer. With a vocabulary of 262,144 entries
a position that nobody reads costs more than the rest of a small model.
"""

import contextlib
import inspect
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import Any, NamedTuple

import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs
from torch import Tensor

from minitron_cli import progress
from minitron_cli.errors import InputError


class _Request(NamedTuple):
    """A request of lm-eval: its texts, and its tokens."""

    texts: Any
    prompt: list[int]
    answer: list[int]

    def read(self) -> tuple[int, ...]:
        """Tokens that the model reads to predict the answer."""
        return (*self.prompt, *self.answer[:-1])


class Model(HFLM):
    """HFLM that reports finished requests to the progress display, where a run can also be stopped.

    InputError where a context is so short that lm-eval would fail an assertion.
    """

    _positions = 0
    """Last positions whose logits a call returns; 0 for all."""

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        self._tasks = {request.args: request.task_name for request in requests}
        with self._tracked(requests):
            return super().loglikelihood(requests, disable_tqdm)

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        with self._tracked(requests):
            return super().loglikelihood_rolling(requests, disable_tqdm)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        for request in requests:
            wanted = normalize_gen_kwargs(request.args[1], self.max_gen_toks)["max_gen_toks"]
            if wanted >= self.max_length:
                raise InputError(
                    f"task {request.task_name!r} generates up to {wanted:,} tokens, and the model's context has "
                    f"{self.max_length:,}: leave the task out, or lower its max_gen_toks in a YAML of your own"
                )
        with self._tracked(requests):
            return super().generate_until(requests, disable_tqdm)

    def _loglikelihood_tokens(self, requests: list[Any], *args: Any, **options: Any) -> list[tuple[float, bool]]:
        """Log-likelihood of every answer, and whether it is the most probable one, in the batches of lm-eval."""
        asked = [_Request(*request) for request in requests]
        for request in asked:
            if len(request.answer) > self.max_length:
                raise InputError(
                    f"task {self._tasks.get(request.texts, '')!r} has an answer of {len(request.answer):,} tokens, and "
                    f"the model's context has {self.max_length:,}: leave the task out"
                )
        found: dict[int, tuple[float, bool]] = {}
        for batch in _batches(asked, self.batch_size):
            self._positions = _last_positions([asked[i] for i in batch], self.max_length)
            found |= zip(
                batch, super()._loglikelihood_tokens([requests[i] for i in batch], *args, **options), strict=True
            )
        return [found[i] for i in range(len(requests))]

    def _model_call(self, inps: Tensor, attn_mask: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        """Logits [batch, last positions, vocab]; lm-eval counts positions from the end where there are fewer."""
        if "logits_to_keep" not in inspect.signature(self.model.forward).parameters:
            return super()._model_call(inps, attn_mask, labels)
        with torch.no_grad():
            return self.model(inps, logits_to_keep=self._positions, use_cache=False).logits

    @contextlib.contextmanager
    def _tracked(self, requests: list[Any]) -> Iterator[None]:
        with progress.track("tasks", total=len(requests), unit="requests") as step:
            self.set_cache_hook(_StepPerRequest(step))
            yield


class _StepPerRequest:
    """Cache hook of lm-eval, called for each finished request."""

    def __init__(self, step: progress.Step) -> None:
        self.step = step

    def add_partial(self, kind: str, request: Any, answer: Any) -> None:
        self.step()


def _batches(requests: Sequence[_Request], size: int) -> Iterator[list[int]]:
    """Requests of each batch: the longest first, and those that the model reads alike together, which it reads once.

    Answers of other lengths to the same tokens are in other batches: lm-eval would take them for the longest one's.
    """
    alike: dict[tuple[int, ...], dict[int, list[int]]] = {}
    for i, request in enumerate(requests):
        alike.setdefault(request.read(), {}).setdefault(len(request.answer), []).append(i)
    longest_first = sorted(alike, key=lambda read: (-len(read), read))
    for of_turn in zip_longest(*(alike[read].values() for read in longest_first)):
        groups = [group for group in of_turn if group]
        for start in range(0, len(groups), size):
            yield [i for group in groups[start : start + size] for i in group]


def _last_positions(requests: Sequence[_Request], context: int) -> int:
    """Positions from the end, of the batch padded on the right, among which every answer is predicted."""
    lengths = [min(len(request.read()), context) for request in requests]
    answers = [len(request.answer) for request in requests]
    return max(max(lengths) - length + answer for length, answer in zip(lengths, answers, strict=True))
