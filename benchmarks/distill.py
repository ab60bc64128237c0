"""Compare the distillation loss and step with the common ways to compute them.

    python -m benchmarks distill            # all parts: about fifteen minutes on one thread
    python -m benchmarks distill loss step  # some parts

Parts: loss (forward KL through both LM heads, forward and backward, vocabulary 128256, against TRL), rivals (against
other libraries), losses (the other losses against forward KL), bf16 (loss in bf16), step (a whole step against a
teacher's forward pass and a student's cross-entropy step in transformers).

If TRL and liger-kernel are installed, their functions are measured; otherwise TRL's is reimplemented here. torchtune's
always is, because its last release cannot be imported with a current torchao.
"""

import ctypes
import gc
import os
import statistics
import sys
import warnings
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from benchmarks.harness import alternate, peak_memory, ratio, record
from benchmarks.layer_major import batches, llama
from minitron_cli.checkpoint import hf
from minitron_cli.distill.config import DistillConfig, HiddenLosses
from minitron_cli.distill.distributed import ProcessGroup
from minitron_cli.distill.fused.objective import HeadInput, fused_objective
from minitron_cli.distill.hidden_state_losses import Norms, relation_pairs, state_pairs
from minitron_cli.distill.losses.cosine import Cosine
from minitron_cli.distill.losses.cross_entropy import CrossEntropy
from minitron_cli.distill.losses.forward_kl import ForwardKL
from minitron_cli.distill.losses.jsd import JSD
from minitron_cli.distill.losses.mse import MSE
from minitron_cli.distill.losses.reverse_kl import ReverseKL
from minitron_cli.distill.model_pair import ModelPair
from minitron_cli.distill.optimizer import Optimizer
from minitron_cli.distill.targets import targets
from minitron_cli.model.families.llama import LLAMA
from minitron_cli.model.lm_head import Head
from minitron_cli.model.shape import Shape

VOCAB, TOKENS, TEACHER, STUDENT = 128256, 512, 768, 512
STEP_VOCAB, LAYERS, TEACHER_HIDDEN, STUDENT_HIDDEN = 32768, 12, 512, 384
MiB = 2**20

Rows = list[dict[str, Any]]
Ways = dict[str, Callable[[], Tensor]]
"""Implementations of one loss, by name."""


class Case:
    """Random hidden states and heads of both models. Each implementation stores its gradients in `gradients`."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        generator = torch.Generator().manual_seed(0)

        def normal(rows: int, columns: int, scale: float) -> Tensor:
            return (torch.randn(rows, columns, generator=generator) * scale).to(dtype)

        self.teacher_ND, self.teacher_VD = normal(TOKENS, TEACHER, 1), normal(VOCAB, TEACHER, 2 * TEACHER**-0.5)
        self.student_ND = normal(TOKENS, STUDENT, 1).requires_grad_()
        self.student_VD = normal(VOCAB, STUDENT, 2 * STUDENT**-0.5).requires_grad_()
        self.labels_N = torch.randint(0, VOCAB, (TOKENS,), generator=generator)

    def beside_trl(self) -> Ways:
        """Ours and TRL's by increasing memory, because memory freed by one call hides the growth of the next."""
        low, fast = (lambda low=low: self.ours(ForwardKL(), low) for low in (True, False))
        return {"ours, low memory": low, "ours": fast, **self.trl()}

    def rivals(self) -> Ways:
        """Ours and those of other libraries."""
        return {
            "ours": lambda: self.ours(ForwardKL()),
            **self.liger(),
            "full logits, as DistillKit and ModelOpt": self.full_logits,
            "chunk and keep, as torchtune": self.chunk_and_keep,
            **self.trl(),
        }

    def ours(self, loss: Any, low_memory: bool = False) -> Tensor:
        """One of minitron's losses, with its gradients."""
        student, teacher = (
            HeadInput(self.student_ND, Head(self.student_VD)),
            HeadInput(self.teacher_ND, Head(self.teacher_VD)),
        )
        return self.done(fused_objective([loss], student, teacher, self.labels_N, low_memory=low_memory).total)

    def logits(self, rows: slice = slice(None)) -> tuple[Tensor, Tensor]:
        """Logits of student and teacher for some tokens, [N, V] each."""
        with torch.no_grad():
            teacher_NV = F.linear(self.teacher_ND[rows], self.teacher_VD)
        return F.linear(self.student_ND[rows], self.student_VD), teacher_NV

    def full_logits(self) -> Tensor:
        """KL on the logits of all tokens at once."""
        student_NV, teacher_NV = self.logits()
        target = F.softmax(teacher_NV.float(), -1)
        return self.done(F.kl_div(F.log_softmax(student_NV.float(), -1), target, reduction="batchmean"))

    def chunk_and_keep(self, chunks: int = 8) -> Tensor:
        """KL by chunks of tokens whose logits and softmaxes are kept for the backward pass."""
        size, total = TOKENS // chunks, self.student_ND.new_zeros(())
        for start in range(0, TOKENS, size):
            student_CV, teacher_CV = self.logits(slice(start, start + size))
            target = F.softmax(teacher_CV, -1, dtype=torch.float32)
            log_p = F.log_softmax(student_CV, -1, dtype=torch.float32)
            total = total - torch.masked_fill(target * log_p, torch.isinf(student_CV), 0).sum()
        return self.done(total / TOKENS)

    def trl(self) -> Ways:
        """TRL's GKD loss at beta 0, or a copy of it. Without a mask, which would copy the logits once more."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                from trl.experimental.gkd import GKDTrainer
        except ImportError:
            return {"full logits, as TRL": lambda: self.done(as_trl(*self.logits()))}
        return {"TRL": lambda: self.done(GKDTrainer.generalized_jsd_loss(*self.logits(), beta=0))}

    def liger(self) -> Ways:
        """liger-kernel's fused loss; empty if it is not installed."""
        try:
            from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss
        except ImportError:
            return {}
        loss = LigerFusedLinearJSDLoss(0.0, 1.0, beta=0.0, compiled=False, chunk_size=128)
        sides = self.student_ND, self.student_VD, self.teacher_ND, self.teacher_VD
        return {"liger-kernel, chunks of 128": lambda: self.done(loss(*sides, self.labels_N))}

    def done(self, loss: Tensor) -> Tensor:
        """Run the backward pass and move the gradients to `gradients`."""
        loss.backward()
        self.gradients = self.student_ND.grad, self.student_VD.grad
        self.student_ND.grad = self.student_VD.grad = None
        return loss.detach()

    def products(self) -> Tensor:
        """Matrix products that every implementation needs, on meaningless logits."""
        student_NV, teacher_NV = self.logits()
        with torch.no_grad():
            torch.mm(teacher_NV, self.student_VD)
            torch.mm(teacher_NV.T, self.student_ND)
        return student_NV.detach()[0, 0]


def as_trl(student_NV: Tensor, teacher_NV: Tensor, temperature: float = 1.0) -> Tensor:
    """TRL's GKD loss at beta 0 from logits [N, V]."""
    student_NV, teacher_NV = student_NV / temperature, teacher_NV / temperature
    log_p_NV, log_target_NV = F.log_softmax(student_NV, -1), F.log_softmax(teacher_NV, -1)
    return F.kl_div(log_p_NV, log_target_NV, reduction="none", log_target=True).sum() / len(student_NV)


def loss(dtype: torch.dtype = torch.float32) -> Rows:
    """Part `loss`."""
    case = Case(dtype)
    return compared(case, case.beside_trl())


def rivals() -> Rows:
    """Part `rivals`."""
    case = Case()
    return compared(case, case.rivals(), {"the products alone": case.products})


def compared(case: Case, ways: Ways, more: Ways | None = None, rounds: int = 2) -> Rows:
    """Rows with time, memory and error of each implementation; `more` are only timed."""
    to = "TRL" if "TRL" in ways else "full logits, as TRL"
    beyond, wrong = {}, {}
    for name, way in ways.items():
        beyond[name] = memory(way) - case.student_VD.nbytes
        wrong[name] = distance(case, way)
    seconds = alternate({**ways, **(more or {})}, rounds)
    is_fp32 = case.student_VD.dtype == torch.float32
    targets_of = {"ours": (0.82, 3), "ours, low memory": (1.1, 60)} if is_fp32 else {}
    rows = []
    for name in seconds:
        aims = targets_of.get(name)
        row: dict[str, Any] = {
            "forward KL": name,
            "seconds": statistics.median(seconds[name]),
            f"x {to}'s time": ratio(seconds, name, to),
            "target, time": aims[0] if aims else "",
        }
        if name in beyond:
            row |= {
                "MiB beyond the head's gradient": beyond[name] / MiB,
                f"1 / of {to}'s": beyond[to] / beyond[name],
                "target, memory": aims[1] if aims else "",
                "gradients off by": wrong[name],
            }
        rows.append(row)
    return rows


def memory(way: Callable[[], object]) -> int:
    """Bytes that a call adds at its peak. Memory freed earlier is returned to the system first."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    with peak_memory() as peak:
        way()
    return peak.grown


def distance(case: Case, way: Callable[[], object]) -> float:
    """Relative error of the head's gradient after a call, against ours in the first rows."""
    some = slice(0, 4096)
    found = case.gradients[1][some].float()
    if not hasattr(case, "exact"):
        case.ours(ForwardKL())
        case.exact = case.gradients[1][some].float().clone()
    case.gradients = None
    return float((found - case.exact).norm() / case.exact.norm())


def every_loss(rounds: int = 2) -> Rows:
    """Part `losses`."""
    case = Case()
    ways = {
        loss.kind + (", low memory" if low else ""): lambda loss=loss, low=low: case.ours(loss, low)
        for loss, low in (
            (ForwardKL(), False),
            (ReverseKL(), False),
            (ReverseKL(), True),
            (JSD(), False),
            (MSE(), False),
            (Cosine(), False),
            (CrossEntropy(), False),
            (CrossEntropy(), True),
        )
    }
    seconds = alternate(ways, rounds)
    return [
        {"loss": name, "seconds": statistics.median(seconds[name]), "x forward_kl": ratio(seconds, name, "forward_kl")}
        for name in ways
    ]


class Step:
    """One optimizer step of a student, as the training loop does it."""

    def __init__(self, precision: str = "fp32", **settings: Any) -> None:
        config = DistillConfig(steps=1, **settings)
        pairs: tuple[Any, ...] = ()
        if config.hidden is not None:
            norms = Norms.of(norm.removesuffix(".weight") for norm in LLAMA.links)
            shape = Shape(LLAMA, {"layer": LAYERS, "head": 8, "kv_head": 4, "head_dim": 64}, (), {})
            pairs = (
                *state_pairs(config.hidden, norms, LAYERS, LAYERS),
                *relation_pairs(config.hidden, shape, shape),
            )
        models = model_of(STUDENT_HIDDEN), model_of(TEACHER_HIDDEN, precision)
        self.models = ModelPair(*models, config, pairs, ProcessGroup("cpu"), precision)
        self.models.student.train()
        self.optimizer = Optimizer(self.models.trained(), config)
        self.batch = batches(2, 256, STEP_VOCAB, 2)[0]
        self.hidden_weight = 0.1 if pairs else 0.0

    def __call__(self) -> None:
        target = targets(self.batch)
        losses = self.models.losses(self.batch, target, len(target.labels_N), self.hidden_weight)
        losses.total.backward()
        self.optimizer.clip_()
        self.optimizer.step_(1e-5)


@cache  # steps share models and have their own optimizers
def model_of(hidden: int, precision: str = "fp32") -> Any:
    """Tied Llama of random weights. `precision` only distinguishes copies, which the trainer casts."""
    config = llama(LAYERS, hidden, 3 * hidden, STEP_VOCAB, 8, 4) | {"head_dim": 64, "tie_word_embeddings": True}
    torch.manual_seed(hidden)
    typed = hf.config_from_dict(config, "the benchmark")
    return AutoModelForCausalLM.from_config(typed, dtype=torch.float32, attn_implementation="sdpa")


def bare() -> tuple[Callable[[], None], Callable[[], None]]:
    """Steps in transformers alone: the teacher's forward pass and the student's step with cross-entropy, or with KL."""
    teacher, student = model_of(TEACHER_HIDDEN).eval(), model_of(STUDENT_HIDDEN).train()
    adamw = torch.optim.AdamW(student.parameters(), lr=1e-5, fused=True)
    ids = batches(2, 256, STEP_VOCAB, 2)[0].input_ids_BT

    def taught(loss_of: Callable[[Tensor, Tensor], Tensor]) -> Callable[[], None]:
        def step() -> None:
            with torch.no_grad():
                wanted = teacher(ids, use_cache=False).logits
            loss_of(student(ids, use_cache=False).logits[:, :-1].flatten(0, 1), wanted[:, :-1].flatten(0, 1)).backward()
            adamw.step()
            adamw.zero_grad()

        return step

    def kl(logits_NV: Tensor, wanted_NV: Tensor) -> Tensor:
        return F.kl_div(
            F.log_softmax(logits_NV, -1), F.log_softmax(wanted_NV, -1), log_target=True, reduction="batchmean"
        )

    return taught(lambda logits_NV, _: F.cross_entropy(logits_NV, ids[:, 1:].flatten())), taught(kl)


HIDDEN_STATES = "ours, fp32, hidden states"


def step(rounds: int = 2) -> Rows:
    """Part `step`."""
    plain, naive = bare()
    states = ("block_output", "embedding")
    layers = ((LAYERS - 3, LAYERS - 3),)
    ways: Mapping[str, Callable[[], None]] = {
        "bare": plain,
        "KL on full logits": naive,
        "ours, fp32": Step(),
        HIDDEN_STATES: Step(hidden=HiddenLosses(states=states, layers=layers)),
        "ours, fp32, hidden states and relations": Step(
            hidden=HiddenLosses(states=(*states, "attention_relation"), layers=layers)
        ),
        "ours, fp32, low memory": Step(low_memory=True),
        "ours, bf16": Step("bf16"),
    }
    seconds = alternate(ways, rounds)
    aims = {"ours, fp32": 1.02, "ours, bf16": 0.63}
    rows = [
        {
            "step": name,
            "seconds": statistics.median(seconds[name]),
            "x bare fp32": ratio(seconds, name, "bare"),
            "target": aims.get(name, ""),
            "x ours, fp32": ratio(seconds, name, "ours, fp32"),
        }
        for name in ways
    ]
    next(row for row in rows if row["step"] == HIDDEN_STATES)["target of that"] = 1.02
    return rows


PARTS: dict[str, tuple[str, Callable[[], Rows], str]] = {
    "loss": (
        "forward KL and its gradients",
        loss,
        f"{TOKENS} tokens, vocabulary {VOCAB}, teacher's hidden size {TEACHER}, student's {STUDENT}, fp32.",
    ),
    "rivals": (
        "forward KL and its gradients in several libraries",
        rivals,
        f"{TOKENS} tokens, vocabulary {VOCAB}, teacher's hidden size {TEACHER}, student's {STUDENT}, fp32.",
    ),
    "losses": (
        "every loss and its gradients",
        every_loss,
        f"{TOKENS} tokens, vocabulary {VOCAB}, teacher's hidden size {TEACHER}, student's {STUDENT}, fp32.",
    ),
    "bf16": (
        "forward KL and its gradients in bf16",
        lambda: loss(torch.bfloat16),
        f"{TOKENS} tokens, vocabulary {VOCAB}, teacher's hidden size {TEACHER}, student's {STUDENT}, bf16. Gradients "
        "are compared with ours; implementations with a softmax in bf16 deviate.",
    ),
    "step": (
        "a whole step",
        step,
        f"Llama, {LAYERS} layers, d {TEACHER_HIDDEN} and {STUDENT_HIDDEN}, ffn 3 d, 8/4 heads, tied, vocabulary "
        f"{STEP_VOCAB}; 2 x 256 tokens. Bare: the teacher's forward pass and the student's step with cross-entropy and "
        "fused AdamW, both in transformers in fp32, without clipping.",
    ),
}


def main(parts: list[str]) -> None:
    """Run the parts, or all, and record the results."""
    torch.set_num_threads(1)
    for part in parts or list(PARTS):
        print(f"{part} ...", file=sys.stderr, flush=True)
        load = os.getloadavg()[0]
        title, measure, setting = PARTS[part]
        rows = measure()
        notes = [
            f"{setting} CPU time, one thread; medians of ratios of neighboring calls. Load of the {os.cpu_count()} "
            f"cores: {load:.1f} before, {os.getloadavg()[0]:.1f} after.",
            *_versions(),
        ]
        record(f"distill-{part}", f"Distillation: {title}", rows, notes)


def _versions() -> list[str]:
    """Lines with the versions of the other libraries."""
    from importlib import metadata

    found = []
    for name in ("trl", "liger-kernel"):
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            found.append(f"{name} not installed")
    return ["", "; ".join(found) + "."]
