"""Container, jobs of clusters and notebook: read by what reads them, run where that is possible."""

import contextlib
import io
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.docs import examples
from tests.docs.commands import of_minitron
from tests.docs.examples import DOCKERFILE, KUBERNETES, NOTEBOOK, SHELL, SLURM, cells, container, instructions
from tests.docs.pages import ROOT
from tests.faults.campaign.programs import fork

# The container --------------------------------------------------------------------------------------------------------

KNOWN = {"FROM", "ARG", "WORKDIR", "COPY", "RUN", "ENV", "USER", "ENTRYPOINT", "CMD"}


def test_every_instruction_of_the_dockerfile_is_one() -> None:
    found = list(instructions(DOCKERFILE.read_text()))
    assert {name for name, _ in found} <= KNOWN
    assert found[0][0] == "FROM"
    for name, text in found:
        if name == "RUN":
            subprocess.run(["bash", "-n", "-c", text], check=True)
        if name in ("ENTRYPOINT", "CMD"):
            assert all(isinstance(word, str) for word in json.loads(text))
    users = [text for name, text in found if name == "USER"]
    assert users
    assert users[-1] != "root"


def test_the_image_has_all_that_the_package_is_built_from() -> None:
    copied = {
        Path(word) for n, text in instructions(DOCKERFILE.read_text()) if n == "COPY" for word in text.split()[:-1]
    }
    assert all((ROOT / path).exists() for path in copied)
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert {str(path) for path in copied} == kept, ".dockerignore keeps other files than the image copies"
    project = (ROOT / "pyproject.toml").read_text()
    needed = re.findall(r'^(?:readme|license-files|packages) = \[?"([^"]+)"', project, re.MULTILINE)
    needed += re.findall(r'^(\S+) = "minitron_cli/', project, re.MULTILINE)
    assert "recipes" in needed
    assert {Path(name) for name in needed if (ROOT / name).exists()} <= copied


def test_the_image_has_a_supported_python_and_the_tested_torch() -> None:
    text = DOCKERFILE.read_text()
    found = re.search(r"^FROM python:3\.(\d+)-slim$", text, re.MULTILINE)
    assert found
    assert f"Python :: 3.{found[1]}" in (ROOT / "pyproject.toml").read_text()
    assert re.search(r"^torch==", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert "grep '^torch==' constraints.txt" in text


def _docker_can_check() -> bool:
    """Whether there is a Docker whose build has the option, as BuildKit's has."""
    if not shutil.which("docker"):
        return False
    return b"--check" in subprocess.run(["docker", "build", "--help"], capture_output=True, check=False).stdout


@pytest.mark.slow
@pytest.mark.skipif(not _docker_can_check(), reason="no Docker with BuildKit here")
def test_docker_finds_nothing_to_say_about_it() -> None:
    subprocess.run(["docker", "build", "--check", str(ROOT)], check=True)


# Clusters -------------------------------------------------------------------------------------------------------------


def put(directory: Path, name: str, text: str) -> None:
    (directory / name).write_text(f"#!/bin/bash\n{text}\n")
    (directory / name).chmod(0o755)


@pytest.fixture
def slurm(tmp_path: Path) -> Callable[[str], subprocess.Popen[bytes]]:
    """Starts the job with `srun` in place of Slurm's, and notes what is asked of `scontrol`."""

    def start(srun: str) -> subprocess.Popen[bytes]:
        put(tmp_path, "srun", f'echo "$@" > {tmp_path}/words\n{srun}')
        put(tmp_path, "scontrol", f'if [ "$1" = show ]; then echo a; echo b; else echo "$@" > {tmp_path}/asked; fi')
        job = {"SLURM_JOB_ID": "7", "SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "4", "SLURM_JOB_NODELIST": "[a,b]"}
        path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
        return subprocess.Popen(["bash", str(SLURM)], env=os.environ | job | {"PATH": path})

    return start


@pytest.mark.parametrize("code", [0, 3])
def test_a_slurm_job_ends_as_its_training_does(slurm: Callable[..., Any], tmp_path: Path, code: int) -> None:
    assert slurm(f"exit {code}").wait(20) == code
    assert not (tmp_path / "asked").exists()
    assert "--rdzv-endpoint a:29500 -m minitron_cli distill" in (tmp_path / "words").read_text()


def test_a_slurm_job_that_runs_out_of_time_is_queued_again(slurm: Callable[..., Any], tmp_path: Path) -> None:
    saving = f"trap 'sleep 0.1; touch {tmp_path}/saved; exit 143' TERM; touch {tmp_path}/started; sleep 20 & wait"
    job = slurm(saving)
    deadline = time.monotonic() + 20
    while not (tmp_path / "started").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    job.send_signal(signal.SIGTERM)
    assert job.wait(20) == 0
    assert (tmp_path / "saved").exists(), "queued before the state was saved"
    assert (tmp_path / "asked").read_text() == "requeue 7\n"


def launched(words: list[str]) -> Any:
    """The arguments of torchrun, as it reads them."""
    from torch.distributed.run import get_args_parser

    return get_args_parser().parse_args(words)


def test_both_clusters_start_the_same_training() -> None:
    script = re.search(r"srun torchrun ((?:.*\\\n)*.*) &$", SLURM.read_text(), re.MULTILINE)
    assert script
    job = launched(script[1].replace("\\\n", " ").replace('"$SLURM_GPUS_ON_NODE"', "4").split())
    pod = launched(container()["args"])
    assert (job.training_script, job.module, job.nproc_per_node) == ("minitron_cli", True, "4")
    assert (pod.training_script, pod.module, pod.nproc_per_node) == ("minitron_cli", True, "4")
    assert (job.rdzv_backend, pod.rdzv_backend, pod.nnodes) == ("c10d", "c10d", "1:2")
    assert os.stat(SLURM).st_mode & stat.S_IXUSR


def test_pods_of_the_kubernetes_job_find_each_other() -> None:
    service, job = yaml.safe_load_all(KUBERNETES.read_text())
    spec = job["spec"]["template"]["spec"]
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    assert spec["subdomain"] == service["metadata"]["name"]
    assert job["spec"]["completionMode"] == "Indexed"
    endpoint = launched(container()["args"]).rdzv_endpoint
    assert endpoint.startswith(f"{job['metadata']['name']}-0.{spec['subdomain']}:")
    mounted = {mount["name"]: mount["mountPath"] for mount in container()["volumeMounts"]}
    assert mounted.keys() == {volume["name"] for volume in spec["volumes"]}
    (runs,) = (one["value"] for one in container()["env"] if one["name"] == "MINITRON_RUNS")
    assert runs.startswith(mounted["work"])
    assert container()["resources"]["limits"]["nvidia.com/gpu"] == 4


# The notebook ---------------------------------------------------------------------------------------------------------


def test_the_notebook_names_what_the_test_makes_smaller() -> None:
    assert FEWER.keys() <= {name for cell in cells() for name, _ in examples.CHOSEN.findall(cell)}


def test_the_notebook_is_one() -> None:
    """The fields that nbformat 4.5 requires, and nothing of a run."""
    book = json.loads(NOTEBOOK.read_text())
    assert (book["nbformat"], book["nbformat_minor"]) == (4, 5)
    assert book["metadata"]["kernelspec"]["name"] == "python3"
    assert len({cell["id"] for cell in book["cells"]}) == len(book["cells"])
    for cell in book["cells"]:
        wanted = {"cell_type", "id", "metadata", "source"}
        assert cell.keys() == wanted | ({"execution_count", "outputs"} if cell["cell_type"] == "code" else set())
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
    for text in cells():
        compile(SHELL.sub(r"\1pass", text), NOTEBOOK.name, "exec")


FEWER = {"DATA": '"text.txt"', "LENGTH": "32", "SAMPLES": "8", "TOKENS": '"1k"'}


def in_small(cell: str) -> str:
    """A cell with less text and fewer tokens, where it names them."""
    return examples.CHOSEN.sub(lambda line: f"{line[1]} = {FEWER.get(line[1], line[2])}", cell)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_cells_of_the_notebook_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place := tmp_path / "place").mkdir()
    library = Path(os.__file__).parent
    (place / "text.txt").write_text("\n\n".join((library / name).read_text() for name in ("argparse.py", "ast.py")))
    monkeypatch.chdir(place)
    monkeypatch.delenv("MINITRON_RUNS", raising=False)
    names: dict[str, Any] = {}
    printed = io.StringIO()

    def shell(line: str) -> None:
        (words,) = of_minitron(line.format(**names))
        done = fork(words, place).wait(600)
        assert done.code == 0, f"{line}\n{done.err}"

    names["shell"] = shell
    with contextlib.redirect_stdout(printed):
        for text in map(in_small, cells()):
            exec(compile(SHELL.sub(r"\1shell(r'''\2''')", text), NOTEBOOK.name, "exec"), names)
    assert "def main(" in printed.getvalue()
    assert "<html" in (place / "report.html").read_text()
    assert (place / "small" / "model.safetensors").is_file()


def test_every_example_has_calls_of_the_program() -> None:
    assert all(examples.calls().values())
