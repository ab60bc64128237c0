import math

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from minitron_cli.errors import CheckpointError, RunFailed
from minitron_cli.evaluate.perplexity import kl_to_parent, perplexity
from tests.tiny import tiny_model
from tests.unit.evaluate.conftest import TEXT, Blocks


def hf_losses(model, blocks):
    """Each block's loss as transformers computes it from labels."""
    with torch.no_grad():
        return [
            model(
                input_ids=blocks.tokens(i)[None],
                position_ids=blocks.positions(i)[None],
                labels=blocks.tokens(i)[None],
                use_cache=False,
            ).loss.item()
            for i in range(len(blocks))
        ]


def test_loss_is_the_mean_of_hugging_face_losses(model, blocks):
    losses = hf_losses(model, blocks)
    result = perplexity(model, blocks, batch_size=2)
    assert result.loss_nats == pytest.approx(sum(losses) / 5, rel=1e-6)
    assert result.perplexity == pytest.approx(math.exp(sum(losses) / 5), rel=1e-6)
    assert (result.tokens, result.blocks) == (5 * 23, 5)


def test_standard_error_is_that_of_the_block_losses(model, blocks):
    losses = torch.tensor(hf_losses(model, blocks), dtype=torch.float64)
    assert perplexity(model, blocks).stderr_nats == pytest.approx((losses.std() / math.sqrt(5)).item(), rel=1e-5)
    assert perplexity(model, blocks, max_blocks=1).stderr_nats is None


def test_a_document_does_not_see_the_one_before_it(model, blocks):
    """The second document of block 2 has the losses it has alone."""
    start = 9
    alone = Blocks(blocks.tokens(2)[None, start:])
    first = Blocks(blocks.tokens(2)[None, : start + 1])
    both = perplexity(model, Blocks(blocks.tokens(2)[None]))
    parts = [perplexity(model, part) for part in (first, alone)]
    assert both.loss_nats * 23 == pytest.approx(sum(p.loss_nats * p.tokens for p in parts), rel=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_batch_size_does_not_change_the_loss(model, blocks, batch_size):
    expected = perplexity(model, blocks, batch_size=5).loss_nats
    assert perplexity(model, blocks, batch_size=batch_size).loss_nats == pytest.approx(expected, rel=1e-6)


def test_only_the_first_blocks_are_read(model, blocks):
    assert (
        perplexity(model, blocks, max_blocks=2).loss_nats == perplexity(model, Blocks(blocks.tokens_NT[:2])).loss_nats
    )


def test_loss_equals_lm_eval_rolling_likelihood(model, tokenizer):
    """lm-eval puts the end-of-text token before the text, as a packed block does."""
    text = TEXT[:400]
    request = Instance(request_type="loglikelihood_rolling", doc={}, arguments=(text,), idx=0)
    (total,) = HFLM(pretrained=model, tokenizer=tokenizer).loglikelihood_rolling([request], disable_tqdm=True)
    ids = [tokenizer.eos_token_id, *tokenizer.encode(text)]
    result = perplexity(model, Blocks(torch.tensor([ids])))
    assert result.loss_nats * result.tokens == pytest.approx(-total, rel=1e-5)


def test_weights_that_overflow_are_an_error(model, blocks):
    broken = tiny_model("llama", vocab_size=model.config.vocab_size)
    with torch.no_grad():
        broken.model.norm.weight.fill_(torch.nan)
    with pytest.raises((RunFailed, CheckpointError)):
        perplexity(broken, blocks)


def brute_force_kl(child, parent, blocks):
    """torch's own KL of the full logits, in double."""
    total = 0.0
    with torch.no_grad():
        for i in range(len(blocks)):
            call = {"input_ids": blocks.tokens(i)[None], "position_ids": blocks.positions(i)[None], "use_cache": False}
            logp, parent_logp = (m(**call).logits[0].double().log_softmax(-1) for m in (child, parent))
            total += torch.nn.functional.kl_div(logp, parent_logp, log_target=True, reduction="batchmean").item()
    return total / len(blocks)


@pytest.mark.parametrize("rows", [1 << 24, 320 * 7])
def test_kl_is_that_of_the_full_distributions(model, blocks, rows, monkeypatch):
    monkeypatch.setattr("minitron_cli.evaluate.perplexity.LOGIT_ELEMENTS", rows)
    child = tiny_model("llama", seed=1, vocab_size=model.config.vocab_size, hidden_size=16)
    result = kl_to_parent(child, model, blocks, batch_size=2)
    assert result.kl_nats == pytest.approx(brute_force_kl(child, model, blocks), rel=1e-5)
    assert result.kl_nats != pytest.approx(brute_force_kl(model, child, blocks), rel=1e-2)
    assert result.tokens == 5 * 24


def test_a_model_is_at_no_distance_from_itself(model, blocks):
    assert kl_to_parent(model, model, blocks).kl_nats == 0


def test_models_of_other_vocabularies_are_not_compared(model, blocks):
    other = tiny_model("llama", vocab_size=64)
    with pytest.raises(CheckpointError, match="compare models of one tokenizer"):
        kl_to_parent(other, model, blocks)


def test_metrics_have_the_form_of_task_results(model, blocks):
    metrics = perplexity(model, blocks).metrics() | kl_to_parent(model, model, blocks).metrics()
    assert set(metrics) == {"loss", "perplexity", "kl"}
    assert all(set(metric) == {"value", "stderr", "n", "shots"} for metric in metrics.values())
