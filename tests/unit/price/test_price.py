"""Prices before the work against what finished results say, against models without weights, and against free memory."""

from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM

from minitron_cli import figures, memory, progress
from minitron_cli.artifacts.artifact import Artifact
from minitron_cli.artifacts.build import DryRunStop
from minitron_cli.cost.compute import Pass
from minitron_cli.cost.derive import spent
from minitron_cli.distill import sharding
from minitron_cli.distill.config import CorrectConfig, DistillConfig
from minitron_cli.distill.optimizer import Optimizer
from minitron_cli.errors import EnvironmentFault
from minitron_cli.evaluate.config import EvaluateConfig
from minitron_cli.importance.config import ImportanceConfig
from minitron_cli.inputs.source_model import open_source_model
from minitron_cli.model.families import family_of
from minitron_cli.model.shape import Shape
from minitron_cli.price import estimate, fit, offer, subject, training
from minitron_cli.price import importance as importance_price
from minitron_cli.price import prune as prunings
from minitron_cli.price.work import Moved, Subject, Work
from minitron_cli.prune.config import Budget, PruneConfig
from minitron_cli.results.price import Part, Price
from minitron_cli.stages import correct, distill, evaluate, importance, prune
from tests.quick import slow
from tests.tiny import tiny_config, tiny_model
from tests.unit.stages.place import context, data, write_place

TRAINING = {"steps": 3, "batch_size": 4, "micro_batch_size": 2, "eval_every": 2, "eval_blocks": 3, "warmup_steps": 0}


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    """Name -> a stage on the tiny Llama, as a function of whether only its price is asked for."""
    place = tmp_path_factory.mktemp("place")
    write_place(place)
    text, parent = data(place), open_source_model(place / "model")
    here = context(place / "runs")
    calibration = ImportanceConfig(samples=6, batch_size=2, blocks=(2,))
    scores = importance.run(here, parent, text, calibration)
    shape = PruneConfig(shape={"hidden": 24, "ffn": 32}, repair="all", repair_samples=5)
    child = prune.run(here, parent, shape, scores=scores, data=text)

    def on(dry):
        return replace(here, dry_run=dry, overwrite=dry)

    def pruned(config):
        return lambda dry: prune.run(on(dry), parent, config, scores=scores, data=text)

    budget = PruneConfig(budget=Budget(target="70%", tolerance=0.15), candidates=3, repair="all", repair_samples=5)
    return {
        "importance": lambda dry: importance.run(on(dry), parent, text, calibration),
        "prune": pruned(PruneConfig(shape={"ffn": 32}, repair="none")),
        "prune and repair": pruned(shape),
        "prune to a budget": pruned(budget),
        "distill": lambda dry: distill.run(on(dry), parent, child.path, text, DistillConfig(**TRAINING)),
        "correct": lambda dry: correct.run(on(dry), parent, text, CorrectConfig(**TRAINING)),
        "evaluate": lambda dry: evaluate.run(on(dry), [("pruned", child.path)], parent, text, EvaluateConfig(blocks=4)),
    }


def price_of(stage) -> Price:
    with pytest.raises(DryRunStop) as stop:
        stage(True)
    assert stop.value.price
    return stop.value.price


@pytest.mark.parametrize(
    "name",
    [
        "importance",
        slow("prune"),
        slow("prune and repair"),
        slow("prune to a budget"),
        "distill",
        slow("correct"),
        slow("evaluate"),
    ],
)
def test_the_price_counts_the_flops_that_the_finished_result_says(stages, name):
    price = price_of(stages[name])
    made: Artifact = stages[name](False)
    for entry in spent(made):
        parts = [part for part in price.parts if part.name in (entry.work, f"{entry.work}, head")]
        counted = sum(part.flops for part in parts)
        assert counted == entry.flops or (name == "prune to a budget" and entry.flops < counted < 1.3 * entry.flops)
        assert counted != entry.flops or sum(part.tokens for part in parts) == entry.tokens
    assert made.run
    assert made.run.price
    assert without_libraries(made.run.price) == without_libraries(price)


def without_libraries(price: Price) -> Price:
    held = {part: size for part, size in price.memory.items() if part != offer.LIBRARIES}
    assert held.keys() != price.memory.keys()
    return price.model_copy(update={"memory": held})


def work(certain: int = 0, transient: int = 0, **options) -> Work:
    run = opened().runs(1, 16)
    memory_of = {"certain": {"weights": certain}, "transient": {"activations": transient}}
    passes = (Pass("training", 6, 10, 4),)
    return Work(what="1 step", passes=passes, model=run, remedies=("a=1",), **memory_of, **options)


def opened() -> Subject:
    model = tiny_model("llama")
    return replace(subject.of_config(model.config.to_dict(), shape_of(model)), dtype="float32")


def shape_of(model):
    from minitron_cli.model.families import family_of
    from minitron_cli.model.shape import Shape

    return Shape.of(family_of(model.config), model.config)


@pytest.mark.parametrize("length", [0, 16])
def test_a_pruning_starts_a_model_once_with_or_without_text(length):
    """Without text its export check does, which runs the child."""
    parent = opened()
    child = parent.shape.resize(ffn=32)
    pruning = prunings.Pruning(parent, parent.shape, [child], score_repairs=[()], repairs=[()], length=length)
    assert [part for part, moved in prunings.work(pruning).moved.items() if moved.starts] == [
        "read the parent" if length else "write and check the child"
    ]


@pytest.mark.parametrize("model_type", ["llama", "gemma3_text", "mixtral"])
@pytest.mark.parametrize("tied", [False, True])
def test_weights_gradients_and_moments_are_those_of_a_model_on_the_meta_device(model_type, tied):
    config = tiny_model(model_type, tie_word_embeddings=tied).config
    with torch.device("meta"):
        student = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        teacher = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    for parameter in student.parameters():
        parameter.grad = torch.empty_like(parameter)
    adamw = torch.optim.AdamW(student.parameters(), foreach=True)
    adamw.step()
    moments = [t for state in adamw.state.values() for name, t in state.items() if name != "step"]

    def size(tensors):
        return sum(t.numel() * t.itemsize for t in tensors)

    model = subject.of_config(config.to_dict(), shape_of(student))
    found = training.work(model, model, DistillConfig(steps=1), 16, 0, compute_dtype="bfloat16").certain
    assert found == {
        "weights": size(student.parameters()),
        "gradients": size(p.grad for p in student.parameters()),
        "moments": size(moments),
        "teacher": size(teacher.parameters()),
    }


@pytest.mark.parametrize("kind", ["adamw", "adamw_offload"])
def test_what_a_training_on_a_cpu_holds_is_what_its_optimizer_holds_after_a_step(kind, monkeypatch):
    """Where the device is the host, what is offloaded is in the same memory."""
    model = tiny_model("llama")
    optimizer = Optimizer(dict(model.named_parameters()), DistillConfig(steps=1, optimizer=kind))
    gradients = {p: torch.ones_like(p) for p in model.parameters()}
    for p, gradient in gradients.items():
        p.grad = gradient
    optimizer.step_(1e-3)
    moments = [t for state in optimizer._adamw.state.values() for name, t in state.items() if name != "step"]
    tensors = [*model.parameters(), *gradients.values(), *optimizer._updated.values(), *moments]
    size_of = {t.data_ptr(): t.nbytes for t in tensors}
    said = training.held(shape_of(model).parameters(), None, "float32", kind)
    assert sum(said.values()) == sum(size_of.values())
    for free, fits in ((1.1, False), (1.3, True)):  # with room for loading
        monkeypatch.setattr(memory, "available_bytes", lambda device, free=free: free * sum(size_of.values()))
        assert sharding.fits_replicated("cpu", 1, kind, shape_of(model).parameters(), 0) == fits


def test_what_an_accelerator_leaves_to_the_host_has_to_fit_there(monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda device: 1000 if device == "cpu" else 1e9)
    model, given = opened(), {"compute_dtype": "float32", "device": "cuda"}
    config = DistillConfig(steps=1, optimizer="adamw_offload", teacher_device="cpu")
    one = training.work(model, model, config, 16, 0, may_spread=True, **given)
    weights = model.shape.parameters()
    assert one.certain == {"weights": 4 * weights, "gradients": 4 * weights, "moments": 0}
    assert one.host == {"optimizer=adamw_offload": 16 * weights, "teacher_device=cpu": 4 * weights}
    with pytest.raises(EnvironmentFault, match=r"^optimizer=adamw_offload and teacher_device=cpu need .* 1000 B free"):
        offer.check(one, Price(what="", parts=()), "cuda")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(memory, "available_bytes", lambda device: 30 * weights)
    with pytest.raises(EnvironmentFault, match=r"or use fewer processes$"):
        offer.check(one, Price(what="", parts=()), "cuda")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    offer.check(one, Price(what="", parts=()), "cuda")


@pytest.mark.parametrize(
    ("config", "device", "advice"),
    [
        ({}, "cuda", ["optimizer=adamw_8bit", "optimizer=adamw_offload", "teacher_device=cpu", "--gpus"]),
        ({"optimizer": "adamw_8bit"}, "cuda", ["optimizer=adamw_offload", "teacher_device=cpu"]),
        ({"optimizer": "adamw_offload"}, "cuda", ["teacher_device=cpu"]),
        ({"sharding": "full"}, "cuda", ["--gpus"]),
        ({}, "cpu", ["optimizer=adamw_8bit"]),
        ({"optimizer": "adamw_offload"}, "cpu", ["optimizer=adamw_8bit"]),
        ({"optimizer": "adamw_8bit"}, "cpu", []),
    ],
)
def test_a_refused_training_is_told_what_helps_and_is_accepted(monkeypatch, config, device, advice):
    monkeypatch.setattr(memory, "available_bytes", lambda device: 1000)
    model, settings = opened(), {"steps": 1, **config}
    given = {"compute_dtype": "float32", "device": device}
    one = training.work(model, model, DistillConfig(**settings), 16, 0, **given)
    with pytest.raises(EnvironmentFault) as refused:
        offer.check(one, Price(what="", parts=()), device)
    said = str(refused.value).partition(" free: ")[2]
    assert said.endswith("use a device with more memory, or smaller models") == (device == "cpu")
    settings_said = said.removesuffix("use a device with more memory, or smaller models").removesuffix(", or ")
    offers = settings_said.removeprefix("set ").split(", or ") if advice else []
    assert [word.removeprefix("distill.").split(" ")[0] for word in offers] == advice, said
    for setting in (word.removeprefix("distill.") for word in offers if "with" not in word):
        name, _, value = setting.partition("=")
        smaller = training.work(model, model, DistillConfig(**{**settings, name: value}), 16, 0, **given)
        assert name == "teacher_device" or sum(smaller.certain.values()) < sum(one.certain.values())
    if "--gpus" in advice:
        assert said.endswith("with distill.sharding=full")
    assert not any("optimizer" in word for word in one.remedies), "the batches do not depend on it"


@pytest.mark.parametrize("kind", ["adamw", "adamw_offload"])
def test_checkpoints_are_priced_at_the_tensors_that_are_saved(kind):
    model = tiny_model("llama")
    optimizer = Optimizer(dict(model.named_parameters()), DistillConfig(steps=1, optimizer=kind))
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step_(1e-3)
    state = sum(t.nbytes for name, t in optimizer.tensors().items() if not name.startswith("step."))
    best = sum(t.nbytes for t in optimizer.weights().values())
    student = opened()
    settings = {"steps": 30, "save_every": 10, "eval_every": 15, "keep_last": 2, "optimizer": kind}
    last, exported = (
        training.work(student, None, DistillConfig(**settings, export=export), 16, 4, compute_dtype="float32")
        for export in ("last", "best")
    )
    assert (last.disk["checkpoints"], last.moved["checkpoints"].written) == (3 * state, 3 * state)
    assert exported.disk["checkpoints"] == 3 * state + 2 * best, "the best weights replace those of before"
    assert exported.moved["checkpoints"].written == 3 * state + 3 * best, "before the first step and twice later"
    often = DistillConfig(**settings | {"eval_every": 5}, export="best")
    work = training.work(student, None, often, 16, 4, compute_dtype="float32")
    assert work.disk["checkpoints"] == 3 * state + 3 * best, "those of the newest checkpoint stay"


def test_moments_of_8_bits_are_priced_with_their_scales():
    model = opened()
    config = DistillConfig(steps=1, optimizer="adamw_8bit")
    one = training.work(model, None, config, 16, 0, compute_dtype="float32")
    assert one.disk["checkpoints"] == int((4 + 2 * (1 + 4 / 256)) * model.shape.parameters())


def priced(one: Work, here) -> Price:
    return offer.offered(here, "distill", one)


def test_what_cannot_fit_is_refused_and_what_may_not_is_warned_of(tmp_path, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(memory, "available_bytes", lambda device: 1000)
    monkeypatch.setattr(progress, "warn", said.append)
    here = context(tmp_path / "run")
    with pytest.raises(EnvironmentFault, match=r"needs 1\.758 KiB .*\(weights 1\.758 KiB\) .* 1000 B free: set b=1$"):
        priced(work(certain=1800, weight_remedies=("b=1",)), here)
    with pytest.raises(EnvironmentFault, match=r"use a device with more memory, or smaller models$"):
        priced(work(certain=1800, sharding="s=full"), here)  # processes on one CPU share its memory
    with pytest.raises(EnvironmentFault, match=r"set --gpus 2 with s=full$"):
        offer.check(work(certain=1800, sharding="s=full"), Price(what="", parts=()), "cuda")
    assert not said
    priced(work(certain=900, transient=200), here)
    assert said.pop() == "this may need 1.074 KiB of memory and cpu has 1000 B free: set a=1"
    priced(work(certain=900, transient=50), here)
    assert not said
    with pytest.raises(EnvironmentFault):  # what two processes on one CPU hold is in the same memory
        priced(work(certain=600, processes=2), here)


@pytest.mark.parametrize(
    ("has_bf16", "machine", "dtype", "flops", "is_said"),
    [
        (False, "x86_64", "bfloat16", 10**13, True),
        (False, "x86_64", "bfloat16", 10**10, False),  # over in a moment
        (False, "x86_64", "float32", 10**13, False),
        (False, "arm64", "bfloat16", 10**13, False),  # not known
        (True, "x86_64", "bfloat16", 10**13, False),
        (True, "x86_64", "float16", 10**13, True),
    ],
)
def test_a_dtype_that_the_cpu_emulates_is_said_where_it_takes_long(
    tmp_path, monkeypatch, has_bf16, machine, dtype, flops, is_said
):
    said: list[str] = []
    monkeypatch.setattr(progress, "warn_once", said.append)
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(estimate, "price", lambda work, place: Price(what="", parts=()))
    run = replace(work().model, dtype=dtype)
    priced(replace(work(), model=run, passes=(Pass("calibration", 100, flops),)), context(tmp_path / "run"))
    assert said == [f"this CPU has no instructions for {dtype}: {FASTER}"] * is_said


FASTER = "--dtype float32 computes with the same weights several times as fast, in twice the memory"


def test_the_line_before_the_first_batch_has_every_figure(tmp_path, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(progress, "say", said.append)
    monkeypatch.setattr(memory, "resident_bytes", lambda: 1024)
    priced(work(certain=1024, disk={"a": 2048}, left_out=("b",)), context(tmp_path / "run"))
    assert said == [
        f"distill: 1 step, models read 6 tokens, {figures.power(14)} FLOP, seconds on cpu, 2 KiB of memory, "
        "2 KiB of disk, without b"
    ]
    priced(work(), context(tmp_path / "run", dry_run=True))
    assert len(said) == 1


@pytest.mark.parametrize(
    ("seconds", "written"), [(0.0, "under 1 s"), (0.96, "under 1 s"), (2.0, "about 2 s"), (None, "seconds")]
)
def test_a_time_that_rounds_to_nothing_is_under_a_second(seconds, written):
    price = Price(what="2 layers", parts=(Part(name="a", seconds=seconds),))
    assert offer.line(price, "cpu") == f"2 layers, {written} on cpu"


def test_a_teacher_in_the_hosts_memory_has_the_hosts_speed(tmp_path, monkeypatch):
    """Of its decoder: what the head makes of its states is computed on the student's device."""
    monkeypatch.setattr("minitron_cli.price.probe.Probe.decoder", lambda probe, how: 5 if probe.device == "cpu" else 1)
    monkeypatch.setattr("minitron_cli.price.probe.Probe.head", lambda probe, how: 5 if probe.device == "cpu" else 1)
    monkeypatch.setattr("minitron_cli.price.probe.Probe.saved_bytes", lambda probe, tokens: 0.0)
    model, passes = opened(), (Pass("training", 1, 10**12), Pass("teacher", 1, 10**12, 10**12))
    for where, seconds in (("auto", 1), ("cpu", 5)):
        config = DistillConfig(steps=1, teacher_device=where)
        one = training.work(model, model, config, 16, 0, compute_dtype="float32", device="cuda")
        found = estimate.price(replace(one, passes=passes, moved={}), estimate.Place("cuda", tmp_path))
        assert {part.name: part.seconds / 10**12 for part in found.parts} == {
            "training": 1,
            "teacher": seconds,
            "teacher, head": 1,
        }


def test_time_is_the_sum_of_flops_over_speeds_and_bytes_over_the_disks(tmp_path, monkeypatch):
    """With speeds that are given, the price is arithmetic that can be done by hand."""
    speeds = {"forward": 1e-12, "observed": 2e-12, "loss": 3e-12}
    monkeypatch.setattr("minitron_cli.price.probe.Probe.decoder", lambda _, how: speeds[how])
    monkeypatch.setattr("minitron_cli.price.probe.Probe.head", lambda _, how: speeds[how])
    monkeypatch.setattr("minitron_cli.price.disk.speed", lambda _: type("Speed", (), {"read": 1e-9, "write": 2e-9}))
    passes = (Pass("calibration", 100, 10**12), Pass("layer removal", 100, 10**12, 10**13))
    one = replace(work(), passes=passes, moved={"files": Moved(read=10**9, written=10**9)})
    found = estimate.price(one, estimate.Place("cpu", tmp_path))
    assert [(part.name, part.seconds) for part in found.parts] == [
        ("calibration", pytest.approx(2)),
        ("layer removal", pytest.approx(1)),
        ("layer removal, head", pytest.approx(30)),
        ("files", pytest.approx(3)),
    ]
    assert found.seconds == pytest.approx(36)


def test_advice_on_memory_can_be_followed() -> None:
    """Some losses need whole logits, and some measurements the whole model."""
    remedies = training._remedies(DistillConfig(steps=1, losses=[{"kind": "jsd"}]))
    assert not [one for one in remedies if "low_memory" in one]
    assert [one for one in training._remedies(DistillConfig(steps=1)) if "low_memory" in one]
    assert importance_price._smaller_weights(ImportanceConfig(collapse=2)) == ("collapse=null",)
    assert importance_price._smaller_weights(ImportanceConfig()) == ("mode=layer_major",)


def test_experts_are_counted_as_often_as_a_token_uses_them() -> None:
    typed = tiny_config("qwen3_moe")
    run = subject.of_config(typed.to_dict(), Shape.of(family_of(typed), typed), "float32").runs(1, 8)
    shape, sizes = run.shape, run.shape.sizes
    chosen = shape.active["expert"]
    assert chosen > 1
    assert run.layer_bytes() == 4 * 8 * (4 * sizes["hidden"] + chosen * (3 * sizes["ffn"] + sizes["hidden"]))


def test_a_repair_holds_the_sums_of_all_experts_whose_neurons_are_pruned() -> None:
    typed = tiny_config("qwen3_moe")
    run = subject.of_config(typed.to_dict(), Shape.of(family_of(typed), typed), "float32").runs(1, 8)
    neurons, hidden, experts = 4, run.shape.sizes["hidden"], run.shape.sizes["expert"]
    found = fit.memory(run, run.shape.resize(ffn=neurons), 8, 0)["sums"]
    assert found >= experts * 2 * neurons * (neurons + hidden) * 4 + fit.COPIES * hidden**2 * 8


def test_learned_masks_are_priced_in_the_precision_that_they_train_in() -> None:
    typed = tiny_config("llama")
    model = subject.of_config(typed.to_dict(), Shape.of(family_of(typed), typed), "bfloat16")
    plain, learned = ImportanceConfig(), ImportanceConfig(learned={"shape": {"ffn": 8}})
    held = [importance_price.work(model, one, 16, is_resident=True).certain["weights"] for one in (plain, learned)]
    assert held[1] == 2 * held[0] == 4 * model.shape.parameters()
