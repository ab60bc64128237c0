import pytest

from minitron_cli import progress
from minitron_cli.errors import Interrupted


class Recorder:
    """A display that writes down what it is told."""

    def __init__(self):
        self.seen = []

    def start(self, title, total, unit):
        self.seen.append(("start", title, total, unit))
        return lambda n=1, **figures: self.seen.append(("step", title, n, figures))

    def finish(self, step):
        self.seen.append(("finish",))

    def say(self, text):
        self.seen.append(("say", text))

    def warn(self, text):
        self.seen.append(("warn", text))


@pytest.fixture
def shown():
    recorder = Recorder()
    progress.show_on(recorder)
    return recorder.seen


def test_a_loop_is_shown_from_start_to_finish(shown):
    with progress.track("trim", 10, "bytes") as step:
        step(4)
        step(loss=2.0)
    assert shown == [
        ("start", "trim", 10, "bytes"),
        ("step", "trim", 4, {}),
        ("step", "trim", 1, {"loss": 2.0}),
        ("finish",),
    ]


def test_loops_may_nest(shown):
    with progress.track("outer") as outer, progress.track("inner") as inner:
        inner()
        outer()
    assert [entry[1] for entry in shown if entry[0] == "step"] == ["inner", "outer"]


def test_a_failing_loop_is_finished_too(shown):
    with pytest.raises(ZeroDivisionError), progress.track("trim"):
        raise ZeroDivisionError
    assert shown[-1] == ("finish",)


@pytest.mark.parametrize(("signal", "exit_code"), [(2, 130), (15, 143)])
def test_a_request_stops_the_next_step_after_it_is_shown(shown, signal, exit_code):
    def loop():
        with progress.track("x") as step:
            step()
            progress.request_stop(signal)
            assert progress.stop_requested()
            step()

    with pytest.raises(Interrupted, match="run the same command again to continue") as caught:
        loop()
    assert caught.value.exit_code == exit_code
    assert [entry[0] for entry in shown] == ["start", "step", "step", "finish"]


def test_a_loop_may_save_before_it_stops(shown):
    progress.request_stop(15)
    with pytest.raises(Interrupted):
        progress.raise_if_stopped()
    progress.request_stop(None)
    assert not progress.stop_requested()
    progress.raise_if_stopped()


def test_remarks(shown):
    progress.say("a")
    progress.warn("b")
    assert shown == [("say", "a"), ("warn", "b")]


def test_without_a_display_nothing_is_shown(capfd):
    progress.show_on(None)
    with progress.track("x", 3) as step:
        step(2, loss=1.0)
        step()
    progress.say("a")
    progress.warn("b")
    assert capfd.readouterr() == ("", "")


def test_what_would_come_up_again_is_said_once_for_each_display() -> None:
    for _ in range(2):
        display = Recorder()
        progress.show_on(display)
        for text in ("slow", "slow", "old"):
            progress.warn_once(text)
        assert display.seen == [("warn", "slow"), ("warn", "old")]
