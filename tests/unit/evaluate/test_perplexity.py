import copy
import math
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from minitron_cli import progress
from minitron_cli.errors import DataError, RunFailed
from minitron_cli.evaluate.perplexity import kl_to_parent, loss_and_kl, perplexity
from tests.tiny import tiny_model
from tests.unit.evaluate.conftest import TEXT, Blocks


def labels(blocks, i):
    """transformers' own way to leave out what a document's first token would be predicted from."""
    return blocks.tokens(i).masked_fill(blocks.positions(i) == 0, -100)[None]


def hf_losses(model, blocks):
    """Each block's loss as transformers computes it from labels, and how many tokens it is the mean of."""
    losses, counts = [], []
    for i in range(len(blocks)):
        inputs = {"input_ids": blocks.tokens(i)[None], "position_ids": blocks.positions(i)[None]}
        with torch.no_grad():
            losses.append(model(**inputs, labels=labels(blocks, i), use_cache=False).loss.item())
        counts.append(int((labels(blocks, i)[:, 1:] != -100).sum()))
    return np.array(losses), np.array(counts)


def test_loss_is_the_mean_of_hugging_face_losses(model, blocks):
    losses, counts = hf_losses(model, blocks)
    expected = (losses * counts).sum() / counts.sum()
    result = perplexity(model, blocks, batch_size=2)
    assert result.loss_nats == pytest.approx(expected, rel=1e-6)
    assert result.perplexity == pytest.approx(math.exp(expected), rel=1e-6)
    assert (result.tokens, result.items.clusters) == (5 * 23 - 1, 6)


def test_the_bar_shows_the_mean_so_far(model, blocks, monkeypatch):
    shown = []

    @contextmanager
    def track(title, total, unit):
        yield lambda n, **figures: shown.append(figures["loss"])

    monkeypatch.setattr(progress, "track", track)
    perplexity(model, blocks, batch_size=2)
    losses, counts = hf_losses(model, blocks)
    means = (losses * counts).cumsum() / counts.cumsum()
    assert shown == pytest.approx(means[[1, 3, 4]], rel=1e-6)


def test_tokens_that_do_not_count_are_left_out(model, blocks):
    masked = Blocks(blocks.tokens_NT)
    counts = torch.rand(blocks.tokens_NT.shape, generator=torch.Generator().manual_seed(1)) < 0.5
    masked.loss_mask = lambda i: counts[i] if i else None  # the first block counts whole
    losses = []
    for i in range(5):
        kept = torch.ones(24, dtype=torch.bool) if i == 0 else counts[i]
        with torch.no_grad():
            logits = model(blocks.tokens(i)[None], position_ids=blocks.positions(i)[None], use_cache=False).logits[0]
        each = torch.nn.functional.cross_entropy(logits[:-1], blocks.tokens(i)[1:], reduction="none")
        losses += each[kept[1:] & (blocks.positions(i)[1:] > 0)].tolist()
    result = perplexity(model, masked, batch_size=2)
    assert (result.tokens, result.loss_nats) == (len(losses), pytest.approx(sum(losses) / len(losses), rel=1e-6))


def test_standard_error_of_few_documents_is_that_of_the_mean_over_blocks(model):
    """For blocks of equal counts, the textbook formula."""
    even = Blocks(torch.randint(1, 300, (6, 24), generator=torch.Generator().manual_seed(1)))
    losses, _ = hf_losses(model, even)
    assert perplexity(model, even).stderr_nats == pytest.approx(losses.std(ddof=1) / math.sqrt(6), rel=1e-5)
    assert perplexity(model, even, max_blocks=1).stderr_nats is None


@pytest.mark.slow
def test_standard_error_of_many_documents_is_that_of_a_bootstrap_over_documents(model):
    """Documents go on from block to block here, and their tokens have a loss of their own: blocks would be too sure."""
    generator = torch.Generator().manual_seed(2)
    tokens_NT = torch.randint(1, 300, (90, 12), generator=generator)
    length = torch.randint(20, 60, (30,), generator=generator).cumsum(0)
    documents_NT = torch.searchsorted(length, torch.arange(90 * 12), right=True).view(90, 12)
    repeated = documents_NT % 3 == 0
    tokens_NT[repeated] = (documents_NT[repeated] + 7) % 300  # the same token again and again
    long = Blocks(tokens_NT)
    long.documents = lambda i: documents_NT[i]
    totals, counts = np.zeros(30), np.zeros(30)
    for i in range(90):
        with torch.no_grad():
            logits = model(tokens_NT[i][None], use_cache=False).logits[0]
        each = torch.nn.functional.cross_entropy(logits[:-1], tokens_NT[i][1:], reduction="none")
        np.add.at(totals, documents_NT[i][1:].numpy(), each.numpy())
        np.add.at(counts, documents_NT[i][1:].numpy(), 1)
    used = counts > 0
    draws = np.random.default_rng(0).integers(used.sum(), size=(4000, used.sum()))
    means = totals[used][draws].sum(1) / counts[used][draws].sum(1)
    found = perplexity(model, long)
    assert found.items.clusters == used.sum()
    assert found.stderr_nats == pytest.approx(means.std(), rel=0.1)
    sums = np.bincount(found.items.groups, np.array(found.items.values) * found.items.weights, minlength=30)
    np.testing.assert_allclose(sums, totals, rtol=1e-5)


def test_the_error_of_one_document_is_that_of_its_blocks(model, blocks):
    one = Blocks(torch.randint(1, 300, (20, 12), generator=torch.Generator().manual_seed(3)))
    one.documents = lambda i: torch.zeros(12, dtype=torch.int64)
    found = perplexity(model, one)
    losses, counts = hf_losses(model, one)
    assert len(set(counts)) == 1
    loss = found.metrics()["loss"]
    assert (loss.n, loss.clusters, loss.unit, loss.degrees_of_freedom) == (20, 1, "block", pytest.approx(19))
    assert found.stderr_nats == pytest.approx(losses.std(ddof=1) / math.sqrt(20), rel=1e-5)


def test_a_document_does_not_see_the_one_before_it(model, blocks):
    """The two documents of block 2 have the losses they have alone."""
    both = perplexity(model, Blocks(blocks.tokens(2)[None]))
    parts = [perplexity(model, Blocks(blocks.tokens(2)[None, part])) for part in (slice(9), slice(9, None))]
    assert both.loss_nats * both.tokens == pytest.approx(sum(p.loss_nats * p.tokens for p in parts), rel=1e-5)
    assert both.tokens == sum(p.tokens for p in parts)


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_batch_size_does_not_change_the_loss(model, blocks, batch_size):
    expected = perplexity(model, blocks, batch_size=5).loss_nats
    assert perplexity(model, blocks, batch_size=batch_size).loss_nats == pytest.approx(expected, rel=1e-6)


def test_some_blocks_stand_for_all(model, blocks):
    some = perplexity(model, blocks, max_blocks=2)
    assert some.loss_nats == perplexity(model, Blocks(blocks.tokens_NT[[0, 2]])).loss_nats
    assert perplexity(model, blocks, max_blocks=99) == perplexity(model, blocks)


def test_blocks_in_which_nothing_is_predicted_are_an_error(model):
    with pytest.raises(DataError, match="give longer documents"):
        perplexity(model, Blocks(torch.zeros(2, 8, dtype=torch.long)))


@pytest.mark.parametrize("length", [40, 400])
def test_loss_equals_lm_eval_rolling_likelihood_to_a_ten_thousandth(model, tokenizer, length):
    """lm-eval puts the end-of-text token before the text, as a packed block does."""
    text = TEXT[:length]
    request = Instance(request_type="loglikelihood_rolling", doc={}, arguments=(text,), idx=0)
    (total,) = HFLM(pretrained=model, tokenizer=tokenizer).loglikelihood_rolling([request], disable_tqdm=True)
    ids = [tokenizer.eos_token_id, *tokenizer.encode(text)]
    result = perplexity(model, Blocks(torch.tensor([ids])))
    assert result.perplexity == pytest.approx(math.exp(-total / (len(ids) - 1)), rel=1e-4)
    assert result.loss_nats * result.tokens == pytest.approx(-total, rel=1e-5)


def test_weights_that_overflow_are_an_error(model, blocks):
    broken = tiny_model("llama", vocab_size=model.config.vocab_size)
    with torch.no_grad():
        broken.model.norm.weight.fill_(torch.nan)
    with pytest.raises(RunFailed, match="not finite"):
        perplexity(broken, blocks)


def brute_force_kl(child, parent, blocks):
    """torch's own KL of the full logits, in double."""
    total, count = 0.0, 0
    for i in range(len(blocks)):
        inputs = {"input_ids": blocks.tokens(i)[None], "position_ids": blocks.positions(i)[None], "use_cache": False}
        counted = labels(blocks, i)[0, 1:] != -100
        with torch.no_grad():
            logp, parent_logp = (m(**inputs).logits[0, :-1][counted].double().log_softmax(-1) for m in (child, parent))
        total += torch.nn.functional.kl_div(logp, parent_logp, log_target=True, reduction="sum").item()
        count += len(logp)
    return total / count


@pytest.mark.parametrize("entries", [1024, 100])
def test_kl_is_that_of_the_full_distributions(model, blocks, entries, monkeypatch):
    monkeypatch.setattr("minitron_cli.model.lm_head.chunk_entries", lambda device: entries)
    child = tiny_model("llama", seed=1, vocab_size=model.config.vocab_size, hidden_size=16)
    result = kl_to_parent(child, model, blocks, batch_size=2)
    assert result.kl_nats == pytest.approx(brute_force_kl(child, model, blocks), rel=1e-5)
    assert result.kl_nats != pytest.approx(brute_force_kl(model, child, blocks), rel=1e-2)
    assert result.tokens == 5 * 23 - 1


def test_a_model_is_at_no_distance_from_itself(model, blocks):
    assert kl_to_parent(model, model, blocks).kl_nats == 0


def test_loss_and_kl_come_from_one_pass_of_each_model(model, blocks):
    child, passes = tiny_model("llama", seed=1, vocab_size=model.config.vocab_size, hidden_size=16), []
    for each in (child, model):
        each.model.register_forward_hook(lambda module, *_: passes.append(module))
    loss, kl = loss_and_kl(child, model, blocks, batch_size=2)
    assert passes.count(child.model) == passes.count(model.model) == 3 + 1, "batches, and the head's check"
    assert loss == perplexity(child, blocks, batch_size=2), "to the last bit"
    assert kl == kl_to_parent(child, model, blocks, batch_size=2)
    assert kl.tokens == loss.tokens


@pytest.mark.parametrize("padded", ["child", "parent"])
@pytest.mark.parametrize("entries", [1024, 100])
def test_padding_of_one_model_is_left_out_of_the_kl(model, blocks, padded, entries, monkeypatch):
    """Rows that no token has, with weights that would take most of the mass."""
    monkeypatch.setattr("minitron_cli.model.lm_head.chunk_entries", lambda device: entries)
    child = tiny_model("llama", seed=1, vocab_size=model.config.vocab_size, hidden_size=16)
    expected = brute_force_kl(child, model, blocks)
    wider = copy.deepcopy(child if padded == "child" else model)
    wider.resize_token_embeddings(model.config.vocab_size + 64, mean_resizing=False)
    with torch.no_grad():
        wider.lm_head.weight[-64:] = 3 * torch.randn(64, wider.config.hidden_size)
    pair = (wider, model) if padded == "child" else (child, wider)
    loss, kl = loss_and_kl(*pair, blocks)
    assert kl.kl_nats == pytest.approx(expected, rel=1e-5)
    assert loss.loss_nats == pytest.approx(perplexity(pair[0], blocks).loss_nats, rel=1e-6), "over all of its entries"


def test_metrics_have_values_errors_and_independent_items(model, blocks):
    loss, kl = perplexity(model, blocks), kl_to_parent(model, model, blocks)
    metrics = loss.metrics() | kl.metrics()
    assert {name: metric.value for name, metric in metrics.items()} == {
        "loss": loss.loss_nats,
        "perplexity": loss.perplexity,
        "kl": kl.kl_nats,
    }
    assert metrics["loss"].stderr == loss.stderr_nats
    assert metrics["perplexity"].stderr == loss.perplexity * loss.stderr_nats
    assert all(metric.n == loss.items.clusters for metric in metrics.values())
