"""A report with everything in it, of a run that never was."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from minitron_cli.report.data import (
    Benchmark,
    Candidate,
    Comparison,
    CostRow,
    Interval,
    LayerCurves,
    LineageRow,
    Measure,
    ModelFacts,
    RepairFacts,
    ReportData,
    ResultRow,
    ServingRow,
    SpeedRow,
    Stability,
    TaskResult,
    TrainingRun,
)

LAYERS, FFN, HEADS, HIDDEN = 12, 1024, 16, 512


def sample(name: Callable[[str], str] = lambda text: text) -> ReportData:
    """`name` is applied to every string that a user, a file or a hub could have chosen."""
    source = np.random.default_rng(0)
    depth_L1 = np.linspace(1, 3, LAYERS)[:, None]
    ffn = source.lognormal(sigma=0.8, size=(LAYERS, FFN)) * depth_L1
    head = source.lognormal(sigma=0.5, size=(LAYERS, HEADS)) * depth_L1
    hidden = source.lognormal(size=HIDDEN)
    sizes = {"layer": LAYERS, "hidden": HIDDEN, "head": HEADS, "kv_head": 4, "head_dim": 32, "ffn": FFN, "vocab": 4096}
    small = sizes | {"layer": 11, "hidden": 384, "head": 12, "ffn": 512}

    def row(label, kind, loss, kl, accuracy, tokens=None):
        parameters = 3_912_448 if kind == "parent" else 2_103_296
        perplexity = Measure(float(np.exp(loss)), 0.02 * float(np.exp(loss)))
        tasks = tuple(
            TaskResult(name("cloze"), name(metric), Measure(accuracy + extra, 0.034), shots=0, items=200)
            for metric, extra in (("acc", 0.0), ("acc_norm", 0.02))
        )
        distance = None if kl is None else Measure(kl, 0.01)
        return ResultRow(name(label), kind, parameters, Measure(loss, 0.02), perplexity, distance, tokens, tasks)

    def run(label, start, end):
        tokens, few = np.linspace(0, 3e6, 1500), np.linspace(0, 3e6, 13)
        noise = source.normal(0, 0.05, tokens.size)
        return TrainingRun(
            name(label),
            tokens,
            end + (start - end) * np.exp(-tokens / 4e5) + noise,
            5e-4 * np.minimum(1, tokens / 2e5) * (0.5 + 0.5 * np.cos(np.pi * tokens / 3e6)),
            few,
            end + 0.1 + (start - end) * np.exp(-few / 4e5),
            (end - 2.35) + (start - end) * np.exp(-few / 4e5),
        )

    return ReportData(
        title=name("demo: 3.9 M to 2.1 M parameters"),
        parent=ModelFacts(name("demo/teacher"), name("llama"), _renamed(sizes, name), 3_912_448, 2_863_872, 3072),
        child=ModelFacts(name("demo/student"), name("llama"), _renamed(small, name), 2_103_296, 1_316_864, 2816),
        results=(
            row("parent", "parent", 2.412, None, 0.71),
            row("pruned", "pruned", 4.913, 2.31, 0.33, 0),
            row("distilled", "distilled", 2.688, 0.271, 0.64, 3_000_000),
            row("random-init", "control", 3.371, 0.93, 0.41, 3_000_000),
        ),
        benchmarks=(
            Benchmark(
                name("cloze acc, 0-shot"),
                200,
                {name("parent"): Interval(0.71, 0.645, 0.775), name("distilled"): Interval(0.64, 0.573, 0.707)},
                {name("distilled"): Interval(-0.07, -0.121, -0.019)},
                {name("distilled"): 0.0093},
            ),
        ),
        speed=(
            SpeedRow(name("parent"), 1520.0, 41.2, 0.337, 912 << 20),
            SpeedRow(name("distilled"), 2610.0, 63.9, 0.196, 733 << 20, 1.72, (1.7, 1.75), 1.55, (1.5, 1.6)),
        ),
        speed_settings=name("Batch 1, on a CPU."),
        importance=_renamed({"ffn": ffn, "head": head, "hidden": hidden}, name),
        importance_metric=name("the L2 norm over samples of the mean absolute activation"),
        kept=_renamed({"ffn": _best(ffn, 512), "head": _best(head, 12), "hidden": _best(hidden, 384)}, name),
        layers=LayerCurves(
            [0.42, 0.2, 0.12, 0.1, 0.09, 0.08, 0.08, 0.06, 0.035, 0.07, 0.11, 0.19],
            [900, 14, 6, 4.1, 3, 2.8, 2.2, 1.9, 0.8, 1.5, 4, 9.0],
            (8,),
        ),
        candidates=tuple(_candidates(name)),
        candidate_parameters=name("parameters"),
        comparison=Comparison(
            name("loss"),
            (65_536, 131_072),
            (Stability(name("zero-shot"), name("rung 1"), 3, 0.333, name("")),),
        ),
        checks=(name("headers"), name("live")),
        serving=(
            ServingRow(name("vLLM"), "ok", name("it reads head_dim"), {}),
            ServingRow(name("GGUF K-quants"), "slower", name("hidden 384"), _renamed({"hidden": 512}, name)),
        ),
        repair=RepairFacts((name("least_squares"), name("rotate")), 2.412, (6.213, 3.71), (4.913, 2.31)),
        runs=(run("distilled", 4.9, 2.6), run("random-init", 8.3, 3.2)),
        costs=(
            CostRow(name("importance"), 524_288, 4.1e12, name("calibration")),
            CostRow(name("search"), 393_216, 2.9e12),
            CostRow(name("distill"), 3_000_000, 6.1e13, name("training")),
            CostRow(name("evaluate"), 65_536, 8.2e11, name("held-out text"), is_needed=False),
        ),
        device_hours={name("NVIDIA H200"): 12.53},
        lineage=(
            LineageRow(name("importance"), "4f1a22c0", "", (name("demo/teacher"),)),
            LineageRow(name("search"), "91be7710", "", (name("importance"),)),
            LineageRow(name("prune"), "07c2aa1e", name("width"), (name("importance"), name("search"))),
            LineageRow(name("distill"), "c3d49a55", name("student"), (name("demo/teacher"), name("prune"))),
        ),
        commands=(name("minitron run demo"), name("minitron report")),
    )


def large() -> ReportData:
    """The same of a very large model: 126 layers of hidden size 16,384, thousands of candidates, long trainings."""
    source = np.random.default_rng(0)
    layers, hidden, head, ffn = 126, 16_384, 128, 53_248
    full = sample()
    return replace(
        full,
        importance={
            "ffn": source.random((layers, ffn), dtype=np.float32),
            "head": source.random((layers, head)),
            "hidden": source.random(hidden),
        },
        kept={
            "ffn": np.tile(np.arange(ffn // 2), (layers, 1)),
            "head": np.tile(np.arange(head // 2), (layers, 1)),
            "hidden": np.arange(hidden // 2),
        },
        layers=LayerCurves(source.random(layers), source.random(layers), tuple(range(60, 80))),
        candidates=full.candidates * 400,
        runs=tuple(replace(run, tokens=np.arange(50_000.0), loss=source.random(50_000)) for run in full.runs),
    )


def _best(scores: np.ndarray, count: int) -> np.ndarray:
    return np.sort(np.argsort(-scores, axis=-1)[..., :count], axis=-1)


def _candidates(name):
    table = [
        (384, 512, 2_103_296, 0.012, 4.91, 3.05),
        (320, 640, 2_087_040, -0.021, 4.75, 3.08),
        (448, 448, 2_164_096, 0.03, 5.2, 3.11),
        (352, 576, 2_100_224, 0.0, 4.99, None),
        (512, 384, 2_203_648, 0.041, 5.9, None),
    ]
    for i, (hidden, ffn, parameters, error, zero_shot, retrained) in enumerate(table):
        sizes = _renamed({"hidden": hidden, "ffn": ffn, "head": 12}, name)
        rungs = (retrained + 0.3, retrained) if retrained else ()
        costs = {"memory": 2.0 * parameters, "latency": 1.5 + hidden / 400}
        yield Candidate(
            sizes, parameters, error, zero_shot, retrained, i == 0, rungs, costs, frozenset({"memory"} if i < 2 else ())
        )


def _renamed(table, name):
    """Distinct keys stay distinct, whatever `name` makes of them."""
    return {
        name(key) if name(key) == key else f"{name(key)} {i}": value for i, (key, value) in enumerate(table.items())
    }
