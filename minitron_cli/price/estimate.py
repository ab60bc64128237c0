"""Price of some work on a device: FLOPs over measured speeds, memory and disk by part."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from minitron_cli.cost.compute import Pass
from minitron_cli.price.work import DECODERS, ITEM_BYTES, Moved, Work
from minitron_cli.results.price import Part, Price

if TYPE_CHECKING:
    from minitron_cli.price.disk import DiskSpeed
    from minitron_cli.price.probe import Probe


@dataclass(frozen=True)
class Place:
    """Where work runs: the device, and the directory that its files are written below."""

    device: str
    directory: Path


def price(work: Work, place: Place) -> Price:
    """Price of some work. Its time is None where it is over in seconds, as the probe would be."""
    speeds = None if work.is_quick else _Speeds(work, place)
    moved = list(_moved(work, speeds))  # first, as the first model of a process takes longest to make
    return Price(
        what=work.what,
        parts=tuple(_merged([*_computed(work, speeds), *moved])),
        memory={**work.certain, **work.transient, **(speeds.activations() if speeds else {})},
        disk=work.disk,
        left_out=work.left_out,
    )


def together(prices: Mapping[str, Price]) -> Price:
    """Price of stages, by name, that run one after the other and keep what they write."""
    each = prices.values()
    return Price(
        what="; ".join(f"{name}: {one.what}" for name, one in prices.items()),
        parts=tuple(_merged(part for one in each for part in one.parts)),
        memory=max(each, key=lambda one: one.memory_bytes).memory,
        disk={name: one.disk_bytes for name, one in prices.items()},
        left_out=tuple(dict.fromkeys(reason for one in each for reason in one.left_out)),
    )


class _Speeds:
    """Seconds of each kind of work, from probes of the models that do it."""

    def __init__(self, work: Work, place: Place) -> None:
        self._work, self._place = work, place

    @cached_property
    def _model(self) -> "Probe":
        from minitron_cli.price.probe import Probe

        return Probe(self._work.model, self._place.device, observed=self._work.observed)

    @cached_property
    def _teacher(self) -> "Probe":
        from minitron_cli.price.probe import Probe

        elsewhere = self._work.teacher_device
        return Probe(self._work.model, elsewhere) if elsewhere else self._model

    @cached_property
    def _student(self) -> "Probe":
        from minitron_cli.price.probe import Probe

        assert self._work.student
        return Probe(self._work.student, self._place.device, self._work.training)

    @cached_property
    def _disk(self) -> "DiskSpeed":
        from minitron_cli.price.disk import speed

        return speed(self._place.directory)

    def decoder(self, one: Pass) -> float:
        """Seconds of a pass without the head."""
        how = DECODERS.get(one.work, "forward")
        probe = self._student if how == "training" else self._teacher if one.work == "teacher" else self._model
        return one.decoder * probe.decoder(how) / self._work.processes

    def head(self, one: Pass) -> float:
        """Seconds of a pass in the head."""
        probe = self._student if one.head_work == "training" else self._model
        return one.head * probe.head(one.head_work) / self._work.processes

    def moved(self, moved: Moved) -> float:
        """Seconds of what is beside the models' FLOPs."""
        import torch

        seconds = moved.read * self._disk.read + moved.written * self._disk.write if moved.read + moved.written else 0.0
        if moved.starts:
            seconds += moved.starts * self._model.start()
        if moved.weighed:
            seconds += moved.weighed * self._model.magnitude()
        if moved.updates:
            seconds += moved.updates * self._student.update()
        for flops, dtype in ((moved.products, torch.float32), (moved.solves, torch.float64)):
            seconds += flops * self._model.product(dtype) if flops else 0.0
        return seconds

    def activations(self) -> Mapping[str, int]:
        """What one micro-batch's forward pass keeps for its backward pass, in all layers."""
        run, training = self._work.student, self._work.training
        if run is None or training is None:
            return {}
        layers, of_one = run.shape.sizes["layer"], self._student.saved_bytes(run.tokens)
        if training.activation_checkpointing:
            inputs = layers * run.tokens * run.shape.sizes["hidden"] * ITEM_BYTES[run.dtype]
            return {"activations": round(of_one + inputs)}
        return {"activations": round(of_one * layers)}


def _computed(work: Work, speeds: _Speeds | None) -> Iterator[Part]:
    for one in work.passes:
        seconds = (speeds.decoder(one), speeds.head(one)) if speeds else (None, None)
        yield Part(name=one.work, tokens=one.tokens, flops=one.decoder, seconds=seconds[0])
        if one.head:
            yield Part(name=f"{one.work}, head", flops=one.head, seconds=seconds[1])


def _moved(work: Work, speeds: _Speeds | None) -> Iterator[Part]:
    for name, moved in work.moved.items():
        seconds = speeds.moved(moved) if speeds else None
        yield Part(name=name, flops=moved.products + moved.solves, seconds=seconds)


def _merged(parts: Iterable[Part]) -> Iterator[Part]:
    """One part of each name, in order of first appearance, without those that are nothing."""
    by_name: dict[str, list[Part]] = {}
    for part in parts:
        if part.flops or part.seconds:
            by_name.setdefault(part.name, []).append(part)
    for name, some in by_name.items():
        seconds = [part.seconds for part in some if part.seconds is not None]
        tokens, flops = sum(part.tokens for part in some), sum(part.flops for part in some)
        yield Part(name=name, tokens=tokens, flops=flops, seconds=sum(seconds) if seconds else None)
