"""What asks a run to stop or to save, and what signals do before and after."""
from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from libs.engine.runtime import stop_signals as interrupt
from libs.engine.runtime.stop_signals import Action, Interruption


@pytest.fixture
def hears_hangups():
    """Under nohup the tests start with SIGHUP ignored."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(("number", "reason"), [(signal.SIGTERM, "SIGTERM"), (signal.SIGINT, "Ctrl-C"),
                                                (signal.SIGUSR1, "SIGUSR1"), (signal.SIGHUP, "SIGHUP")])
def test_a_signal_asks_to_stop_and_only_ctrl_c_after_it_stops_at_once(number, reason, capfd, hears_hangups):
    before = {n: signal.getsignal(n) for n in interrupt.SIGNALS}
    with Interruption() as interruption:
        assert interruption.action() is Action.NOTHING
        os.kill(os.getpid(), number)
        assert (interruption.action(), interruption.reason) == (Action.STOP, reason)
        os.kill(os.getpid(), signal.SIGTERM)  # schedulers send more than one
        assert capfd.readouterr().err == f"{reason}: saving after this step; Ctrl-C stops at once\n"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert {n: signal.getsignal(n) for n in interrupt.SIGNALS} == before


def test_nohup_stays_deaf_to_hangups_and_background_jobs_hear_sigint():
    before = {n: signal.signal(n, signal.SIG_IGN) for n in (signal.SIGHUP, signal.SIGINT)}
    try:
        with Interruption() as interruption:
            os.kill(os.getpid(), signal.SIGHUP)
            assert interruption.action() is Action.NOTHING
            os.kill(os.getpid(), signal.SIGINT)
            assert interruption.action() is Action.STOP
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_the_clock_asks_to_save_until_it_is_done(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with Interruption(save_minutes=2) as interruption:
        now[0] += 119
        assert interruption.action() is Action.NOTHING
        now[0] += 1
        assert [interruption.action(), interruption.action()] == [Action.SAVE] * 2
        interruption.saved()
        assert interruption.action() is Action.NOTHING
        now[0] += 1e6
        interruption.reason = "x"
        assert interruption.action() is Action.STOP
    assert Interruption().action() is Action.NOTHING


def test_the_end_of_the_starting_program_asks_to_stop(monkeypatch):
    monkeypatch.setenv(interrupt.STARTED_BY, str(os.getppid()))
    ours = Interruption()
    assert ours.action() is Action.NOTHING
    monkeypatch.setenv(interrupt.STARTED_BY, "1234567")
    other = Interruption()  # started by a shell that a run_seeds.py started: not ours to watch
    monkeypatch.setattr(os, "getppid", lambda: 1)
    assert (ours.action(), ours.reason) == (Action.STOP, "the end of the program that started it")
    assert other.action() is Action.NOTHING


def test_in_another_thread_signals_are_left_alone():
    found = []

    def enter():
        with Interruption() as interruption:
            found.append((interruption.action(), signal.getsignal(signal.SIGTERM)))
    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert found == [(Action.NOTHING, before)]
