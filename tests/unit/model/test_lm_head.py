"""-log p of labels without logits, against cross-entropy on full logits; a model's head, against the model."""

# N token, D hidden, V vocab

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, CohereConfig, Gemma2Config, GraniteConfig, LlamaConfig, PhiConfig

from minitron_cli.decoder import decoder_of
from minitron_cli.errors import CheckpointError
from minitron_cli.model import lm_head
from minitron_cli.model.lm_head import Head, Predictions, head_of, token_values


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


# One chunk of the vocab holds 1024 entries and one block of tokens 1024: below, at and above both.
@pytest.mark.parametrize("vocab", [5, 1024, 1025, 2500])
@pytest.mark.parametrize("tokens", [1, 7, 1030])
def test_equals_cross_entropy_on_full_logits(tokens: int, vocab: int) -> None:
    hidden_ND, head_VD = normal(tokens, 6), normal(vocab, 6, seed=1)
    labels_N = torch.randint(0, vocab, (tokens,), generator=torch.Generator().manual_seed(2))
    labels_N[0], labels_N[-1] = 0, vocab - 1
    expected_N = F.cross_entropy(hidden_ND @ head_VD.T, labels_N, reduction="none")
    torch.testing.assert_close(Head(head_VD).nll(hidden_ND, labels_N), expected_N)


@pytest.mark.parametrize("vocab", [5, 1024, 1025, 2500])
@pytest.mark.parametrize("parents_vocab", [5, 1024, 2500, 2600])
@pytest.mark.parametrize("tokens", [1, 1030])
def test_divergence_equals_that_of_full_logits(tokens: int, vocab: int, parents_vocab: int) -> None:
    own = Predictions(Head(normal(vocab, 6, seed=1)), normal(tokens, 6))
    parent = Predictions(Head(normal(parents_vocab, 4, seed=2), scale=0.5), normal(tokens, 4, seed=3))
    common, labels_N = min(vocab, parents_vocab), torch.arange(tokens) % vocab
    logp_NV, parents_NV = (one.head.logits(one.hidden_ND)[:, :common].log_softmax(-1) for one in (own, parent))
    expected_N = F.kl_div(logp_NV, parents_NV, log_target=True, reduction="none").sum(-1)
    found = token_values(own, labels_N, parent)
    assert found.kl_N is not None
    torch.testing.assert_close(found.kl_N, expected_N)
    exactly = (
        {"rtol": 0, "atol": 0} if common == vocab else {}
    )  # then the chunks are the same with and without a parent
    torch.testing.assert_close(found.nll_N, own.head.nll(own.hidden_ND, labels_N), **exactly)


def test_large_logits_of_two_models_do_not_overflow() -> None:
    own, parent = (
        Predictions(
            Head(normal(2000, 6, seed=seed, dtype=torch.float32)), 100 * normal(4, 6, seed=seed, dtype=torch.float32)
        )
        for seed in (1, 2)
    )
    logp_NV, parents_NV = (one.head.logits(one.hidden_ND).double().log_softmax(-1) for one in (own, parent))
    expected_N = F.kl_div(logp_NV, parents_NV, log_target=True, reduction="none").sum(-1)
    found = token_values(own, torch.arange(4), parent)
    assert found.kl_N is not None
    torch.testing.assert_close(found.kl_N.double(), expected_N, rtol=1e-5, atol=1e-4)
    assert not token_values(own, torch.arange(4), own).kl_N.any(), "exactly none from itself"


def test_bias_cap_and_scale() -> None:
    hidden_ND, head_VD, bias_V = normal(9, 6), normal(1500, 6, seed=1), normal(1500, seed=2)
    labels_N = torch.arange(9) * 150
    logits_NV = 3 * torch.tanh(0.4 * (hidden_ND @ head_VD.T + bias_V) / 3)
    expected_N = F.cross_entropy(logits_NV, labels_N, reduction="none")
    torch.testing.assert_close(Head(head_VD, bias_V, softcap=3.0, scale=0.4).nll(hidden_ND, labels_N), expected_N)
    head = Head(head_VD, bias_V, softcap=3.0, scale=0.4)
    torch.testing.assert_close(head.nll(hidden_ND, labels_N), expected_N)
    torch.testing.assert_close(head.logits(hidden_ND), logits_NV)


def test_large_logits_do_not_overflow() -> None:
    hidden_ND, head_VD = 300 * normal(4, 6, dtype=torch.float32), normal(2000, 6, seed=1, dtype=torch.float32)
    labels_N = torch.arange(4)
    expected_N = F.cross_entropy(hidden_ND @ head_VD.T, labels_N, reduction="none")
    torch.testing.assert_close(Head(head_VD).nll(hidden_ND, labels_N), expected_N)


def test_bf16_inputs_give_fp32_of_the_same_rounded_logits() -> None:
    """The products are rounded to bf16, label's and sum's alike, so no probability exceeds 1; the rest is fp32."""
    hidden_ND, head_VD = normal(9, 6, dtype=torch.bfloat16), normal(1500, 6, seed=1, dtype=torch.bfloat16)
    labels_N = (hidden_ND @ head_VD.T).argmax(-1)
    ours_N = Head(head_VD).nll(4 * hidden_ND, labels_N)
    expected_N = F.cross_entropy((4 * hidden_ND @ head_VD.T).float(), labels_N, reduction="none")
    assert ours_N.dtype == torch.float32
    assert ours_N.min() >= 0
    torch.testing.assert_close(ours_N, expected_N, rtol=1e-5, atol=1e-6)


def test_no_gradients_and_mixed_dtypes() -> None:
    hidden_ND, head_VD = normal(3, 6, dtype=torch.float32).requires_grad_(), normal(10, 6, dtype=torch.bfloat16)
    ours_N = Head(head_VD).nll(hidden_ND, torch.arange(3))
    assert not ours_N.requires_grad
    expected_N = F.cross_entropy(hidden_ND.detach() @ head_VD.float().T, torch.arange(3), reduction="none")
    torch.testing.assert_close(ours_N, expected_N)


def test_no_tokens() -> None:
    assert Head(normal(10, 6)).nll(normal(0, 6), torch.zeros(0, dtype=torch.long)).shape == (0,)


def tiny(config_class: Any, **fields: Any) -> Any:
    torch.manual_seed(0)
    config = config_class(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        initializer_range=0.5,
        pad_token_id=0,
        **fields,
    )
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(lambda: tiny(LlamaConfig), id="llama"),
        pytest.param(lambda: tiny(LlamaConfig, tie_word_embeddings=True), id="tied"),
        pytest.param(lambda: tiny(Gemma2Config, final_logit_softcapping=2.0, head_dim=8), id="gemma2 caps"),
        pytest.param(lambda: tiny(GraniteConfig, logits_scaling=4.0), id="granite divides"),
        pytest.param(lambda: tiny(CohereConfig, logit_scale=0.25), id="cohere multiplies"),
        pytest.param(lambda: tiny(PhiConfig), id="phi has a bias"),
    ],
)
def test_a_models_head_gives_the_models_loss(model: Any) -> None:
    model = model()
    ids_BT = torch.arange(12).reshape(2, 6)
    if (bias := getattr(model.lm_head, "bias", None)) is not None:
        torch.nn.init.normal_(bias)
    hidden_ND = decoder_of(model)(input_ids=ids_BT).last_hidden_state.flatten(0, 1)
    logits_NV = model(input_ids=ids_BT).logits.flatten(0, 1)
    labels_N = torch.arange(12) * 5
    expected_N = F.cross_entropy(logits_NV, labels_N, reduction="none")
    torch.testing.assert_close(head_of(model).nll(hidden_ND, labels_N), expected_N.detach())


def test_a_head_with_a_formula_of_its_own_is_refused() -> None:
    model = tiny(LlamaConfig)
    model.lm_head.register_forward_hook(lambda module, inputs, logits: 2 * logits)
    with pytest.raises(CheckpointError, match=r"lm_head\.py"):
        head_of(model)


def test_holds_one_chunk_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    largest = 0
    finish = lm_head._finish

    def watch(logits_NV: Tensor, *rest: Any) -> Tensor:
        nonlocal largest
        largest = max(largest, logits_NV.numel())
        return finish(logits_NV, *rest)

    monkeypatch.setattr(lm_head, "_finish", watch)
    Head(normal(5000, 4)).nll(normal(3000, 4), torch.zeros(3000, dtype=torch.long))
    assert largest == 1024 * 1024
