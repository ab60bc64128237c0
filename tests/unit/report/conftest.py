import pytest


@pytest.fixture
def _no_figures(monkeypatch):
    """Names do not reach figures (see test_page), which take their time."""
    monkeypatch.setattr("minitron_cli.report.plots.svg", lambda plot: "<svg></svg>")
