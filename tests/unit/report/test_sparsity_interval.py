from minitron_cli.report.sparsity import effect_tables
from minitron_cli.results.prune import HeldOut
from tests.unit.report.sample import sparse


def test_the_interval_over_few_documents_is_students_t() -> None:
    """3.182 standard errors with three degrees of freedom; 1.960 where an earlier version did not store them."""
    found = sparse()
    assert found.effect
    three = HeldOut(loss=3.0, kl=0.5, loss_stderr=0.1, kl_stderr=0.01, degrees_of_freedom=3.0)
    effect = found.effect.model_copy(update={"after": three})
    (table,) = effect_tables(found.model_copy(update={"effect": effect}))
    assert table.text()[0][-2:] == ("3.500 (3.304 to 3.696)", "3.000 (2.682 to 3.318)")
