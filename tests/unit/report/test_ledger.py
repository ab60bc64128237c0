from minitron_cli.report.ledger import forward_flops, training_flops


def test_training_costs_three_forward_passes_and_the_teachers_one():
    forward = forward_flops(tokens=10, flops_per_token=7)
    assert forward == 70
    assert training_flops(tokens=10, flops_per_token=7) == 3 * forward
    assert training_flops(10, 7, teacher_flops_per_token=20) == 3 * forward + forward_flops(10, 20)
