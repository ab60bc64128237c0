from types import SimpleNamespace

import pytest

from minitron_cli.errors import InputError, RunFailed
from minitron_cli.evaluate import generation_speed, speed_record
from minitron_cli.evaluate.config import Speed
from minitron_cli.evaluate.generation_speed import GenerationRates, SpeedComparison
from minitron_cli.results.evaluation import PARENT
from tests.tiny import tiny_model, write_tiny

SHORT = Speed(batch_size=2, prompt_tokens=6, new_tokens=4, rounds=3)


@pytest.fixture(scope="module")
def pair():
    return tiny_model("llama", num_hidden_layers=1), tiny_model("llama")


def test_models_take_turns_and_figures_are_medians(pair, monkeypatch):
    """The parent's machine slows down from round to round, and the child with it: the ratio stays."""
    model, parent = pair
    turns = []

    def generate(subject, prompt_BT, config):
        turns.append("model" if subject is model else "parent")
        slow = [1, 1, 2, 8][min((len(turns) - 1) // 2, 3)]  # the first two calls warm up
        rate = (30 if subject is model else 10) / slow
        return GenerationRates(10 * rate, rate, 1 / rate)

    monkeypatch.setattr(generation_speed, "_generate", generate)
    found = generation_speed.compare(model, parent, SHORT)
    assert turns[2:] == ["parent", "model", "model", "parent", "parent", "model"]
    assert (found.parent.decode_tokens_per_second, found.model.decode_tokens_per_second) == (5, 15)
    assert found.decode_ratio == found.prefill_ratio == pytest.approx(3)


def test_the_spread_is_that_of_the_rounds(pair, monkeypatch):
    rates = iter([1, 1, *(10, 15), *(20, 10), *(10, 18)])  # warm-up, then parent and model, turned round each time
    monkeypatch.setattr(
        generation_speed, "_generate", lambda *a: GenerationRates(2 * (rate := next(rates)), rate, 1 / rate)
    )
    found = generation_speed.compare(*pair, SHORT)
    assert (found.decode_ratio, found.decode_range) == (1.8, (1.5, 2.0))
    assert (found.prefill_ratio, found.prefill_range) == (1.8, (1.5, 2.0))


@pytest.mark.parametrize("sizes", [(16, 320), (320, 16)])
def test_the_prompt_has_tokens_that_both_models_have(sizes):
    model, parent = (tiny_model("llama", num_hidden_layers=1, vocab_size=size) for size in sizes)
    assert generation_speed.compare(model, parent, SHORT).decode_ratio > 0


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_figures_are_tokens_over_the_time_they_took(pair, cache, monkeypatch):
    clock = iter([0.0, 2.0, 3.0, 4.0, 7.0])  # the start, then every token's logits
    monkeypatch.setattr(generation_speed.time, "perf_counter", lambda: next(clock))
    found = generation_speed._generate(
        pair[1], generation_speed._prompt(pair[1], SHORT), SHORT.model_copy(update={"cache": cache})
    )
    assert found.time_to_first_token_seconds == 2
    assert found.prefill_tokens_per_second == 2 * 6 / 2
    assert found.decode_tokens_per_second == pytest.approx(2 * 3 / 5)


@pytest.mark.parametrize(
    "options", [{"num_beams": 3}, {"do_sample": True, "num_return_sequences": 2}, {"stop_strings": ["a"]}], ids=str
)
def test_speed_is_that_of_greedy_generation_whatever_a_model_does_by_default(options):
    model = tiny_model("llama", num_hidden_layers=1)
    model.generation_config.update(**options)
    found = generation_speed.compare(model, model, SHORT)
    assert found.model.decode_tokens_per_second > 0


def test_more_tokens_than_positions_are_refused(pair):
    with pytest.raises(InputError, match=r"are 132, and the model has 128 positions; lower"):
        generation_speed.compare(*pair, Speed(prompt_tokens=100, new_tokens=32))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_memory_is_that_of_a_process_of_its_own(tmp_path):
    path = write_tiny(tmp_path / "model")
    found = generation_speed.peak_memory(path, SHORT, device="cpu", dtype="auto")
    assert found["peak_bytes"] > found["libraries_bytes"] > 1 << 20
    with pytest.raises(RunFailed, match="could not be measured"):
        generation_speed.peak_memory(tmp_path / "absent", SHORT, device="cpu", dtype="auto")


def test_models_are_timed_in_the_dtype_that_the_evaluation_runs_them_in(monkeypatch):
    """Which is float32 where a CPU only emulates the stored one."""
    used = []
    rates = GenerationRates(1.0, 1.0, 1.0)
    monkeypatch.setattr(speed_record.hf, "load_model", lambda path, device, dtype: used.append(dtype))
    monkeypatch.setattr(
        generation_speed, "compare", lambda *_: SpeedComparison(rates, rates, 1.0, (1.0, 1.0), 1.0, (1.0, 1.0))
    )
    monkeypatch.setattr(generation_speed, "peak_memory", lambda *_, device, dtype: used.append(dtype) or {})
    subjects = {
        label: SimpleNamespace(path=label, dtype_in=lambda context: f"{context.dtype} on {context.device}")
        for label in (PARENT, "pruned")
    }
    speed_record.speed_of(SimpleNamespace(device="cpu", dtype="auto"), subjects, Speed())
    assert used == ["auto on cpu"] * 4
