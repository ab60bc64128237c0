"""The report stage: everything a workspace has made in, one HTML page out."""

import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from minitron_cli import io
from minitron_cli.artifacts import fingerprint
from minitron_cli.artifacts.artifact import Artifact
from minitron_cli.artifacts.build import Context, StageBuild, produce
from minitron_cli.artifacts.manifest import MANIFEST
from minitron_cli.artifacts.workspace import Workspace
from minitron_cli.checkpoint import hf
from minitron_cli.cost.lineage import accelerator_hours, lineage, spent
from minitron_cli.distill.training_run import METRICS, VALIDATION
from minitron_cli.errors import ArtifactError
from minitron_cli.evaluate.config import CODE_TASKS, PERPLEXITY
from minitron_cli.evaluate.gate import PARENT
from minitron_cli.evaluate.statistics import interval
from minitron_cli.inputs.source_model import open_source_model
from minitron_cli.model.shape import Shape
from minitron_cli.report import data as page_data
from minitron_cli.report.card import HubFacts, model_card
from minitron_cli.report.data import ReportData
from minitron_cli.report.page import render
from minitron_cli.scores.scores import Scores
from minitron_cli.search import candidates
from minitron_cli.search.candidates import CANDIDATES
from minitron_cli.spec import Spec
from minitron_cli.stages import correct
from minitron_cli.stages.evaluate import RESULTS
from minitron_cli.stages.prune import PLAN

STAGE, VERSION = "report", 2
PAGE, CARD = "report.html", "model-card.md"
MAX_CARD = 1 << 20  # characters read of a parent's card

KINDS: dict[str, page_data.Kind] = {
    PARENT: "parent",
    correct.LABEL: "teacher",
    "pruned": "pruned",
    "distilled": "distilled",
}


class ReportConfig(Spec):
    """What the page is called."""

    title: str
    model: str
    """The parent's name."""
    data: Mapping[str, Any] = {}
    """The text that was asked for; files of this machine go by their names, as the parent does."""
    hub: Mapping[str, Any] = {}
    """What the hub is told of the model: its parent there, and the parent's licence and languages."""


def run(context: Context) -> Artifact:
    """Gather the workspace's current results into one page. ArtifactError if there is nothing to show."""
    made = _Made.of(context.workspace)
    config = _config(context.workspace)

    def build(work: StageBuild) -> None:
        content = made.page(config)
        io.write_new(work.path / PAGE, render(content).encode())
        io.write_new(work.path / CARD, _card(content, config, config.title).encode())

    return produce(context, stage=STAGE, version=VERSION, config=config, inputs=made.fingerprints(), build=build)


def card(workspace: Workspace, name: str) -> str:
    """The model card of what the workspace has made, under the name that it will have on the hub."""
    config = _config(workspace)
    return _card(_Made.of(workspace).page(config), config, name)


def _card(content: ReportData, config: ReportConfig, name: str) -> str:
    return model_card(content, name=name, hub=HubFacts(**config.hub))


def _config(workspace: Workspace) -> ReportConfig:
    model = str(workspace.settings.get("model") or "the parent")
    name = _name(model)
    known = {key: value for key, value in asdict(_hub_facts(model)).items() if value}
    data = _without_directories(workspace.settings.get("data") or {})
    return ReportConfig(title=f"{name}: {workspace.name}", model=name, data=data, hub=known)


def _hub_facts(model: str) -> HubFacts:
    """What the parent's own card says, if it is on this machine."""
    is_local = Path(model).is_dir()
    path = Path(model) if is_local else hf.cached(model)
    base_model = None if is_local else hf.hub_id(model)
    readme = path / "README.md" if path else None
    text = readme.read_text(errors="replace")[:MAX_CARD] if readme and readme.is_file() else ""
    return HubFacts.of_card(text, base_model)


def _without_directories(value: Any) -> Any:
    """A card is for others to read, who need not know how this machine is laid out."""
    if isinstance(value, dict):
        return {name: _without_directories(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_without_directories(one) for one in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _name(model: str) -> str:
    """What to call the parent: the stage that made it, its directory's name, or its id on the hub."""
    path = Path(model)
    if (path / MANIFEST).is_file():
        return path.parent.name
    return path.name if path.is_dir() else model


@dataclass(frozen=True)
class _Made:
    """What a workspace holds at present; a stage that has not run is None."""

    importance: Artifact | None
    search: Artifact | None
    prune: Artifact | None
    evaluate: Artifact | None
    correct: Artifact | None
    trained: tuple[Artifact, ...]
    """Everything distilled from the pruned model, controls included."""
    workspace: Workspace

    @classmethod
    def of(cls, workspace: Workspace) -> "_Made":
        prune = workspace.current("prune")
        cuts = [a for a in workspace.artifacts("prune") if prune and _is_control_of(prune, a)]
        starts = {fingerprint.of_directory(cut.path) for cut in [prune, *cuts] if cut}
        trained = tuple(a for a in workspace.artifacts("distill") if a.manifest.inputs["student"] in starts)
        made = cls(
            workspace.current("importance"),
            workspace.current("search"),
            prune,
            workspace.current("evaluate"),
            workspace.current(correct.STAGE),
            trained,
            workspace,
        )
        if not made.artifacts:
            raise ArtifactError(f"{workspace.root} has no results to report: run `minitron importance` first")
        return made

    @cached_property
    def lineage(self) -> list[Artifact]:
        return lineage(self.workspace, self._product)

    @property
    def artifacts(self) -> list[Artifact]:
        made = (self.importance, self.search, self.prune, self.correct, *self.trained, self.evaluate)
        return [artifact for artifact in made if artifact]

    def fingerprints(self) -> dict[str, str]:
        return {" ".join(filter(None, (a.stage, a.label))): a.fingerprint for a in self.artifacts}

    def page(self, config: ReportConfig) -> ReportData:
        return ReportData(
            title=config.title,
            parent=self._facts(config.model, self._parent),
            child=self._facts(f"{config.model}, cut", self._child),
            results=tuple(self._results()),
            benchmarks=tuple(_benchmarks(self._models)),
            speed=tuple(self._speed()),
            speed_settings=_speed_settings(self._timed),
            importance=self._importance(),
            importance_metric="mean over tokens, L2 over samples",
            kept=self._kept(),
            layers=self._layers(),
            candidates=tuple(self._candidates()),
            candidate_parameters=self._counted(),
            comparison=self._comparison(),
            checks=tuple(self.prune.summary["checks"]) if self.prune else (),
            serving=tuple(page_data.ServingRow(**row) for row in self.prune.summary["serving"]) if self.prune else (),
            repair=self._repair(),
            runs=tuple(_curves(artifact) for artifact in (self.correct, *self.trained) if artifact),
            costs=tuple(self._costs()),
            device_hours=accelerator_hours(self.lineage),
            lineage=tuple(_lineage(artifact) for artifact in self.artifacts),
            commands=tuple(_command(artifact, config) for artifact in self.artifacts),
        )

    @cached_property
    def _child(self) -> Shape | None:
        return open_source_model(self.prune.path).shape if self.prune else None

    @cached_property
    def _parent(self) -> Shape | None:
        return self._child.resize(**self.prune.summary["parent"]["sizes"]) if self.prune and self._child else None

    def _facts(self, name: str, shape: Shape | None) -> page_data.ModelFacts | None:
        if shape is None:
            return None
        return page_data.ModelFacts(
            name=name,
            family=shape.family.model_type,
            sizes=dict(shape.sizes),
            parameters=shape.parameters(),
            non_embedding=shape.parameters("non_embedding"),
            kv_cache_bytes_per_token=shape.kv_cache_bytes(batch=1, length=1),
        )

    def _results(self) -> Iterator[page_data.ResultRow]:
        if self.evaluate is None:
            return
        trained = (self.correct, *self.trained)
        tokens = {artifact.label: artifact.summary["tokens"] for artifact in trained if artifact}
        for label, entry in self._models.items():
            own, apart = (entry.get(part, {}).get(PERPLEXITY, {}) for part in ("results", "against_parent"))
            yield page_data.ResultRow(
                label=label,
                kind=KINDS.get(label, "control"),
                parameters=entry["parameters"],
                loss=_measure(own.get("loss")),
                loss_from_parent=_apart(apart["loss"]) if "loss" in apart else None,
                perplexity=_measure(own.get("perplexity")),
                kl_to_parent=_measure(own.get("kl")),
                tokens_trained=tokens.get(label),
                tasks=tuple(_tasks(entry["results"], entry.get("sources", {}))),
            )

    @cached_property
    def _models(self) -> dict[str, Any]:
        """What was measured of each model."""
        return dict(_in_order(self.evaluate.read_json(RESULTS)["models"])) if self.evaluate else {}

    @cached_property
    def _timed(self) -> dict[str, Any]:
        return self.evaluate.run.get("speed", {}) if self.evaluate else {}

    def _speed(self) -> Iterator[page_data.SpeedRow]:
        for label, figures in _in_order(self._timed.get("models", {})):
            yield page_data.SpeedRow(label, **{n: value for n, value in figures.items() if n != "libraries_bytes"})

    def _importance(self) -> dict[str, np.ndarray]:
        if self.importance is None:
            return {}
        scores = Scores.load(self.importance.path)
        axes = ("hidden", "head", *["expert"] * scores.has_experts, "ffn")
        return {axis: scores.by_layer(axis).numpy() for axis in axes}

    def _kept(self) -> dict[str, np.ndarray]:
        plan = self.prune.read_json(PLAN) if self.prune else {}
        kept = {axis: np.asarray(indices) for axis, indices in plan.items()}
        sizes = self.prune.summary["parent"]["sizes"] if self.prune else {}
        if "expert" in sizes and kept.keys() & {"expert", "ffn"}:
            kept["ffn"] = _side_by_side(kept, sizes)
        return kept

    def _layers(self) -> page_data.LayerCurves | None:
        if self.importance is None:
            return None
        scores = Scores.load(self.importance.path)
        has_removal = scores.parent_nll is not None
        layers = self.importance.summary["sizes"]["layer"]
        kept = self._kept().get("layer", np.arange(layers))
        return page_data.LayerCurves(
            block_importance=scores.layers("block_importance").tolist(),
            perplexity=scores.layers("perplexity").tolist() if has_removal else None,
            dropped=tuple(sorted(set(range(layers)) - set(kept.tolist()))),
        )

    def _counted(self) -> str:
        """What the budget counts, in words."""
        config = self.search.manifest.config if self.search else self.prune.manifest.config if self.prune else {}
        count = (config.get("budget") or {}).get("count", "total")
        return {"total": "parameters", "non_embedding": "parameters without embeddings"}.get(
            count, f"{count} parameters"
        )

    def _candidates(self) -> Iterator[page_data.Candidate]:
        source = next((a for a in (self.search, self.prune) if a and CANDIDATES in a.manifest.files), None)
        rows = candidates.read(source)["candidates"] if source else []
        chosen = dict(self._child.sizes) if self._child else {}
        for row in rows:
            yield page_data.Candidate(
                sizes=row["shape"],
                parameters=row["parameters"],
                error=row["error"],
                zero_shot=row["zero_shot"],
                retrained=row["retrained"],
                is_chosen=row["shape"].items() <= chosen.items(),
                rungs=tuple(row["rungs"]),
                costs={cost: row["costs"][cost] for cost in candidates.costs_of(row) if cost != "parameters"},
                pareto_optimal=frozenset(row["unsurpassed"]),
                target=row["target"],
            )

    def _comparison(self) -> page_data.Comparison:
        if self.search is None:
            return page_data.Comparison()
        found = candidates.read(self.search)
        return page_data.Comparison(
            objective=found["objective"]["name"],
            rung_tokens=tuple(found["rung_tokens"]),
            stability=tuple(
                page_data.Stability(row["from"], row["to"], row["candidates"], row["tau"], label)
                for label, winner in self.search.summary["winners"].items()
                for row in winner["stability"]
            ),
        )

    def _repair(self) -> page_data.RepairFacts | None:
        found = self.prune.summary.get("repair", {}) if self.prune else {}
        if "after" not in found:
            return None
        before, after = ((found[when]["loss"], found[when]["kl"]) for when in ("before", "after"))
        return page_data.RepairFacts(tuple(found["repairs"]), found["parent_loss"], before, after)

    @property
    def _product(self) -> Artifact:
        """What all of it was for: the student, or what there is of it so far."""
        student = next((artifact for artifact in self.trained if artifact.label == "distilled"), None)
        return student or self.prune or self.search or self.artifacts[0]

    def _costs(self) -> Iterator[page_data.CostRow]:
        made_of = {artifact.key for artifact in self.lineage}
        beside = [artifact for artifact in self.artifacts if artifact.key not in made_of]
        for artifact in (*self.lineage, *beside):
            stage = " ".join(filter(None, (artifact.stage, artifact.label)))
            for entry in spent(artifact):
                yield page_data.CostRow(stage, entry.tokens, entry.flops, entry.work, artifact.key in made_of)


def _is_control_of(prune: Artifact, cut: Artifact) -> bool:
    """Whether it is another way to cut the same parent to the same shape, made for comparison."""
    same = ("parent", "child")
    return bool(cut.label) and all(cut.summary[side] == prune.summary[side] for side in same)


def _side_by_side(kept: dict[str, np.ndarray], sizes: dict[str, int]) -> np.ndarray:
    """[layer, kept]: the neurons that survive in any expert, counted through all experts of the layer."""
    shape_LEF = sizes["layer"], sizes["expert"], sizes["ffn"]
    expert_LK = kept.get("expert", np.broadcast_to(np.arange(shape_LEF[1]), shape_LEF[:2]))[:, :, None]
    neuron_LEK = kept.get("ffn", np.broadcast_to(np.arange(shape_LEF[2]), shape_LEF))
    neuron_LEK = np.take_along_axis(neuron_LEK, expert_LK, axis=1)
    return (expert_LK * shape_LEF[2] + neuron_LEK).reshape(shape_LEF[0], -1)


def _in_order(models: dict[str, Any]) -> list[tuple[str, Any]]:
    """Parent, pruned, distilled, then the controls by name: JSON objects come back sorted."""
    rank = {label: i for i, label in enumerate(KINDS)}
    return sorted(models.items(), key=lambda item: (rank.get(item[0], len(rank)), item[0]))


def _measure(metric: dict[str, Any] | None) -> page_data.Measure | None:
    if metric is None or metric["value"] is None:
        return None
    return page_data.Measure(metric["value"], metric["stderr"])


def _tasks(results: dict[str, Any], sources: dict[str, Any]) -> Iterator[page_data.TaskResult]:
    for task, metrics in sorted(results.items()):
        for name, metric in sorted(metrics.items()):
            if task != PERPLEXITY and "part_of" not in metric and (measure := _measure(metric)):
                yield page_data.TaskResult(task, name, measure, metric["shots"], metric["n"], **sources.get(task, {}))


def _benchmarks(models: dict[str, Any]) -> Iterator[page_data.Benchmark]:
    """Our own metrics, then the tasks; of a group without its members."""
    names = {(t, m): x for entry in models.values() for t, some in entry["results"].items() for m, x in some.items()}
    for task, metric in sorted(names, key=lambda name: (name[0] != PERPLEXITY, name)):
        if "part_of" in names[task, metric]:
            continue
        found = {label: entry["results"].get(task, {}).get(metric) for label, entry in models.items()}
        apart = {label: entry.get("against_parent", {}).get(task, {}).get(metric) for label, entry in models.items()}
        shots = names[task, metric]["shots"]
        yield page_data.Benchmark(
            title=f"{task} {metric}" + (f", {shots}-shot" if shots is not None else ""),
            items=names[task, metric]["n"],
            values={label: _interval(x) for label, x in found.items() if x and x["value"] is not None},
            differences={label: _apart(x) for label, x in apart.items() if x},
            chances={label: x["mcnemar"] for label, x in apart.items() if x and x["mcnemar"] is not None},
        )


def _apart(metric: dict[str, Any]) -> page_data.Interval:
    return page_data.Interval(metric["difference"], metric["low"], metric["high"])


def _interval(metric: dict[str, Any]) -> page_data.Interval:
    ends = interval(metric["value"], metric["stderr"], metric.get("clusters", metric["n"]))
    return page_data.Interval(metric["value"], *(ends or ()))


def _speed_settings(timed: dict[str, Any]) -> str:
    if not timed:
        return ""
    how = timed["settings"]
    return (
        f"Batch {how['batch_size']}, prompt {how['prompt_tokens']:,} tokens, {how['new_tokens']:,} new ones, "
        f"{how['cache']} cache, on {timed['device']}."
    )


def _curves(artifact: Artifact) -> page_data.TrainingRun:
    steps, held_out = _rows(artifact.file(METRICS)), _rows(artifact.file(VALIDATION))
    return page_data.TrainingRun(
        label=artifact.label,
        tokens=[row["tokens"] for row in steps],
        loss=[row["loss"] for row in steps],
        learning_rate=[row["learning_rate"] for row in steps],
        validation_tokens=[row["tokens"] for row in held_out],
        validation_loss=[row["loss"] for row in held_out],
        validation_kl=[row["kl"] for row in held_out if "kl" in row],
    )


def _rows(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _lineage(artifact: Artifact) -> page_data.LineageRow:
    inputs = tuple(sorted(artifact.manifest.inputs))
    return page_data.LineageRow(artifact.stage, artifact.key[:8], artifact.label, inputs)


def _command(artifact: Artifact, config: ReportConfig) -> str:
    """The verb with every setting that decided the artifact; the first names the model and the text for all."""
    verb = "eval" if artifact.stage == "evaluate" else artifact.stage
    named = [shlex.quote(config.model), *_settings({"data": config.data})] if verb == "importance" else []
    words = ["minitron", verb, *named, *_settings(artifact.manifest.config)]
    if any(task["name"] in CODE_TASKS for task in artifact.manifest.config.get("tasks", ())):
        words.append("--allow-code-execution")
    return " ".join(words)


def _settings(config: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _settings(value, f"{prefix}{name}.")
        elif value is not None and value != {} and value != []:
            text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
            yield f"{prefix}{name}={shlex.quote(text)}"
