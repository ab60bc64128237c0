"""One batch's loss and every gradient, against transformers' own logits and hidden states and torch's own losses."""

# B sequence, T token, N counted token

import pytest
import torch
from torch.nn import functional as F

from minitron_cli.data.batches import batch
from minitron_cli.distill.config import HiddenLosses
from minitron_cli.distill.distributed import ProcessGroup
from minitron_cli.distill.hidden_state_losses import Norms, state_pairs
from minitron_cli.distill.model_pair import ModelPair
from minitron_cli.distill.targets import targets
from tests.unit.distill import small

NORMS = Norms("model.layers.{layer}.input_layernorm", "model.layers.{layer}.post_attention_layernorm", "model.norm")
HIDDEN = HiddenLosses(states=("block_output", "embedding"), layers=((2, 1), (0, 0)), distance="cosine", weight=0.7)
PAIRS = state_pairs(HIDDEN, NORMS, teacher_layers=3, student_layers=2)
MIXED = small.configured(
    hidden=HIDDEN.model_dump(),
    losses=[{"kind": "forward_kl", "temperature": 2.0}, {"kind": "cross_entropy", "weight": 0.3}],
)


@pytest.mark.parametrize("tied", [False, True])
def test_loss_and_gradients(tied: bool) -> None:
    student, teacher, blocks = small.student(tie_word_embeddings=tied), small.teacher(), small.TinyBlocks()
    models = ModelPair(student, teacher, MIXED, PAIRS, ProcessGroup("cpu"), "fp32")
    part = batch(blocks, [3, 1, 4])
    target = targets(part)
    ours = models.losses(part, target, count=50, hidden_weight=0.7)
    ours.total.backward()
    gradients = {name: p.grad.clone() for name, p in models.trained().items() if p.grad is not None}
    assert gradients.keys() == models.trained().keys()
    for p in models.trained().values():
        p.grad = None

    def outputs(model: torch.nn.Module) -> tuple[torch.Tensor, list[torch.Tensor]]:
        output = model(part.input_ids_BT, position_ids=part.position_ids_BT, output_hidden_states=True, use_cache=False)
        norms = [layer.input_layernorm for layer in model.model.layers]
        states = [norm(state) for norm, state in zip(norms, output.hidden_states, strict=False)]
        return output.logits[:, :-1][counted], [s[:, :-1][counted] for s in [*states, output.hidden_states[-1]]]

    counted = part.position_ids_BT[:, 1:] != 0
    logits, states = outputs(student)
    with torch.no_grad():
        wanted, wanted_states = outputs(teacher)
    kl = 4 * F.kl_div((logits / 2).log_softmax(-1), (wanted / 2).log_softmax(-1), log_target=True, reduction="sum") / 50
    ce = F.cross_entropy(logits, part.input_ids_BT[:, 1:][counted], reduction="sum") / 50
    hidden = sum(  # outputs of layers 2 with 1 and 0 with 0, then the embeddings
        (1 - F.cosine_similarity(models.project(states[s]), wanted_states[t], dim=-1)).sum() / 50
        for t, s in ((3, 2), (1, 1), (0, 0))
    )
    assert isinstance(hidden, torch.Tensor)
    theirs = kl + 0.3 * ce + 0.7 * hidden
    theirs.backward()
    torch.testing.assert_close(ours.total, theirs)
    torch.testing.assert_close(ours.figures_F, torch.stack([kl, ce, hidden]).detach())
    assert models.figures == ("forward_kl", "cross_entropy", "hidden")
    for name, p in models.trained().items():
        torch.testing.assert_close(gradients[name], p.grad, rtol=1e-3, atol=1e-6)
    assert all(p.grad is None for p in teacher.parameters())


def test_tied_weights_are_learned_once_and_the_projection_along() -> None:
    device = ProcessGroup("cpu")
    for tied in (False, True):
        models = ModelPair(small.student(tie_word_embeddings=tied), small.teacher(), MIXED, PAIRS, device, "fp32")
        names = models.trained().keys()
        assert ("student.lm_head.weight" in names) != tied
        assert "projection.weight" in names
    same_width = ModelPair(small.student(), small.llama(5, layers=3), MIXED, PAIRS, device, "fp32")
    assert not any(name.startswith("projection") for name in same_width.trained())


def test_the_kl_on_held_out_text_leaves_out_padding_of_the_teacher() -> None:
    student, teacher = small.student(), small.teacher(vocab_size=small.VOCAB + 7)
    part = batch(small.TinyBlocks(), [3, 1, 4])
    models = ModelPair(student, teacher, small.configured(), (), ProcessGroup("cpu"), "fp32")
    nll, kl = models.evaluate(part, targets(part))
    counted = part.position_ids_BT[:, 1:] != 0
    inputs = {"input_ids": part.input_ids_BT, "position_ids": part.position_ids_BT, "use_cache": False}
    with torch.no_grad():
        logits, wanted = (model(**inputs).logits[:, :-1][counted] for model in (student, teacher))
    log_p, log_q = logits.log_softmax(-1), wanted[:, : small.VOCAB].log_softmax(-1)
    torch.testing.assert_close(kl.float(), F.kl_div(log_p, log_q, log_target=True, reduction="sum"))
    torch.testing.assert_close(nll.float(), F.cross_entropy(logits, part.input_ids_BT[:, 1:][counted], reduction="sum"))
