"""A report with everything in it, of a run that never was."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from minitron_cli.cost.compute import Entry
from minitron_cli.figures import Estimate, Figure
from minitron_cli.report.candidates import Ranking
from minitron_cli.report.data import ReportData
from minitron_cli.report.evaluation import Evaluated, Kind
from minitron_cli.report.importance import Importance
from minitron_cli.report.kept import kept_plot
from minitron_cli.report.scratch import Arm
from minitron_cli.report.training import TrainingRun
from minitron_cli.results.base import ModelSize
from minitron_cli.results.evaluation import Difference, MetricResult, ModelEvaluation
from minitron_cli.results.prune import HeldOut, Parts, PruneResult, RepairEffect, RepairResult, ServingFinding
from minitron_cli.results.run_record import ModelSpeed, SpeedRecord
from minitron_cli.results.search import CandidateResult, ObjectiveResult, StabilityResult, WinnerResult
from minitron_cli.results.sparsify import SparseMatrix, SparsifyResult, SparsityEffect

LAYERS, FFN, HEADS, HIDDEN = 12, 1024, 16, 512

Name = Callable[[str], str]


def size(parameters: int, **sizes: int) -> ModelSize:
    """Size of a model of which nothing but its parameters matters."""
    return ModelSize(sizes=sizes, parameters=parameters, non_embedding=parameters, decoder_flops=1, head_flops=1)


def evaluation(
    loss: float | None = None,
    *,
    kl: float | None = None,
    tasks: Mapping[str, Mapping[str, MetricResult]] | None = None,
    parameters: int = 5,
    apart: Mapping[str, Mapping[str, Difference]] | None = None,
) -> ModelEvaluation:
    """What was measured of one model."""
    text = {"loss": loss, "perplexity": None if loss is None else float(np.exp(loss)), "kl": kl}
    errors = {"loss": 0.02, "kl": 0.01}
    metrics = {
        name: MetricResult(value=value, stderr=errors.get(name), n=64)
        for name, value in text.items()
        if value is not None
    }
    return ModelEvaluation(
        fingerprint="f" * 8,
        model=size(parameters),
        results={"perplexity": metrics, **(tasks or {})},
        against_parent=apart or {},
    )


def evaluated(
    label: str, kind: Kind, loss: float | None = None, *, tokens: int | None = None, **more: Any
) -> Evaluated:
    """One model of the results."""
    return Evaluated(label, kind, evaluation(loss, **more), tokens)


def difference(value: float, low: float, high: float, mcnemar: float | None = None) -> Difference:
    """A difference from the parent of which nothing but its interval matters."""
    return Difference(
        difference=value,
        stderr=0.02,
        low=low,
        high=high,
        ratio=None,
        ratio_stderr=None,
        items=200,
        clusters=200,
        mcnemar=mcnemar,
    )


def repair(parent: float, before: tuple[float, float], after: tuple[float, float], *names: str) -> RepairResult:
    """A repair with its effect: (loss, KL) before and after."""
    return RepairResult(
        repairs=names or ("rotate",),
        effect=RepairEffect(
            parent_loss=parent,
            before=HeldOut(loss=before[0], kl=before[1]),
            after=HeldOut(loss=after[0], kl=after[1]),
            read=8192,
            children=3,
            tokens=64,
        ),
    )


def pruned(found: RepairResult | None = None, *, name: Name = lambda text: text) -> PruneResult:
    """A pruned model with everything known of it."""
    sizes = {"layer": LAYERS, "hidden": HIDDEN, "head": HEADS, "kv_head": 4, "head_dim": 32, "ffn": FFN, "vocab": 4096}
    small = sizes | {"layer": 11, "hidden": 384, "head": 12, "ffn": 512}
    return PruneResult(
        parent=size(3_912_448, **_renamed(sizes, name)),
        child=size(2_103_296, **_renamed(small, name)),
        checks=(name("headers"), name("live")),
        serving=(
            ServingFinding(reader=name("vLLM"), level="ok", reason=name("it reads head_dim")),
            ServingFinding(
                reader=name("GGUF"), level="slower", reason=name("hidden 384"), nearest=_renamed({"hidden": 512}, name)
            ),
        ),
        repair=found,
    )


def sample(name: Name = lambda text: text) -> ReportData:
    """`name` is applied to every string that a user, a file or a hub could have chosen."""
    source = np.random.default_rng(0)
    depth_L1 = np.linspace(1, 3, LAYERS)[:, None]
    ffn = source.lognormal(sigma=0.8, size=(LAYERS, FFN)) * depth_L1
    head = source.lognormal(sigma=0.5, size=(LAYERS, HEADS)) * depth_L1
    hidden = source.lognormal(size=HIDDEN)

    def row(
        label: str, kind: Kind, loss: float, kl: float | None, accuracy: float, tokens: int | None = None
    ) -> Evaluated:
        tasks = {
            name("cloze"): {
                name("acc"): MetricResult(value=accuracy, stderr=0.034, n=200, shots=0, chance=0.25),
                name("acc_norm!"): MetricResult(value=accuracy + 0.02, stderr=0.034, n=200, shots=0),
            }
        }
        apart = {name("cloze"): {name("acc"): difference(accuracy - 0.71, -0.121, -0.019, 0.0093)}}
        parameters = 3_912_448 if kind == "parent" else 2_103_296
        return evaluated(
            name(label),
            kind,
            loss,
            kl=kl,
            tasks=tasks,
            parameters=parameters,
            tokens=tokens,
            apart=None if kind == "parent" else apart,
        )

    def run(label: str, start: float, end: float) -> TrainingRun:
        tokens, few = np.linspace(0, 3e6, 1500), np.linspace(0, 3e6, 13)
        noise = source.normal(0, 0.05, tokens.size)
        loss = end + (start - end) * np.exp(-tokens / 4e5) + noise
        rate = 5e-4 * np.minimum(1, tokens / 2e5) * (0.5 + 0.5 * np.cos(np.pi * tokens / 3e6))
        held_out = end + 0.1 + (start - end) * np.exp(-few / 4e5)
        return TrainingRun(
            name(label),
            [{"tokens": t, "loss": x, "learning_rate": r} for t, x, r in zip(tokens, loss, rate, strict=True)],
            {"loss": Figure("loss"), "learning_rate": Figure("learning rate")},
            [{"tokens": t, "loss": x, "kl": x - 2.45} for t, x in zip(few, held_out, strict=True)],
        )

    return ReportData(
        title=name("demo: 3.9 M to 2.1 M parameters"),
        model=name("demo/teacher"),
        sizes=(3_912_448, 2_103_296),
        models=(
            row("parent", "parent", 2.412, None, 0.71),
            row("pruned", "pruned", 4.913, 2.31, 0.33, 0),
            row("distilled", "distilled", 2.688, 0.271, 0.64, 3_000_000),
            row("random-init", "control", 3.371, 0.93, 0.41, 3_000_000),
        ),
        scratch=(
            Arm(
                name("distilled"), name("P_450k-R_3M"), 3_000_000, 3_450_000, 61 * 10**12, 79 * 10**12, Estimate(2.688)
            ),
            Arm(
                name("scratch"),
                name("S_3M"),
                3_000_000,
                3_000_000,
                38 * 10**12,
                38 * 10**12,
                Estimate(3.6),
                Estimate(0.9),
            ),
        ),
        speed=SpeedRecord(
            settings={"batch_size": 1, "prompt_tokens": 512, "new_tokens": 64, "cache": name("dynamic")},
            device=name("cpu"),
            models=_renamed(
                {
                    "parent": ModelSpeed(
                        prefill_tokens_per_second=1520.0,
                        decode_tokens_per_second=41.2,
                        time_to_first_token_seconds=0.337,
                        peak_bytes=912 << 20,
                    ),
                    "distilled": ModelSpeed(
                        prefill_tokens_per_second=2610.0,
                        decode_tokens_per_second=63.9,
                        time_to_first_token_seconds=0.196,
                        peak_bytes=733 << 20,
                        prefill_ratio=1.72,
                        prefill_range=(1.7, 1.75),
                        decode_ratio=1.55,
                        decode_range=(1.5, 1.6),
                    ),
                },
                name,
            ),
        ),
        importance=Importance(
            _renamed({"ffn": ffn, "head": head, "hidden": hidden}, name),
            _renamed({"ffn": _best(ffn, 512), "head": _best(head, 12), "hidden": _best(hidden, 384)}, name),
            {
                "block_importance": [0.42, 0.2, 0.12, 0.1, 0.09, 0.08, 0.08, 0.06, 0.035, 0.07, 0.11, 0.19],
                "perplexity": [900, 14, 6, 4.1, 3, 2.8, 2.2, 1.9, 0.8, 1.5, 4, 9.0],
            },
            (8,),
        ),
        ranking=Ranking(
            tuple(_candidates(name)),
            ObjectiveResult(name=name("winogrande acc")),
            (65_536, 131_072),
            {
                "": WinnerResult(
                    sizes={"hidden": 384},
                    parameters=2_103_296,
                    feasible=9,
                    stability=(
                        StabilityResult(before=name("zero-shot"), after=name("rung 1"), candidates=3, tau=0.333),
                    ),
                )
            },
            built=_renamed({"hidden": 384, "ffn": 512, "head": 12}, name),
        ),
        kept=kept_plot(
            Parts(
                embeddings=4096 * HIDDEN,
                mixer=(4 * 512 * HIDDEN,) * LAYERS,
                ffn=(3 * FFN * HIDDEN,) * LAYERS,
                cache_bytes=3072,
            ),
            Parts(
                embeddings=4096 * 384,
                mixer=(4 * 384 * 384,) * (LAYERS - 1),
                ffn=(3 * 512 * 384,) * (LAYERS - 1),
                cache_bytes=2816,
            ),
            [layer for layer in range(LAYERS) if layer != 8],
        ),
        prune=pruned(repair(2.412, (6.213, 3.71), (4.913, 2.31), name("least_squares"), name("rotate")), name=name),
        sparsity=sparse(),
        cache_bytes=(3072, 2816),
        runs=(run("distilled", 4.9, 2.6), run("random-init", 8.3, 3.2)),
        costs=(
            (name("importance"), Entry(name("calibration"), 524_288, 4_100_000_000_000)),
            (name("search"), Entry(name("candidates"), 393_216, 2_900_000_000_000)),
            (name("distill"), Entry(name("training"), 3_000_000, 61_000_000_000_000)),
        ),
        other_costs=((name("evaluate"), Entry(name("held-out text"), 65_536, 820_000_000_000)),),
        device_hours={name("NVIDIA H200"): 12.53},
        lineage=(
            (name("importance"), "", "4f1a22c0", name("demo/teacher")),
            (name("search"), "", "91be7710", name("importance")),
            (name("prune"), name("width"), "07c2aa1e", f"{name('importance')}, {name('search')}"),
            (name("distill"), name("student"), "c3d49a55", f"{name('demo/teacher')}, {name('prune')}"),
        ),
        commands=(name("minitron run demo"), name("minitron report")),
    )


def sparse() -> SparsifyResult:
    """A sparse model of two layers with one kind of matrix, repaired."""
    matrix = SparseMatrix(zeros=32, weights=64, metric="wanda", error_before=0.3, error_after=0.2, is_repaired=True)
    size = ModelSize(sizes={"hidden": 8}, parameters=192, non_embedding=128, decoder_flops=256, head_flops=128)
    return SparsifyResult(
        model=size,
        pattern="2:4",
        metric="wanda",
        scope=("model.layers.{layer}.mlp.up_proj.weight",),
        sparsity=0.5,
        layer_sparsity=(0.5, 0.5),
        matrices={f"model.layers.{i}.mlp.up_proj.weight": matrix for i in range(2)},
        repair="least_squares",
        effect=SparsityEffect(
            parent_loss=2.412,
            before=HeldOut(loss=3.5, kl=0.9, loss_stderr=0.1, kl_stderr=0.05),
            after=HeldOut(loss=2.9, kl=0.4, loss_stderr=0.1, kl_stderr=0.04),
            tokens=2048,
            read=4096,
        ),
    )


def large() -> ReportData:
    """The same of a very large model: 126 layers of hidden size 16,384, thousands of candidates, long trainings."""
    source = np.random.default_rng(0)
    layers, hidden, head, ffn = 126, 16_384, 128, 53_248
    full = sample()
    assert full.ranking
    steps = [{"tokens": float(i), "loss": x} for i, x in enumerate(source.random(50_000))]
    importance = Importance(
        {
            "ffn": source.random((layers, ffn), dtype=np.float32),
            "head": source.random((layers, head)),
            "hidden": source.random(hidden),
        },
        {
            "ffn": np.tile(np.arange(ffn // 2), (layers, 1)),
            "head": np.tile(np.arange(head // 2), (layers, 1)),
            "hidden": np.arange(hidden // 2),
        },
        {"block_importance": source.random(layers).tolist(), "perplexity": source.random(layers).tolist()},
        tuple(range(60, 80)),
    )
    return replace(
        full,
        importance=importance,
        ranking=replace(full.ranking, candidates=[row.model_copy() for row in (*full.ranking.candidates,) * 400]),
        runs=tuple(replace(run, steps=steps) for run in full.runs),
    )


def _best(scores: np.ndarray, count: int) -> np.ndarray:
    return np.sort(np.argsort(-scores, axis=-1)[..., :count], axis=-1)


def _candidates(name: Name) -> Iterator[CandidateResult]:
    table: list[tuple[int, int, int, float, float, float | None]] = [
        (384, 512, 2_103_296, 0.012, 4.91, 3.05),
        (320, 640, 2_087_040, -0.021, 4.75, 3.08),
        (448, 448, 2_164_096, 0.03, 5.2, 3.11),
        (352, 576, 2_100_224, 0.0, 4.99, None),
        (512, 384, 2_203_648, 0.041, 5.9, None),
    ]
    for hidden, ffn, parameters, error, zero_shot, retrained in table:
        yield CandidateResult(
            shape=_renamed({"hidden": hidden, "ffn": ffn, "head": 12}, name),
            parameters=parameters,
            error=error,
            zero_shot=zero_shot,
            rungs=(retrained + 0.3, retrained) if retrained else (),
            costs={"memory": 2.0 * parameters, "latency": 1.5 + hidden / 400},
            model=size(parameters),
        )


def _renamed(table: Mapping[str, Any], name: Name) -> dict[str, Any]:
    """Distinct keys stay distinct, whatever `name` makes of them."""
    return {
        name(key) if name(key) == key else f"{name(key)} {i}": value for i, (key, value) in enumerate(table.items())
    }
