from __future__ import annotations

import os
import signal

import pytest

from sstune.interrupt import StopFlag, Stopped, stop_flag


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_sets_the_flag_and_names_the_exit_status(number: signal.Signals, status: int) -> None:
    with stop_flag() as stop:
        assert not stop
        os.kill(os.getpid(), number)
        assert stop
        with pytest.raises(Stopped) as caught:
            raise stop.stop()
    assert caught.value.code == status
    assert isinstance(caught.value, SystemExit)


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
def test_a_second_sigint_interrupts_at_once(first: signal.Signals) -> None:
    with stop_flag() as stop:
        os.kill(os.getpid(), first)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert stop.signal == first


def test_a_second_sigterm_does_not_interrupt() -> None:
    with stop_flag() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signal == signal.SIGTERM


def test_the_handlers_are_put_back_whatever_happens() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]

    def fail() -> None:
        with stop_flag() as stop:
            assert signal.getsignal(signal.SIGTERM) == stop.handle
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_a_flag_without_a_signal_is_false() -> None:
    assert not StopFlag()
