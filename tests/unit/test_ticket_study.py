"""The study of tickets runs from one end to the other, and again without work."""

import os
import sys
from pathlib import Path

import pytest

from scripts import ticket_study
from tests.processes import apart


def study(*words: str) -> None:
    """Run the script with these arguments."""
    sys.argv = ["ticket_study.py", "--quick", *words]
    ticket_study.main()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_quick_study_writes_both_pages_and_is_not_repeated(tmp_path: Path) -> None:
    library = Path(os.__file__).parent
    texts = [str(library / f"{name}.py") for name in ("argparse", "ast", "inspect", "pathlib", "typing", "subprocess")]
    words = ("--text", *texts, "--runs-dir", str(tmp_path / "runs"), "--output", str(tmp_path / "pages"))
    apart(study, *words)
    pages = {path.name: path.read_text() for path in (tmp_path / "pages").iterdir()}
    assert pages.keys() == {"tickets.md", "landscape.md"}
    assert pages["tickets.md"].count("| ticket | 1 | 50.0 % |") == 2
    assert "| random\\_mask (init) | ticket (init) | 50.0 % |" in pages["tickets.md"]
    assert "| shuffled | transferred | 50.0 % |" in pages["tickets.md"]
    assert "| transferred | ticket | 50.0 % |" in pages["tickets.md"]
    assert pages["tickets.md"].count("| edge\\_popup | 50.0 % |") == 2
    assert "| dense, seed 0 to seed 1 |" in pages["landscape.md"]
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("manifest.json")}
    apart(study, *words)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("manifest.json")} == made
