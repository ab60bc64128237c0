"""Compare children of minitron with those that other libraries and criteria make of the same model and text.

    make real-models rivals   # downloads the models and the other libraries
    RUN=.client-venvs/rivals/bin/python
    $RUN scripts/rivals_study.py qwen2.5-0.5b gemma-3-270m --text calibration.txt --validation held-out.txt

In each group all children have one shape and so one number of parameters; every way of choosing sees the same
calibration blocks. Children are measured before training and, with --tokens, after the same distillation, whose
learning rate is chosen for each of them by the same rule in runs of a quarter of the tokens, by KL on other blocks;
children with the same weights are trained once. Last, a step of minitron's distillation is timed beside one of TRL's.
Figures are kept in RUNS_DIR/rivals-NAME/rivals-study, so an interrupted study continues. Writes
docs/results/rivals.md.
"""

import argparse
import copy
import hashlib
import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, cast

import rivals
import torch
from bench_teacher import bench_data
from real_models import MODELS, real_model
from studies import Figures, SomeBlocks, Study, best_rate, write_page
from torch import Tensor

from minitron_cli import memory
from minitron_cli.artifacts.build import Context
from minitron_cli.artifacts.workspace import Workspace
from minitron_cli.checkpoint import hf
from minitron_cli.data.batches import calibration_ids
from minitron_cli.data.pack import Blocks
from minitron_cli.distill.config import DistillConfig
from minitron_cli.distill.trainer import train
from minitron_cli.evaluate.perplexity import kl_to_parent, perplexity
from minitron_cli.evaluate.statistics import Items, compare
from minitron_cli.inputs.source_model import open_source_model
from minitron_cli.prune.config import PruneConfig, Ranking
from minitron_cli.scores.metric import Magnitude, Random
from minitron_cli.stages import prune

BATCH, MICRO_BATCH = 8, 2
CHILDREN, STEP = PARTS = "children", "step"
TRIAL_SEED = 100
REFERENCE = "minitron, default"
LINT: Literal["warn"] = "warn"  # no other library asks which layers llama.cpp takes to be of which kind

Way = Callable[[], Any]
"""Makes a child in memory."""


@dataclass(frozen=True, kw_only=True)
class RivalsStudy(Study):
    """A pretrained model, its text, and the children that are compared."""

    name: str
    tokens: int
    """Distillation tokens of every child; 0: measured before training only."""

    @cached_property
    def calibration(self) -> list[Tensor]:
        """Batches [B, T] of the blocks that importance is measured on."""
        ids = calibration_ids(0, min(self.samples, len(self.train)), len(self.train))
        return [torch.stack([self.train.tokens(i) for i in ids[n : n + BATCH]]) for n in range(0, len(ids), BATCH)]

    def groups(self) -> dict[str, Mapping[str, Way]]:
        """Title of a shape -> ways to make a child of that shape, by name."""
        sizes, path = self.parent.shape.sizes, self.parent.path
        ffn = 3 * sizes["ffn"] // 4 // rivals.NEURON_MULTIPLE * rivals.NEURON_MULTIPLE
        layers, hidden = 3 * sizes["layer"] // 4, self._hidden
        neurons, depth, width = {"ffn": ffn}, {"layer": layers}, {"hidden": hidden, "ffn": self._ffn_beside(hidden)}
        fair = partial(rivals.optipfair_neurons, path, self.calibration, ffn)
        return {
            f"neurons, {sizes['ffn']} to {ffn}": {
                **self._own(neurons),
                "optipfair, PPM": partial(fair, is_data_driven=False),
                "optipfair, PPM and activations": partial(fair, is_data_driven=True),
            },
            f"layers, {sizes['layer']} to {layers}": {
                **self._own(depth, is_width=False),
                "optipfair, its importance of layers": self._without(rivals.optipfair_layers, layers),
                "ShortGPT's Block Influence": self._without(rivals.shortgpt_layers, layers),
            },
            f"channels and neurons, {sizes['hidden']} to {hidden} and {sizes['ffn']} to {width['ffn']}": {
                **self._own(width),
                "Torch-Pruning, grouped magnitude": partial(rivals.torch_pruning_width, path, hidden),
            },
        }

    @property
    def _hidden(self) -> int:
        return 6 * self.parent.shape.sizes["hidden"] // 7 // rivals.NEURON_MULTIPLE * rivals.NEURON_MULTIPLE

    def _ffn_beside(self, hidden: int) -> int:
        """Neurons that Torch-Pruning leaves when it prunes channels to `hidden`: the same ratio, rounded up."""
        exact = self.parent.shape.sizes["ffn"] * hidden / self.parent.shape.sizes["hidden"]
        return -(-int(exact) // rivals.NEURON_MULTIPLE) * rivals.NEURON_MULTIPLE

    def _own(self, shape: dict[str, int], *, is_width: bool = True) -> dict[str, Way]:
        """Children by minitron's verbs; of width also with the criteria that need no text."""
        plain = partial(PruneConfig, shape=shape, serving_lint=LINT)
        configs = {REFERENCE: plain(), "minitron, without repair": plain(repair="none")}
        if is_width:
            configs |= {
                "magnitude of weights": plain(repair="none", ranking=Ranking(width=Magnitude())),
                "random choice": plain(repair="none", ranking=Ranking(width=Random())),
            }
        return {name: partial(self._pruned, config) for name, config in configs.items()}

    def _pruned(self, config: PruneConfig) -> Any:
        made = prune.run(self.context, self.parent, config, scores=self.scores(), data=self.data)
        return hf.load_model(made.path, dtype="float32")

    def _without(self, choose: Callable[[Path, Sequence[Tensor], int], tuple[int, ...]], layers: int) -> Way:
        """Child without the layers that a criterion chooses."""

        def make() -> Any:
            chosen = choose(self.parent.path, self.calibration, layers)
            return self._pruned(PruneConfig(drop_layers=chosen, repair="none", serving_lint=LINT))

        return make

    def child(self, group: str, name: str, make: Way) -> Figures:
        """Figures of one child before training: parameters, CPU seconds, loss and KL, and a digest of its weights."""

        def compute() -> Figures:
            child, seconds = rivals.timed(make)
            parameters = sum(p.numel() for p in child.parameters())
            return {
                "seconds": seconds,
                "parameters": parameters,
                "digest": weights_digest(child),
                **self.measured(child),
            }

        return self.remembered(file_name(group, name), compute)

    def distilled(self, group: str, name: str, make: Way) -> Figures:
        """Its `rate`, and loss and KL after `tokens` tokens at it. Shared by children with the same weights."""
        weights, before = self.child(group, name, make)["digest"], []

        def student() -> Any:
            """A copy of the child, which is made once for all runs."""
            if not before:
                before.append(make())
            return copy.deepcopy(before[0])

        def end(rate: float) -> float:
            def compute() -> Figures:
                self._train(child := student(), rate, self.tokens // 4, TRIAL_SEED)
                return {"kl": kl_to_parent(child, self.teacher, self._other_blocks(), max_blocks=self.blocks).kl_nats}

            return self.remembered(f"distilled-{weights}-{self.tokens // 4}-{rate:g}", compute)["kl"]

        def compute() -> Figures:
            rate = best_rate(end)
            self._train(child := student(), rate, self.tokens, 0)
            return {"rate": rate, **self.measured(child)}

        return self.remembered(f"distilled-{weights}-{self.tokens}", compute)

    def _other_blocks(self) -> Blocks:
        """Held-out blocks that are not reported, to choose learning rates by."""
        ids = range(self.blocks, min(2 * self.blocks, len(self.validation)))
        return cast("Blocks", SomeBlocks(self.validation, ids))

    def _train(self, child: Any, rate: float, tokens: int, seed: int) -> None:
        config = distillation(rate, max(1, tokens // (BATCH * self.train.sequence_length)), seed)
        teacher = hf.load_model(self.parent.path)  # a copy, because training may cast it
        train(child, teacher, self.train, None, config, None)

    def measured(self, model: Any) -> Figures:
        """Loss and KL to the parent in nats per token, and the KL of each part of a document."""
        kl = kl_to_parent(model, self.teacher, self.validation, max_blocks=self.blocks)
        loss = perplexity(model, self.validation, max_blocks=self.blocks).loss_nats
        items = {"values": kl.items.values, "weights": kl.items.weights, "groups": kl.items.groups}
        return {"loss": loss, "kl": kl.kl_nats, "items": {k: list(v) for k, v in items.items() if v is not None}}


def weights_digest(model: Any) -> str:
    """Short digest of a model's weights."""
    found = hashlib.sha256()
    for name, weight in model.state_dict().items():
        found.update(name.encode())
        found.update(weight.float().contiguous().numpy())
    return found.hexdigest()[:12]


def file_name(*parts: str) -> str:
    """Name that figures are kept under."""
    return "-".join(parts).replace(" ", "-").replace(",", "")


def distillation(rate: float, steps: int, seed: int = 0, precision: Literal["auto", "fp32"] = "auto") -> DistillConfig:
    """Distillation by forward KL."""
    return DistillConfig(
        steps=steps,
        batch_size=BATCH,
        micro_batch_size=MICRO_BATCH,
        learning_rate=rate,
        min_learning_rate=rate / 10,
        warmup_steps=steps // 10,
        eval_every=10**9,
        precision=precision,
        seed=seed,
    )


def step_cost(study: RivalsStudy, library: str, asked: argparse.Namespace) -> Figures:
    """CPU seconds per step and peak memory of a distillation of the plain child of 3/4 of the neurons."""

    def compute() -> Figures:
        _plain_child(study)  # pruned here, so that the process below only reads it
        context = multiprocessing.get_context("spawn")
        with context.Pool(1) as pool:  # a process of its own, whose peak memory is that of the run
            return pool.apply(_steps, (study.name, library, asked))

    return study.remembered(f"step-{library}-{asked.steps}", compute)


def _plain_child(study: RivalsStudy) -> Any:
    return next(iter(study.groups().values()))["minitron, without repair"]()


def _steps(name: str, library: str, asked: argparse.Namespace) -> Figures:
    study = study_of(name, asked)
    child = _plain_child(study)
    batches = [study.calibration[i % len(study.calibration)] for i in range(asked.steps)]
    if library == "minitron":
        run = partial(
            train, child, study.teacher, study.train, None, distillation(1e-5, asked.steps, precision="fp32"), None
        )
    else:
        run = rivals.trl_steps(study.parent.path, child, batches, MICRO_BATCH, study.directory / "trl")
    _, seconds = rivals.timed(run)
    return {"seconds": seconds / asked.steps, "peak": memory.peak_bytes("cpu")}


def rows(study: RivalsStudy, group: str, ways: Mapping[str, Way]) -> Iterator[str]:
    """Markdown lines about the children of one shape."""
    found = {name: study.child(group, name, make) for name, make in ways.items()}
    trained = {name: study.distilled(group, name, make) for name, make in ways.items()} if study.tokens else {}
    counts = {figures["parameters"] for figures in found.values()}
    yield from (f"### {group}", "", f"{' or '.join(f'{n:,}' for n in sorted(counts))} parameters.", "")
    yield "| child | CPU seconds | loss | KL | KL - that of minitron's default |" + study_columns(study.tokens)
    yield "|---|---|---|---|---|" + "---|---|---|---|" * bool(study.tokens)
    for name, figures in found.items():
        cells = [f"{figures['seconds']:.0f}", *_cells(figures, found[REFERENCE])]
        if study.tokens:
            cells += [f"{trained[name]['rate']:g}", *_cells(trained[name], trained[REFERENCE])]
        yield f"| {name} | " + " | ".join(cells) + " |"
    yield ""


def study_columns(tokens: int) -> str:
    """Further columns of the table if children are distilled."""
    return f" rate | loss after {tokens:,} tokens | KL | difference |" if tokens else ""


def _cells(of: Figures, reference: Figures) -> list[str]:
    """Loss, KL, and the paired difference of KL with its 95 % interval by the jackknife over documents."""
    difference = compare(Items(**of["items"]), Items(**reference["items"]))
    if of is reference or difference.low is None or difference.high is None:
        return [f"{of['loss']:.3f}", f"{of['kl']:.3f}", ""]
    half = (difference.high - difference.low) / 2
    return [f"{of['loss']:.3f}", f"{of['kl']:.3f}", f"{difference.difference:+.3f} ± {half:.3f}"]


def page(study: RivalsStudy) -> Iterator[str]:
    """Markdown lines about the children of one model."""
    parent = study.remembered("parent", lambda: study.measured(study.teacher))
    yield from (
        f"## {study.name}",
        "",
        f"{study.parent.shape.parameters():,} parameters; the parent's loss is {parent['loss']:.3f}. Choices were made "
        f"on {study.samples} blocks of {study.train.sequence_length}",
        f"tokens and repairs fitted as by default; all was measured on {study.blocks} blocks of other text in nats per "
        "token. CPU seconds are those of",
        "choosing, pruning and checking, without importance, which all of minitron's children share.",
        "",
    )
    for group, ways in study.groups().items():
        yield from rows(study, group, ways)


def step_page(study: RivalsStudy, asked: argparse.Namespace) -> Iterator[str]:
    """Markdown lines about a step of distillation."""
    yield from (
        f"### A step of distillation, {study.name}",
        "",
        "The plain child of 3/4 of the neurons learns from its parent by forward KL in fp32, "
        f"{asked.steps} steps of {BATCH} blocks of {study.train.sequence_length} tokens, {MICRO_BATCH} at a time. "
        "A process each; the memory is all that it held.",
        "",
        "| trainer | CPU seconds per step | peak memory |",
        "|---|---|---|",
    )
    for library in ("minitron", "TRL, GKDTrainer"):
        cost = step_cost(study, library, asked)
        yield f"| {library} | {cost['seconds']:.1f} | {cost['peak'] / 1e9:.2f} GB |"
    yield ""


def study_of(name: str, asked: argparse.Namespace) -> RivalsStudy:
    """The study of one model."""
    return RivalsStudy(
        folder="rivals-study",
        context=Context(Workspace(asked.runs_dir / f"rivals-{name}")),
        parent=open_source_model(real_model(name)),
        data=bench_data(asked.text, asked.validation),
        samples=asked.samples,
        blocks=asked.blocks,
        name=name,
        tokens=asked.tokens,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", choices=MODELS, help="pretrained models that `make real-models` assembled")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"), help="directory of workspaces")
    parser.add_argument("--text", nargs="+", required=True, help="files to choose, repair and train on")
    parser.add_argument("--validation", nargs="+", required=True, help="files to measure on")
    parser.add_argument("--samples", type=int, default=32, help="number of calibration blocks")
    parser.add_argument("--blocks", type=int, default=16, help="number of held-out blocks that results are measured on")
    parser.add_argument("--tokens", type=int, default=0, help="distillation tokens of every child (default: none)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure (default: both)")
    parser.add_argument("--steps", type=int, default=6, help="steps of distillation to time beside TRL's")
    parser.add_argument("--output", type=Path, default=Path("docs/results/rivals.md"), help="page to write")
    args = parser.parse_args()
    lines = ["# Beside other libraries", "", f"{rivals.versions()}. Regenerate: see scripts/rivals_study.py.", ""]
    for name in args.models:
        study = study_of(name, args)
        with study.context.workspace.lock():
            lines += page(study) if CHILDREN in args.parts else ()
            lines += step_page(study, args) if STEP in args.parts else ()
    write_page(args.output, lines)


if __name__ == "__main__":
    main()
