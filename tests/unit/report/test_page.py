import re
import subprocess
import sys
from dataclasses import fields, replace

import matplotlib as mpl
import numpy as np
import pytest

from minitron_cli.report.data import Benchmark, Interval, LayerCurves, Measure, ModelFacts, ReportData, ResultRow
from minitron_cli.report.page import render
from minitron_cli.report.text import MINUS, NOTHING, TIMES
from tests.unit.report.hostile import HOSTILE, Page
from tests.unit.report.sample import large, sample

NOT_SECTIONS = (
    "title",
    "kept",
    "importance_metric",
    "candidate_parameters",
    "comparison",
    "speed_settings",
    "device_hours",
)


@pytest.fixture(scope="module")
def html():
    return render(sample())


@pytest.fixture(scope="module")
def page(html):
    return Page(html)


def test_every_section_is_there(page):
    titles = ["Results", "Benchmarks", "Speed", "Shape", "Layers", "Training", "Cost", "Lineage", "Reproduce"]
    assert all(title in page.words for title in [*titles, "What was kept", "Candidate shapes"])
    assert page.tags["svg", ("viewbox", "role", "aria-label")] == 14


def test_the_page_loads_nothing_and_runs_nothing(html, page):
    assert not {"script", "iframe", "object", "embed", "link", "base", "form"} & {tag for tag, _ in page.tags}
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    links = [value for _, name, value in page.attributes if name in ("href", "src", "xlink:href", "action")]
    assert all(re.match(r"#[\w-]+$|data:image/png;base64,", link) for link in links)
    without_pixels = re.sub(r'base64,[^"]*', "", html)
    assert not re.search(r"https?:|//|@import|url\((?!#)", without_pixels)
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    assert ("meta", "content", policy) in page.attributes


def test_references_inside_the_page_lead_somewhere_and_only_there(page):
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    targets = [value[1:] for _, name, value in page.attributes if name in ("href", "xlink:href") and value[0] == "#"]
    clips = [target for _, _, value in page.attributes for target in re.findall(r"url\(#([^)]*)\)", value)]
    assert set(targets + clips) <= set(ids)


def test_no_name_reaches_a_figure(html):
    figures = re.compile(r"<svg.*?</svg>", re.DOTALL)
    assert figures.findall(render(sample(lambda _: HOSTILE[0]))) == figures.findall(html)


def test_the_same_data_is_the_same_bytes(html):
    code = "import sys; from tests.unit.report.test_page import *; sys.stdout.buffer.write(render(sample()).encode())"
    assert render(sample()) == html
    other = subprocess.run([sys.executable, "-c", code], env={"PYTHONHASHSEED": "1"}, capture_output=True, check=True)
    assert other.stdout.decode() == html


def test_the_users_matplotlib_settings_neither_matter_nor_change(html):
    with mpl.rc_context({"font.size": 40, "axes.facecolor": "red", "text.usetex": True}):
        before = dict(mpl.rcParams)
        assert render(sample()) == html
        assert dict(mpl.rcParams) == before


@pytest.mark.usefixtures("_no_figures")
@pytest.mark.parametrize("field", [f.name for f in fields(ReportData) if f.name not in NOT_SECTIONS])
def test_any_part_may_be_missing_and_any_may_be_alone(field):
    full = sample()
    empty = next(f for f in fields(ReportData) if f.name == field)
    default = empty.default_factory() if callable(empty.default_factory) else empty.default
    assert Page(render(replace(full, **{field: default}))).words
    alone = Page(render(ReportData(title="t", **{field: getattr(full, field)})))
    assert alone.tags["section", ("id",)] == 1


def test_a_title_alone_is_a_page():
    page = Page(render(ReportData(title="nothing yet")))
    assert page.words == "nothing yet nothing yet"
    assert not page.tags["section", ("id",)]


def test_the_head_tells_the_result(page):
    assert "3.91 M to 2.10 M parameters, 54 % of its size" in page.words
    assert "mended without training, raised its loss from 2.412 to 4.913 nats per token." in page.words
    assert "Distillation lowered it to 2.688; random-init has 3.371 (+0.683)." in page.words


def test_results_have_a_row_per_model_and_errors_beside_values(page):
    assert "distilled 2.10 M 2.688 ± 0.020 +0.276 14.702 0.271 ± 0.010 3.00 M" in page.words
    without = Page(render(replace(sample(), benchmarks=())))
    assert "0.271 ± 0.010 0.640 ± 0.034 0.660 ± 0.034 3.00 M" in without.words


def test_benchmarks_have_a_row_each_with_intervals_beside_the_parent(page):
    assert "items parent distilled cloze acc, 0-shot 200 0.710 (0.645 to 0.775) 0.640 (0.573 to 0.707)" in page.words
    assert f"cloze acc, 0-shot {MINUS}0.070 ({MINUS}0.121 to {MINUS}0.019), p 0.0093" in page.words


def test_benchmarks_have_models_in_the_order_of_the_results():
    """The parent has no KL to itself, and comes first all the same."""
    rows = (ResultRow("parent", "parent"), ResultRow("pruned", "pruned"))
    kl = Benchmark("perplexity kl", 20, {"pruned": Interval(0.1)})
    loss = Benchmark("perplexity loss", 20, {"pruned": Interval(2.5), "parent": Interval(2.4)})
    words = Page(render(ReportData(title="t", results=rows, benchmarks=(kl, loss)))).words
    assert f"items parent pruned perplexity kl 20 {NOTHING} 0.100 perplexity loss 20 2.400 2.500" in words


def test_speed_is_told_beside_the_parents(page):
    assert f"distilled 2.61 k 1.72 {TIMES} (1.70 to 1.75) 63.9 1.55 {TIMES} (1.50 to 1.60) 196 ms 733 MiB" in page.words


def test_values_that_were_not_measured_leave_no_column():
    page = Page(render(ReportData(title="t", results=(ResultRow("parent", "parent", loss=Measure(2.0)),))))
    assert "model loss parent 2.000" in page.words
    assert f"perplexity {NOTHING}" not in page.words


def test_a_value_that_is_not_finite_is_a_dash():
    rows = (ResultRow("a", "parent", 5, Measure(2.0)), ResultRow("b", "pruned", 5, Measure(None)))
    assert f"b 5 {NOTHING}" in Page(render(ReportData(title="t", results=rows))).words


def test_costs_are_summed_without_what_could_have_been_left_out(page):
    assert "evaluate held-out text 65.5 k" in page.words
    assert "It took 12.5 hours of NVIDIA H200." in page.words
    assert "total 3.92 M 6.80 \N{MULTIPLICATION SIGN} 10¹³" in page.words


def test_dropped_layers_are_named(page):
    assert "Dropped: layer 8, in red." in page.words
    layers = LayerCurves(perplexity=[1.0, 2.0], dropped=())
    assert "All layers were kept." in Page(render(ReportData(title="t", layers=layers))).words


def test_a_large_model_makes_a_page_under_a_megabyte():
    html = render(large())
    assert len(html.encode()) < 1_000_000
    assert "The table shows the first 40." in html
    assert html.count('<tr class="marked"><th scope="row">') + html.count('<tr><th scope="row">') < 90
    assert html.count("<use") < 1500  # of 2,000 candidates, only the best are drawn


def test_the_share_of_importance_kept_is_measured_where_there_is_a_layer(monkeypatch):
    drawn = {}
    monkeypatch.setattr(
        "minitron_cli.report.plots.kept_shares", lambda name, shares: drawn.update(shares) or "<svg></svg>"
    )
    scores = np.array([[4.0, 3.0, 2.0, 1.0], [1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 8.0]])
    kept = {"ffn": np.array([[0, 1], [0, 1], [0, 3]])}
    render(ReportData(title="t", importance={"ffn": scores}, kept=kept, layers=LayerCurves([1, 2, 3], dropped=(1,))))
    np.testing.assert_allclose(drawn[0], [0.7, np.nan, 1.0])


def test_sizes_of_models_without_a_child_are_shown_alone():
    parent = ModelFacts("m", "llama", {"hidden": 3072, "experts_per_token": 2}, 4_512_746_496)
    words = Page(render(ReportData(title="t", parent=parent))).words
    assert "hidden size 3,072 experts_per_token 2 parameters 4,512,746,496" in words
