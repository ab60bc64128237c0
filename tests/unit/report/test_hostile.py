"""No name leaves its place: with any of them, everything made has the structure that it has with a harmless one."""

import re
from xml.etree import ElementTree

import pytest

from minitron_cli.evaluate.gate import Outcome
from minitron_cli.report.card import HubFacts, model_card
from minitron_cli.report.data import ReportData
from minitron_cli.report.gate_summary import junit, summary
from minitron_cli.report.page import render as render_view
from minitron_cli.report.sections import view
from minitron_cli.report.text import clean
from minitron_cli.results.evaluation import MetricResult
from tests.unit.report.hostile import CARD_KEYS, HOSTILE, Page, blocks, elements, front_matter, heading
from tests.unit.report.sample import difference, evaluated, sample

HARMLESS = "name"
LINK = re.compile(r"(?<!\\)://|\bwww\.|[a-z]@", re.IGNORECASE)  # what GitHub makes a link of without being asked


def render(data):
    return render_view(view(data))


@pytest.fixture(params=[0, *(pytest.param(start, marks=pytest.mark.slow) for start in range(1, 5))])
def every_name(subtests, request):
    """Check a property of every fifth hostile name, from each of the first five on; a failure shows the name."""

    def check(holds):
        for text in HOSTILE[request.param :: 5]:
            with subtests.test(name=text[:80]):
                holds(text)

    return check


@pytest.mark.slow
@pytest.mark.usefixtures("_no_figures")
def test_the_page_can_be_stored_and_has_the_same_tags_with_the_same_attributes(every_name):
    harmless = Page(render(sample(lambda _: HARMLESS)))

    def holds(text):
        page = render(sample(lambda _: text))
        assert page.encode()
        hostile = Page(page)
        assert hostile.tags == harmless.tags
        assert hostile.attributes == harmless.attributes
        assert not hostile.comments

    every_name(holds)


@pytest.mark.slow
def test_the_page_shows_names_as_they_are(every_name):
    def holds(text):
        shown = "".join(Page(render(ReportData(title=text, commands=(text,)))).text)
        visible = re.sub(r"[\x00\x07\x1b\x85\ud800\u202e\u2066\ufffe\uffff]", "\ufffd", text)
        assert shown.count(visible) == 3  # title, heading, command

    every_name(holds)


def card(name):
    return model_card(sample(lambda _: name), name=name, hub=HubFacts("me/large", name, name, name, (name,), (name,)))


@pytest.mark.slow
def test_the_card_has_the_same_metadata_and_the_same_blocks(every_name):
    harmless = blocks(front_matter(card(HARMLESS))[1])

    def holds(text):
        metadata, hostile = front_matter(card(text))
        assert metadata.keys() == CARD_KEYS
        assert metadata["base_model"] == "me/large"
        assert metadata["license"] == clean(text)
        assert metadata["model-index"][0]["name"] == clean(text)
        assert blocks(hostile) == harmless
        assert not LINK.search(without_code(hostile))
        assert hostile.encode()

    every_name(holds)


@pytest.mark.slow
def test_markdown_shows_names_as_they_are(every_name):
    def holds(text):
        flat = " ".join(clean(text).split())
        assert heading(front_matter(card(text))[1]) == flat
        assert heading(summarized(text)) == f"minitron eval: {flat}"

    every_name(holds)


def outcomes(name):
    yes = Outcome(f"{name}.acc", "absolute", f"{name}.acc", is_minimum=True, bound=0.5, value=0.7, compared=0.7)
    no = Outcome(f"{name}.acc", "parent", f"{name}.acc / {name}", is_minimum=True, bound=0.9, value=0.7, compared=0.7)
    return [yes, no]


def test_junit_has_the_same_elements_with_the_same_attributes(every_name):
    harmless = elements(junit(outcomes(HARMLESS), HARMLESS))

    def holds(text):
        hostile = junit(outcomes(text), text)
        assert elements(hostile) == harmless
        shown = ElementTree.fromstring(hostile)[0].get("name")
        assert " ".join(shown.split()) == " ".join(clean(text).split())

    every_name(holds)


def summarized(name):
    tasks = {name: {name: MetricResult(value=0.7, stderr=0.1, n=100)}}
    apart = {name: {name: difference(-0.1, -0.2, 0.0)}}
    models = [evaluated("parent", "parent", tasks=tasks), evaluated(f"{name}!", "control", tasks=tasks, apart=apart)]
    return summary(models, outcomes(name), name)


def test_the_summary_has_the_same_blocks(every_name):
    harmless = blocks(summarized(HARMLESS))

    def holds(text):
        hostile = summarized(text)
        assert blocks(hostile) == harmless
        assert not LINK.search(hostile)
        assert hostile.encode()

    every_name(holds)


def without_code(markdown):
    return re.sub(r"^(`{3,})\w*\n.*?^\1$", "", markdown, flags=re.DOTALL | re.MULTILINE)
