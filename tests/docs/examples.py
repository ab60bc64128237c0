"""Files beside the documentation that users start from: a container, jobs of clusters, a notebook."""

import json
import re
import shlex
from collections.abc import Iterator
from typing import Any

import yaml

from tests.docs.commands import of_minitron
from tests.docs.pages import ROOT

DOCKERFILE = ROOT / "Dockerfile"
SLURM = ROOT / "examples" / "slurm.sh"
KUBERNETES = ROOT / "examples" / "kubernetes.yaml"
NOTEBOOK = ROOT / "examples" / "minitron.ipynb"

CHOSEN = re.compile(r'^([A-Z]+) = ("[^"]*"|\d+)', re.MULTILINE)
SHELL = re.compile(r"^(\s*)!(.*)$", re.MULTILINE)


def instructions(text: str) -> Iterator[tuple[str, str]]:
    """Instructions of a Dockerfile with their arguments, continued lines joined."""
    plain = re.sub(r"(?m)^#.*\n?", "", text).replace("\\\n", " ")
    for line in filter(None, map(str.strip, plain.splitlines())):
        name, _, rest = line.partition(" ")
        yield name, rest.strip()


def container() -> dict[str, Any]:
    """The one container of the Kubernetes job."""
    documents = list(yaml.safe_load_all(KUBERNETES.read_text()))
    (job,) = (document for document in documents if document["kind"] == "Job")
    (found,) = job["spec"]["template"]["spec"]["containers"]
    return found


def cells(kind: str = "code") -> list[str]:
    """Text of the notebook's cells of a kind."""
    return ["".join(cell["source"]) for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == kind]


def calls() -> dict[str, list[list[str]]]:
    """The arguments of every call of the program in an example, by the name of its file."""
    pod = container()
    chosen = {name: value.strip('"') for cell in cells() for name, value in CHOSEN.findall(cell)}
    shell = [line.format(**chosen) for cell in cells() for _, line in SHELL.findall(cell)]
    scripts = {
        "slurm.sh": SLURM.read_text(),
        "kubernetes.yaml": shlex.join([*pod["command"], *pod["args"]]),
        "minitron.ipynb": "\n".join(shell),
    }
    return {name: list(of_minitron(script)) for name, script in scripts.items()}
