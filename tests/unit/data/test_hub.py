import json
from types import SimpleNamespace

import datasets
import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets.exceptions import DatasetGenerationError
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

from minitron_cli.data import hub
from minitron_cli.data.sources import HubDataset
from minitron_cli.errors import DataError, EnvironmentFault


@pytest.fixture
def local(tmp_path, monkeypatch, write) -> str:
    """A dataset's repository as a directory, which the library reads as it reads the hub's."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    hub.load.cache_clear()
    records = [{"text": text, "id": i} for i, text in enumerate(["one", "", "three"])]
    write("repo/train.jsonl", "\n".join(map(json.dumps, records)))
    write("repo/test.jsonl", '{"text": "held out", "id": 9}\n')
    return str(tmp_path / "repo")


@pytest.fixture
def online(monkeypatch):
    monkeypatch.setattr(huggingface_hub, "is_offline_mode", lambda: False)


def test_a_dataset_gives_the_texts_of_its_split(local):
    corpus = HubDataset(name=local).open()
    assert [document.content for document in corpus.documents] == ["one", "three"]
    assert [document.content for document in HubDataset(name=local, split="test").open().documents] == ["held out"]
    assert [document.content for document in HubDataset(name=local, split="train[2:]").open().documents] == ["three"]


TALKS = [
    {
        "messages": [
            {"role": "user", "content": "q"},
            {
                "role": "assistant",
                "content": "a",
                "tool_calls": [{"function": {"name": "f", "arguments": {name: "x"}}}],
            },
        ],
        "chat_template_kwargs": {name: False},
    }
    for name in ("city", "unit")
]


@pytest.mark.parametrize("documents", [None, 2])
def test_an_object_has_the_fields_that_it_was_written_with(tmp_path, monkeypatch, documents):
    """A table gives every object the fields of all others, as nulls, which a chat template would write."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "repo").mkdir()
    pq.write_table(pa.Table.from_pylist(TALKS), tmp_path / "repo/train.parquet")
    found = HubDataset(name=str(tmp_path / "repo"), format="chat", documents=documents).open()
    for document, talk in zip(found.documents, TALKS, strict=True):
        assert list(document.content.messages) == talk["messages"]
        assert document.content.variables == talk["chat_template_kwargs"]


def test_identity_tells_parts_of_a_dataset_apart(local):
    identities = [HubDataset(name=local, split=split).open().identity for split in ("train", "test", "train[2:]")]
    assert len({json.dumps(identity) for identity in identities}) == 3
    hub.load.cache_clear()
    assert HubDataset(name=local).open().identity == identities[0]


def test_a_dataset_of_the_hub_is_known_by_its_commit_alone(tmp_path, write):
    def identity(commit: str, name: str) -> list[str]:
        write(f"{name}/{commit}/part.arrow", name)
        return hub.identity(SimpleNamespace(cache_files=[{"filename": str(tmp_path / name / commit / "part.arrow")}]))

    assert identity("a" * 40, "here") == identity("a" * 40, "there") != identity("b" * 40, "here")
    assert identity("hash-of-times", "here") != identity("hash-of-times", "there")


def test_what_a_dataset_does_not_have_is_named(local):
    with pytest.raises(DataError, match=r"Unknown split .nosplit.*; check name, config_name, split and revision"):
        HubDataset(name=local, split="nosplit").open()
    with pytest.raises(DataError, match=r"BuilderConfig 'none' not found.*; check name, config_name"):
        HubDataset(name=local, config_name="none").open()
    with pytest.raises(DataError, match="there is no column 'body' but 'text', 'id'; set column"):
        HubDataset(name=local, column="body").open()


def test_a_dataset_that_comes_with_code_is_refused(local, write):
    write("repo/repo.py", "raise SystemExit('ran')")
    with pytest.raises(DataError, match=r"Dataset scripts are no longer supported.*; check name"):
        HubDataset(name=local).open()


def test_a_dataset_that_is_not_in_the_cache_is_refused_offline():
    with pytest.raises(
        EnvironmentFault, match=r"nobody/nothing: .*; download it once with a network and HF_HUB_OFFLINE"
    ):
        HubDataset(name="nobody/nothing").open()


def test_another_revision_than_the_cached_one_is_refused_offline(local):
    with pytest.raises(EnvironmentFault, match=r"revision v2 is not available offline; the cache holds .*; name"):
        HubDataset(name=local, revision="v2").open()


def answer(error: type[HfHubHTTPError], status: int) -> HfHubHTTPError:
    response = SimpleNamespace(status_code=status, headers={}, request=None)
    return error("an answer\nof many lines", response=response)


@pytest.mark.parametrize(
    ("failure", "kind", "message"),
    [
        (answer(RepositoryNotFoundError, 404), DataError, "me/it: there is no such dataset; check name"),
        (answer(RevisionNotFoundError, 404), DataError, "me/it: there is no such revision; check name"),
        (answer(GatedRepoError, 403), DataError, r"me/it: access to it is gated; .*hf auth login"),
        (answer(HfHubHTTPError, 500), EnvironmentFault, "me/it: an answer; download it once"),
        (huggingface_hub.errors.HTTPError("no route"), EnvironmentFault, "me/it: no route; download it once"),
        (ConnectionError("refused."), EnvironmentFault, "me/it: refused; download it once"),
    ],
)
def test_what_the_hub_answers_is_told_in_a_sentence_without_a_retry(failure, kind, message, online, monkeypatch):
    calls = []

    def dataset_info(*args, **kwargs):
        calls.append(kwargs)
        raise failure

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", dataset_info)
    with pytest.raises(kind, match=message):
        HubDataset(name="me/it", revision="v1").open()
    assert [(call["revision"], call["timeout"]) for call in calls] == [("v1", hub.ANSWER_SECONDS)]


def test_the_commit_that_was_found_is_the_one_that_is_loaded(online, monkeypatch):
    asked = {}

    def info(*args, **kwargs):
        return huggingface_hub.DatasetInfo(id="me/it", sha="c0ffee", siblings=[])

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", info)
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: asked.update(kwargs))
    hub.load("me/it", None, "train", "main")
    assert asked["revision"] == "c0ffee"


def test_a_full_disk_is_not_blamed_on_the_dataset(local, monkeypatch):
    def load_dataset(*args, **kwargs):
        raise DatasetGenerationError("An error occurred") from OSError(28, "No space left on device")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(OSError, match="No space left"):
        HubDataset(name=local).open()


def test_of_a_dataset_too_large_to_download_the_first_documents_are_read(local, write):
    write("repo/train.jsonl", "\n".join(json.dumps({"text": text}) for text in ["one", "", "three", "four"]))
    write("repo/train_more.jsonl", '{"text"')  # broken, and never read
    corpus = HubDataset(name=local, documents=3).open()
    assert [document.content for document in corpus.documents] == ["one", "three"]
    assert corpus.size_bytes is None
    identities = [HubDataset(name=local, documents=n).open().identity for n in (3, 4)]
    assert identities[0] != identities[1]
    assert identities[0] == corpus.identity
    with pytest.raises(DataError, match=r"row 0: there is no column 'body' but 'text'; set column"):
        list(HubDataset(name=local, documents=3, column="body").open().documents)


def test_a_dataset_that_cannot_be_reached_is_refused_offline():
    with pytest.raises(EnvironmentFault, match=r"hub dataset some/dataset: .*download it once with a network"):
        HubDataset(name="some/dataset", documents=3).open()
