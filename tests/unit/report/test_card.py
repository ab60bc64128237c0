import json
from unittest import TestCase

import pytest
from huggingface_hub import ModelCard

from minitron_cli.report.card import HubFacts, model_card
from minitron_cli.report.data import ReportData
from minitron_cli.report.evaluation import Evaluated
from minitron_cli.results.evaluation import MetricResult, TaskSource
from tests.unit.report.hostile import CARD_KEYS
from tests.unit.report.sample import evaluated, evaluation, pruned, sample


@pytest.fixture
def card():
    return ModelCard(
        model_card(
            sample(),
            name="me/small",
            hub=HubFacts("me/large", "apache-2.0", language=("en",), datasets=("me/text",)),
        )
    )


def test_the_hub_reads_its_metadata(card):
    metadata = card.data.to_dict()
    assert metadata["base_model"] == "me/large"
    assert metadata["library_name"] == "transformers"
    assert metadata["base_model_relation"] in {"adapter", "merge", "quantized", "finetune"}  # the hub knows no other
    assert metadata["license"] == "apache-2.0"
    assert metadata.keys() <= CARD_KEYS
    assert metadata["language"] == ["en"]
    assert {"minitron", "pruning"} <= set(metadata["tags"])


@pytest.mark.parametrize(
    ("done", "tags", "sentence"),
    [
        ({"is_taught": True}, {"knowledge-distillation"}, "A language model made by knowledge distillation."),
        ({"is_taught": False}, set(), "A language model made by further training."),
        ({"prune": pruned()}, {"pruning"}, "A language model compressed by structured pruning."),
        (
            {"prune": pruned(), "is_taught": False},
            {"pruning"},
            "A language model compressed by structured pruning and further training.",
        ),
        (
            {"prune": pruned(), "sparsity": sample().sparsity, "is_taught": True},
            {"pruning", "sparse", "knowledge-distillation"},
            "A language model compressed by structured pruning, pruning of single weights and knowledge distillation.",
        ),
    ],
)
def test_a_card_says_what_was_done_and_no_more(done, tags, sentence):
    found = ModelCard(model_card(ReportData(title="t", **done), name="small"))
    assert set(found.data.tags) == {"minitron", *tags}
    assert f"\n\n{sentence}\n\n" in found.content


def test_a_card_of_scores_alone_claims_nothing():
    assert "A language model" not in model_card(ReportData(title="t"), name="small")


def test_results_are_those_of_the_distilled_model(card):
    found = {(r.dataset_type, r.dataset_name, r.metric_type): r.metric_value for r in card.data.eval_results}
    assert found == {("cloze", "cloze (0-shot)", "acc"): 0.64, ("cloze", "cloze (0-shot)", "acc_norm!"): 0.66}


def test_results_name_their_dataset_as_the_hub_does():
    source = TaskSource(dataset="allenai/winogrande", config="winogrande_xl", split="validation")
    found = evaluation(tasks={"winogrande": {"acc": MetricResult(value=0.5, n=1267, shots=5)}})
    row = Evaluated("a", "distilled", found.model_copy(update={"sources": {"winogrande": source}}))
    (found,) = ModelCard(model_card(ReportData(title="t", models=(row,)), name="small")).data.eval_results
    assert (found.dataset_type, found.dataset_config, found.dataset_split) == (
        "allenai/winogrande",
        "winogrande_xl",
        "validation",
    )
    assert (found.task_type, found.metric_type, found.metric_value) == ("text-generation", "acc", 0.5)
    assert found.dataset_args == {"num_few_shot": 5}


def test_license_and_languages_are_carried_over_from_the_parents_card():
    parent = (
        "---\nlicense: other\nlicense_name: llama3.1\nlicense_link: LICENSE\nlanguage: [en, de]\ntags: [x]\n---\n# P"
    )
    metadata = ModelCard(
        model_card(ReportData(title="t"), name="small", hub=HubFacts.of_card(parent, "me/large"))
    ).data.to_dict()
    assert {name: metadata[name] for name in ("license", "license_name", "license_link", "language", "base_model")} == {
        "license": "other",
        "license_name": "llama3.1",
        "license_link": "https://huggingface.co/me/large/blob/main/LICENSE",
        "language": ["en", "de"],
        "base_model": "me/large",
    }
    assert "x" not in metadata["tags"]


@pytest.mark.parametrize(
    ("link", "kept"),
    [
        ("LICENSE", True),
        ("https://example.com/license", True),
        ("javascript:alert(1)", False),
        (" JavaScript:alert(1)", False),
        ("data:text/html,x", False),
    ],
)
def test_a_link_that_a_browser_would_run_is_not_carried_over(link, kept):
    parent = f"---\nlicense: other\nlicense_link: {json.dumps(link)}\n---\n"
    assert (HubFacts.of_card(parent).license_link is not None) == kept


@pytest.mark.parametrize("text", ["", "no metadata", "---\nlicense: [a\n---", "---\n- a\n---", "---\nlicense: 3\n---"])
def test_a_parents_card_without_facts_gives_none(text):
    assert HubFacts.of_card(text) == HubFacts()


@pytest.mark.parametrize("text", ["", "# A card\n\nof words alone"])
def test_a_parents_card_without_metadata_is_no_reason_to_warn(text):
    with TestCase().assertNoLogs("huggingface_hub"):
        HubFacts.of_card(text)


def test_what_is_not_known_is_not_claimed():
    metadata = ModelCard(model_card(ReportData(title="t"), name="small")).data.to_dict()
    assert not {"license", "base_model", "datasets", "language", "model-index"} & metadata.keys()


def test_the_card_says_what_was_done(card):
    assert "demo/teacher was pruned from 3.91 M to 2.10 M parameters, 54 % of its size." in card.content
    assert "Distillation on 3.00 M tokens lowered it to 2.688" in card.content
    assert 'from_pretrained("me/small")' in card.content
    assert "| FFN size | 1,024 | 512 | 50.0 % |" in card.content


def test_of_two_distilled_models_the_first_is_the_cards():
    rows = [evaluated("a", "distilled", tasks={"t": {"acc": MetricResult(value=value)}}) for value in (0.25, 0.5)]
    card = ModelCard(model_card(ReportData(title="t", models=tuple(rows)), name="small"))
    assert [result.metric_value for result in card.data.eval_results] == [0.25]


def test_a_value_that_is_not_finite_is_no_result():
    row = evaluated("a", "distilled", tasks={"t": {"acc": MetricResult(value=None), "f1": MetricResult(value=0.5)}})
    card = ModelCard(model_card(ReportData(title="t", models=(row,)), name="small"))
    assert [result.metric_type for result in card.data.eval_results] == ["f1"]


def test_commands_cannot_end_their_block():
    card = model_card(ReportData(title="t", commands=("echo ```", "# still code")), name="small")
    assert "````sh\necho ```\n# still code\n````" in card


def test_the_same_data_is_the_same_card():
    assert model_card(sample(), name="a") == model_card(sample(), name="a")


def test_a_wrapper_is_loaded_as_one():
    card = ModelCard(model_card(ReportData(title="t", wrapper="gemma3"), name="small"))
    assert card.data.pipeline_tag == "image-text-to-text"
    assert 'processor = AutoProcessor.from_pretrained("small")' in card.text
    assert 'model = AutoModelForImageTextToText.from_pretrained("small")' in card.text
    assert "on text alone" in card.text


@pytest.mark.parametrize(
    ("language", "kept"), [("5", ()), ("en", ("en",)), ("[en, no, de]", ("en", "de")), ("{a: b}", ())]
)
def test_languages_that_are_no_words_are_left_out(language, kept):
    assert HubFacts.of_card(f"---\nlanguage: {language}\n---\n").language == kept
