"""How long a shape takes on this device: built with random weights, timed in turn with its parent, remembered."""

import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from minitron_cli import io, progress
from minitron_cli.checkpoint import hf, strict_json
from minitron_cli.model.shape import Shape
from minitron_cli.search.constraints.base import Timing, Workload
from minitron_cli.stages.cut import Cutter
from minitron_cli.trim.config import child_config

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DECODED = 4  # tokens of one turn, whose mean counts


@dataclass(frozen=True)
class Stopwatch:
    """Times shapes against the parent. A clock's word is no part of any result: it waits in the user's cache."""

    cutter: Cutter

    def __call__(self, shape: Shape, workload: Workload) -> Timing:
        path = self._path(shape, workload)
        if not path.is_file():
            timing = self._time(shape, workload)
            io.make_dirs(path.parent)
            io.replace(path, io.pretty_json({"timing": timing._asdict(), "of": self._facts(shape, workload)}))
        return Timing(**strict_json.load(path)["timing"])

    def _path(self, shape: Shape, workload: Workload) -> Path:
        cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
        return cache / "minitron" / "timings" / f"{io.digest(self._facts(shape, workload))}.json"

    def _facts(self, shape: Shape, workload: Workload) -> dict[str, Any]:
        """All that a time depends on."""
        context, parent = self.cutter.context, self.cutter.parent
        return {
            "family": shape.family.model_type,
            "shape": dict(shape.sizes),
            "parent": dict(parent.shape.sizes),
            "workload": workload.model_dump(mode="json"),
            "dtype": str(self._dtype),
            "machine": _machine(context.device),
        }

    def _time(self, shape: Shape, workload: Workload) -> Timing:
        child = self._turn(child_config(self.cutter.parent.checkpoint.config, self.cutter.plan(shape)), workload)
        own, theirs = [], []
        with progress.track(f"time {shape}", workload.repeats, "turns") as step:
            for _ in range(workload.repeats):  # in turn, so that what else the machine does hits both
                theirs.append(self._parent_turn(workload)())
                own.append(child())
                step(1, ms=1000 * own[-1])
        return Timing(statistics.median(own), statistics.median(theirs))

    def _parent_turn(self, workload: Workload) -> Callable[[], float]:
        if workload not in self._parents:
            self._parents[workload] = self._turn(dict(self.cutter.parent.checkpoint.config), workload)
        return self._parents[workload]

    @cached_property
    def _parents(self) -> dict[Workload, Callable[[], float]]:
        return {}

    @property
    def _dtype(self) -> torch.dtype:
        """What the parent is stored in, unless another one was asked for."""
        stored = next(iter(self.cutter.parent.checkpoint.tensors.values())).torch_dtype
        return stored if self.cutter.context.dtype == "auto" else getattr(torch, self.cutter.context.dtype)

    def _turn(self, config: dict[str, Any], workload: Workload) -> Callable[[], float]:
        """A function that runs a model of the config once and says how many seconds it took; warmed up."""
        device = self.cutter.context.device
        model = hf.new_model(hf.config_from_dict(config, "the config of the cut model"), seed=0)
        model = model.to(device=device, dtype=self._dtype)
        ids_BT = torch.randint(model.config.vocab_size, (workload.batch, workload.length), device=device)
        turn = _prefill if workload.phase == "prefill" else _decode
        turn(model, ids_BT)
        return lambda: turn(model, ids_BT)


@torch.inference_mode()
def _prefill(model: "PreTrainedModel", ids_BT: torch.Tensor) -> float:
    return _seconds(lambda: model(input_ids=ids_BT, use_cache=False, logits_to_keep=1), model.device)


@torch.inference_mode()
def _decode(model: "PreTrainedModel", ids_BT: torch.Tensor) -> float:
    cache = model(input_ids=ids_BT, use_cache=True, logits_to_keep=1).past_key_values

    def write() -> None:
        for _ in range(DECODED):
            model(input_ids=ids_BT[:, :1], past_key_values=cache, use_cache=True)

    return _seconds(write, model.device) / DECODED


def _seconds(work: Callable[[], Any], device: torch.device) -> float:
    _wait(device)
    started = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - started


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _machine(device: str) -> dict[str, Any]:
    on_cpu = torch.device(device).type == "cpu"
    return {
        "host": platform.node(),
        "processor": _processor() if on_cpu else torch.cuda.get_device_name(device) if "cuda" in device else device,
        "threads": torch.get_num_threads() if on_cpu else None,
        "torch": torch.__version__,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
