"""What a run costs in floating-point operations, from tokens and the forward cost of one token."""

TRAINING = 3  # forward, and twice that for the gradients of activations and of weights


def forward_flops(tokens: int, flops_per_token: int) -> int:
    """Scoring or evaluating."""
    return tokens * flops_per_token


def training_flops(tokens: int, flops_per_token: int, teacher_flops_per_token: int = 0) -> int:
    """Training on `tokens`; with a teacher, whose forward pass is run on each of them too."""
    return tokens * (TRAINING * flops_per_token + teacher_flops_per_token)
