"""License texts of a model go with everything that is made from it, and are no part of what it is."""

from pathlib import Path

import pytest

from minitron_cli.artifacts.fingerprint import of_directory, of_model
from minitron_cli.artifacts.license_files import MAX_BYTES, is_license, license_files
from minitron_cli.distill.config import DistillConfig
from minitron_cli.importance.config import ImportanceConfig
from minitron_cli.inputs.source_model import open_source_model
from minitron_cli.prune.config import PruneConfig
from minitron_cli.sparse.config import SparsifyConfig
from minitron_cli.stages import distill, importance, prune, sparsify
from tests.unit.stages.place import context, data, write_place

TEXTS = {"LICENSE": b"do as you please", "NOTICE.txt": b"made by us", "USE_POLICY.md": b"be kind", "license-2": b"\xff"}


@pytest.mark.parametrize("name", [*TEXTS, "LICENSE.txt", "Licence.md", "COPYING", "LICENSE_MODEL", "LICENSE-APACHE"])
def test_what_is_a_license(name: str) -> None:
    assert is_license(name)


@pytest.mark.parametrize("name", ["license.json", "licensed.txt", "README.md", "a-LICENSE", "NOTICE.jinja", ".LICENSE"])
def test_what_is_not(name: str) -> None:
    assert not is_license(name)


def test_a_directory_and_a_large_file_are_left_where_they_are(tmp_path: Path) -> None:
    (tmp_path / "LICENSE").mkdir()
    (tmp_path / "NOTICE").write_bytes(b"x" * (MAX_BYTES + 1))
    (tmp_path / "COPYING").write_bytes(b"x" * MAX_BYTES)
    assert license_files(tmp_path) == ("COPYING",)


@pytest.mark.slow
def test_licenses_are_passed_on_and_change_no_identity(tmp_path: Path) -> None:
    write_place(tmp_path)
    place, text = context(tmp_path / "run"), data(tmp_path)
    model = tmp_path / "model"
    before = of_directory(model)
    for name, content in TEXTS.items():
        (model / name).write_bytes(content)
    assert of_directory(model) == before
    parent = open_source_model(model)
    scores = importance.run(place, parent, text, ImportanceConfig(samples=4, layer_removal=False))
    pruned = prune.run(place, parent, PruneConfig(shape={"ffn": 32}, repair="none"), scores=scores)
    training = DistillConfig(steps=1, batch_size=1, micro_batch_size=1, warmup_steps=0)
    for made in (
        pruned,
        sparsify.run(place, parent, SparsifyConfig(metric="magnitude", pattern="2:4"), None),
        distill.run(place, parent, pruned.path, text, training),
    ):
        assert {name: (made.path / name).read_bytes() for name in TEXTS} == TEXTS
        assert of_directory(made.path) == of_model(made.manifest)
        assert TEXTS.keys() <= made.manifest.files.keys(), "and are uploaded by push"
