"""What asks a run to stop or to save, and what signals do before and after."""
from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from libs.engine.runtime import stop_signals as interrupt
from libs.engine.runtime.stop_signals import Interruption, Wish


@pytest.mark.parametrize(("number", "reason"), [(signal.SIGTERM, "SIGTERM"), (signal.SIGINT, "Ctrl-C"),
                                                (signal.SIGUSR1, "SIGUSR1"), (signal.SIGHUP, "SIGHUP")])
def test_a_signal_asks_to_stop_and_only_ctrl_c_after_it_stops_at_once(number, reason, capfd):
    before = {n: signal.getsignal(n) for n in interrupt.SIGNALS}
    with Interruption() as asked:
        assert asked.wish() is Wish.NOTHING
        os.kill(os.getpid(), number)
        assert (asked.wish(), asked.reason) == (Wish.STOP, reason)
        os.kill(os.getpid(), signal.SIGTERM)  # schedulers send more than one
        assert capfd.readouterr().err == f"{reason}: saving after this step; Ctrl-C stops at once\n"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert {n: signal.getsignal(n) for n in interrupt.SIGNALS} == before


def test_nohup_stays_deaf_to_hangups_and_background_jobs_hear_sigint():
    before = {n: signal.signal(n, signal.SIG_IGN) for n in (signal.SIGHUP, signal.SIGINT)}
    try:
        with Interruption() as asked:
            os.kill(os.getpid(), signal.SIGHUP)
            assert asked.wish() is Wish.NOTHING
            os.kill(os.getpid(), signal.SIGINT)
            assert asked.wish() is Wish.STOP
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_the_clock_asks_to_save_until_it_is_done(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with Interruption(save_minutes=2) as asked:
        now[0] += 119
        assert asked.wish() is Wish.NOTHING
        now[0] += 1
        assert [asked.wish(), asked.wish()] == [Wish.SAVE] * 2
        asked.saved()
        assert asked.wish() is Wish.NOTHING
        now[0] += 1e6
        asked.reason = "x"
        assert asked.wish() is Wish.STOP
    assert Interruption().wish() is Wish.NOTHING


def test_the_end_of_the_starting_program_asks_to_stop(monkeypatch):
    monkeypatch.setenv(interrupt.STARTED_BY, str(os.getppid()))
    ours = Interruption()
    assert ours.wish() is Wish.NOTHING
    monkeypatch.setenv(interrupt.STARTED_BY, "1234567")
    other = Interruption()  # started by a shell that a run_seeds.py started: not ours to watch
    monkeypatch.setattr(os, "getppid", lambda: 1)
    assert (ours.wish(), ours.reason) == (Wish.STOP, "the end of the program that started it")
    assert other.wish() is Wish.NOTHING


def test_in_another_thread_signals_are_left_alone():
    found = []

    def enter():
        with Interruption() as asked:
            found.append((asked.wish(), signal.getsignal(signal.SIGTERM)))
    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert found == [(Wish.NOTHING, before)]
