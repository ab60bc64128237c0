import re
import subprocess
import sys
from dataclasses import fields, replace

import matplotlib as mpl
import numpy as np
import pytest

from minitron_cli.figures import MINUS, NOTHING
from minitron_cli.report.data import ReportData
from minitron_cli.report.importance import Importance
from minitron_cli.report.page import render as render_view
from minitron_cli.report.quality import quality_section
from minitron_cli.report.sections import view
from minitron_cli.report.shapes import shape_table
from minitron_cli.report.view import Section, View
from minitron_cli.results.evaluation import MetricResult
from tests.unit.report.hostile import HOSTILE, Page
from tests.unit.report.sample import difference, evaluated, large, sample, size

NOT_SECTIONS = (
    "steps",
    "title",
    "model",
    "sizes",
    "teacher",
    "is_taught",
    "signals",
    "wrapper",
    "worse",
    "to_evaluate",
    "cache_bytes",
    "device_hours",
)
SECTIONS = {"importance": 2, "prune": 3, "models": 2, "texts": 0, "kept": 0}
"""Field -> sections that it fills alone; the others fill one."""


def render(data: ReportData) -> str:
    return render_view(view(data))


@pytest.fixture(scope="module")
def html():
    return render(sample())


@pytest.fixture(scope="module")
def page(html):
    return Page(html)


@pytest.mark.slow
def test_every_section_is_there(page):
    titles = [
        "What was pruned",
        "Quality against size and speed",
        "Results",
        "Speed",
        "Serving",
        "Repair",
        "Layers",
        "Training",
        "Cost",
        "Lineage",
        "Reproduce",
    ]
    assert all(title in page.words for title in [*titles, "Kept channels", "Candidate shapes"])
    assert page.tags["svg", ("viewbox", "role", "aria-label")] == 21


@pytest.mark.slow
def test_the_page_loads_nothing_and_runs_nothing(html, page):
    assert not {"script", "iframe", "object", "embed", "link", "base", "form"} & {tag for tag, _ in page.tags}
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    links = [value for _, name, value in page.attributes if name in ("href", "src", "xlink:href", "action")]
    assert all(re.match(r"#[\w-]+$|data:image/png;base64,", link) for link in links)
    without_pixels = re.sub(r'base64,[^"]*', "", html)
    assert not re.search(r"https?:|//|@import|url\((?!#)", without_pixels)
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    assert ("meta", "content", policy) in page.attributes


@pytest.mark.slow
def test_references_inside_the_page_lead_somewhere_and_only_there(page):
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    targets = [value[1:] for _, name, value in page.attributes if name in ("href", "xlink:href") and value[0] == "#"]
    clips = [target for _, _, value in page.attributes for target in re.findall(r"url\(#([^)]*)\)", value)]
    assert set(targets + clips) <= set(ids)


@pytest.mark.slow
def test_no_name_reaches_a_figure(html):
    figures = re.compile(r"<svg.*?</svg>", re.DOTALL)
    hostile = figures.findall(render(sample(lambda _: HOSTILE[0])))
    assert len(hostile) > 15  # a metric of an unknown name has no plot against the cost
    assert set(hostile) <= set(figures.findall(html))


@pytest.mark.slow
def test_the_same_data_is_the_same_bytes(html):
    code = "import sys; from tests.unit.report.test_page import *; sys.stdout.buffer.write(render(sample()).encode())"
    other = subprocess.run([sys.executable, "-c", code], env={"PYTHONHASHSEED": "1"}, capture_output=True, check=True)
    assert other.stdout.decode() == html


@pytest.mark.slow
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
    assert alone.tags["section", ("id",)] == SECTIONS.get(field, 1)


def test_a_title_alone_is_a_page():
    page = Page(render(ReportData(title="nothing yet")))
    assert page.words == "nothing yet nothing yet"
    assert not page.tags["section", ("id",)]


@pytest.mark.slow
def test_no_word_is_doubled_and_no_number_has_more_digits_than_a_reader_counts(html):
    """Each cell and each sentence for itself; a diverged model has a perplexity of 26 digits."""
    bad = evaluated("diverged", "distilled", 60.5)
    for page in (html, render(ReportData(title="t", models=(evaluated("parent", "parent", 2.0), bad)))):
        texts = re.split(
            r"<[^>]*>|\n", re.sub(r"<style.*?</style>|<svg.*?</svg>|<pre.*?</pre>", "", page, flags=re.DOTALL)
        )
        assert not [text for text in texts if re.search(r"\b([a-z]{2,})\W+\1\b", text, re.IGNORECASE)]
        assert not [text for text in texts if re.search(r"\d{10}|(\d{1,3},){4}", text)]
    assert "1.88 \N{MULTIPLICATION SIGN} 10²⁶" in page


@pytest.mark.slow
def test_a_plot_shows_values_under_a_pointer_and_hides_a_series_without_a_script(html, page):
    (loss,) = (
        figure for figure in re.findall("<figure>.*?</figure>", html, re.DOTALL) if "Loss against param" in figure
    )
    assert '<text display="none"' in loss
    assert ">2.688 nats/token at 2.10 M parameters</text>" in loss
    assert ">layer 8: 2.62 M to 0 parameters</text>" in html
    assert re.search(r"section:has\(> \.legend \.toggle-2:not\(:checked\)\) \.series-2,", html)
    assert html.count('type="checkbox" class="toggle-2" checked>distilled</label>') == 1
    assert 'class="hit series-2"' in loss
    assert re.search(r'<g class="series-2">\s*<', loss)


@pytest.mark.slow
def test_the_value_of_guessing_is_drawn_and_in_the_table(html, page):
    assert "cloze.acc against parameters; guessing has the dashed line." in page.words
    assert "cloze.acc, 0-shot 200 0.250 0.710 (0.643 to 0.777) 0.330" in page.words
    figure = next(f for f in re.findall("<figure>.*?</figure>", html, re.DOTALL) if "cloze.acc against param" in f)
    assert figure.count("stroke-dasharray") == 1


@pytest.mark.slow
def test_the_head_tells_the_result(html, page):
    assert "demo/teacher at 54 % of its size with" in page.words
    assert "demo/teacher was pruned from 3.91 M to 2.10 M parameters, 54 % of its size" in page.words
    assert "keeps 76\N{NO-BREAK SPACE}% of" in html
    assert "Pruning and repair raised the loss from 2.412 to 4.913 nats per token." in page.words
    assert "Distillation on 3.00 M tokens lowered it to 2.688; random-init has 3.371 (+0.683)." in page.words


@pytest.mark.slow
def test_metrics_have_a_row_each_with_intervals_and_the_difference_from_the_parent(page):
    head, none = "metric items chance parent pruned distilled random-init", f"{NOTHING} {NOTHING}"
    sizes = f"parameters {none} 3.91 M 2.10 M 2.10 M 2.10 M training tokens {none} {NOTHING} 0 3.00 M 3.00 M"
    assert f"{head} {sizes} loss (nats/token) 64 {NOTHING} 2.412 (2.372 to 2.452)" in page.words
    assert f"{MINUS}0.070 ({MINUS}0.121 to {MINUS}0.019), p 0.0093" in page.words


@pytest.mark.slow
def test_a_heading_says_on_hover_which_direction_is_better(html):
    assert re.search(r'<th scope="col" title="lower is better">peak memory</th>', html)
    assert re.search(r'<th scope="col" title="higher is better">prefill \(tokens/s\)</th>', html)


@pytest.mark.slow
def test_speed_is_compared_with_the_parents(page):
    assert "distilled 2,610 1.720 (1.700 to 1.750) 63.9 1.550 (1.500 to 1.600) 0.196 733 MiB" in page.words


def test_values_that_were_not_measured_leave_no_row():
    page = Page(render(ReportData(title="t", models=(evaluated("parent", "parent", 2.0),))))
    values = "loss (nats/token) 64 2.000 (1.960 to 2.040) perplexity 64 7.389"
    assert page.words.endswith(f"metric items parent parameters {NOTHING} 5 {values}")


def test_a_value_that_is_not_finite_is_a_dash():
    tasks = {"cloze": {"acc": MetricResult(value=None, n=3)}}
    models = (evaluated("a", "parent", 2.0), evaluated("b", "pruned", tasks=tasks))
    assert f"cloze.acc 3 {NOTHING} {NOTHING}" in Page(render(ReportData(title="t", models=models))).words


@pytest.mark.slow
def test_costs_are_summed_without_what_could_have_been_left_out(page):
    assert "evaluate held-out text 65.5 k" in page.words
    assert "It took 12.5 hours of NVIDIA H200." in page.words
    assert "total \N{EN DASH} 3.92 M 6.80 \N{MULTIPLICATION SIGN} 10¹³" in page.words


@pytest.mark.slow
def test_dropped_layers_are_named(page):
    assert "Dropped: layer 8, in red." in page.words
    importance = Importance(layers={"perplexity": [1.0, 2.0]})
    assert "All layers were kept." in Page(render(ReportData(title="t", importance=importance))).words


@pytest.mark.slow
def test_a_large_model_makes_a_page_under_a_megabyte():
    html = render(large())
    assert len(html.encode()) < 1_000_000
    assert "Tables show the first 40." in html
    assert html.count('<tr class="marked"><th scope="row">') + html.count('<tr><th scope="row">') < 130
    assert html.count("<use") < 1500  # of 2,000 candidates, only the best are drawn


def test_the_share_of_importance_kept_is_measured_where_there_is_a_layer():
    scores = np.array([[4.0, 3.0, 2.0, 1.0], [1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 8.0]])
    kept = {"ffn": np.array([[0, 1], [0, 1], [0, 3]])}
    (section,) = view(ReportData(title="t", importance=Importance({"ffn": scores}, kept, dropped=(1,)))).sections
    np.testing.assert_allclose([y for _, y in section.plots[-1].drawing.lines[0].points], [0.7, np.nan, 1.0])


def test_sizes_of_models_without_a_child_are_shown_alone():
    table = shape_table("Sizes", {"m": size(4_512_746_496, hidden=3072, experts_per_token=2)})
    words = Page(render_view(View("t", sections=(Section("a", "A", "", (table,)),)))).words
    assert "hidden size 3,072 experts_per_token 2 parameters 4,512,746,496" in words


def test_each_of_several_children_has_its_share():
    models = {"parent": size(8, ffn=4), "half": size(4, ffn=2), "quarter": size(2, ffn=1)}
    table = shape_table("Sizes", models)
    assert table.header == ("", "parent", "half", "quarter", "kept by half", "kept by quarter")
    assert table.text()[0] == ("FFN size", "4", "2", "1", "50.0 %", "25.0 %")


def test_a_point_has_the_interval_of_its_difference_and_one_measured_elsewhere_its_own():
    quiz = {"quiz": {"acc": MetricResult(value=0.6, stderr=0.1, n=100)}}
    apart = {"quiz": {"acc": difference(-0.1, -0.12, -0.08)}}
    small = evaluated("small", "distilled", tasks=quiz, apart=apart)
    models = (evaluated("parent", "parent", tasks=quiz), small, evaluated("llama", "other", tasks=quiz))
    (shown,) = quality_section(models, None).plots
    assert [(line.style, line.color) for line in shown.drawing.lines] == [
        ("points", 0),
        ("span", 1),
        ("points", 1),
        ("span", 2),
        ("points", 2),
    ]
    low, high = (value for _, value in shown.drawing.lines[1].points)
    assert (low, high) == pytest.approx((0.58, 0.62))
    low, high = (value for _, value in shown.drawing.lines[3].points)
    assert high - low == pytest.approx(2 * 1.984 * 0.1, rel=1e-3)  # Student's t of 99 degrees of freedom
