from __future__ import annotations

import os
import signal
import threading

import pytest

from livereel.engine.cli.signals import StopSignals


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_a_signal_interrupts_but_not_inside_held() -> None:
    steps = []
    with StopSignals() as signals:
        assert signals.exit_code == 0
        with pytest.raises(KeyboardInterrupt):  # noqa: PT012
            with signals.held():
                interrupt()
                steps.append("finished")
            steps.append("not reached")
        assert signals.exit_code == 130
    assert steps == ["finished"]


def test_an_error_inside_held_comes_first() -> None:
    with StopSignals() as signals:
        with pytest.raises(ZeroDivisionError), signals.held():  # noqa: PT012
            interrupt()
            raise ZeroDivisionError
        with pytest.raises(KeyboardInterrupt):
            interrupt()


def test_after_hold_signals_are_only_noted() -> None:
    with StopSignals() as signals:
        signals.hold()
        interrupt()
        assert signals.number == signal.SIGINT


def test_another_thread_leaves_the_handlers_alone() -> None:
    before = signal.getsignal(signal.SIGINT)
    seen = []

    def enter() -> None:
        with StopSignals():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [before]
