"""Starting programs and scheduling runs that wait for each other."""
from __future__ import annotations

import os
import signal
import sys
import threading

import pytest

from libs.core.errors import Stopped, UserError
from libs.engine.experiments import launch
from libs.engine.experiments.launch import (
    eval_command,
    read_results,
    run_commands,
    run_graph,
    shown,
    threads_per_job,
    train_command,
)
from libs.engine.runtime.stop_signals import STARTED_BY

DIAMOND = {"d": ["b", "c"], "b": ["a"], "c": ["a"], "a": [], "e": []}


@pytest.mark.parametrize("jobs", [1, 2, 5])
def test_nothing_begins_before_what_it_waits_for(jobs):
    lock, events, running, most = threading.Lock(), [], set(), []

    def work(key):
        with lock:
            running.add(key)
            most.append(len(running))
            events.append(("begin", key))
        with lock:
            running.remove(key)
            events.append(("end", key))
        return key.upper()

    assert run_graph(DIAMOND, work, jobs) == {"d": "D", "b": "B", "c": "C", "a": "A", "e": "E"}
    assert max(most) <= jobs
    assert len(events) == 2 * len(DIAMOND)
    for key, others in DIAMOND.items():
        for other in others:
            assert events.index(("end", other)) < events.index(("begin", key))
    if jobs == 1:  # in the order of the mapping, as far as they are ready
        assert [key for what, key in events if what == "begin"] == ["a", "b", "c", "d", "e"]


def test_independent_runs_are_parallel():
    both = threading.Barrier(2)
    run_graph({"a": (), "b": ()}, lambda _key: both.wait(timeout=20), jobs=2)  # breaks unless both are there


def test_after_a_failure_nothing_begins_and_what_runs_is_waited_for():
    begun, finished = [], []
    failing, other_runs = threading.Event(), threading.Event()

    def work(key):
        begun.append(key)
        if key == "bad":
            assert other_runs.wait(20)
            failing.set()
            raise UserError("bad failed")
        other_runs.set()
        assert failing.wait(20)
        finished.append(key)

    with pytest.raises(UserError, match=r"^bad failed$"):
        run_graph({"bad": (), "long": (), "next": (), "after": ["long"]}, work, jobs=2)
    assert sorted(begun) == ["bad", "long"]
    assert finished == ["long"]


@pytest.mark.parametrize("graph", [{"a": ["b"], "b": ["a"], "c": []}, {"c": [], "a": ["nowhere"]}])
def test_what_can_never_begin_is_a_mistake(graph):
    with pytest.raises(ValueError, match=r"never ready: a"):
        run_graph(graph, str, jobs=2)


def test_command_lines():
    train = train_command("configs/x y.yaml", "seed0", ["a.b=1", "c=[1, 2]"])
    assert train[0] == sys.executable
    assert shown(train) == "python train.py 'configs/x y.yaml' --output seed0 --resume auto --set a.b=1 'c=[1, 2]'"
    assert shown(train_command("x.yaml", "n", eval_every=3)) == "python train.py x.yaml --output n --resume auto --eval-freq 3"
    assert shown(eval_command("x.yaml", "ckpt/e.pth.tar", "raw")) == "python eval.py x.yaml ckpt/e.pth.tar --weights raw"


def test_the_environment_decides_threads_before_the_jobs_do(tmp_path, monkeypatch):
    show = [sys.executable, "-c", "import os; print(os.environ['OMP_NUM_THREADS'])"]
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    run_commands([show], tmp_path / "a" / "run.log", 7, "run")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    run_commands([show], tmp_path / "a" / "run.log", 7, "run")
    assert (tmp_path / "a" / "run.log").read_text() == "7\n3\n"
    monkeypatch.setattr("os.cpu_count", lambda: 6)
    assert [threads_per_job(j) for j in (1, 2, 4, 7)] == [6, 3, 1, 1]


def test_a_failing_program_ends_the_sequence_with_its_last_words(tmp_path):
    def program(code):
        return [sys.executable, "-c", code]
    log = tmp_path / "x.log"
    with pytest.raises(UserError, match="stage x failed, see ") as caught:
        run_commands([program("print('fine')"), program("import sys; print(*range(9), sep='\\n'); sys.exit(2)"),
                      program("print('never')")], log, 1, "stage x")
    assert str(caught.value).endswith(f"see {log}; it ends with:\n  4\n  5\n  6\n  7\n  8")
    assert log.read_text() == "fine\n" + "".join(f"{i}\n" for i in range(9))


@pytest.mark.parametrize(("code", "kind", "said"), [
    ("import sys; sys.exit(75)", Stopped, "seed 3: -c was stopped and has saved its state, see "),
    ("import os; os.kill(os.getpid(), 9)", UserError, "seed 3 was killed by SIGKILL, see ")])
def test_an_interrupted_program_is_called_that(tmp_path, code, kind, said):
    with pytest.raises(kind) as caught:
        run_commands([[sys.executable, "-c", code]], tmp_path / "x.log", 1, "seed 3")
    assert str(caught.value).startswith(f"{said}{tmp_path / 'x.log'}; ")


def test_programs_know_who_started_them(tmp_path):
    show = f"import os; print(os.environ[{STARTED_BY!r}], os.getppid())"
    run_commands([[sys.executable, "-c", show]], tmp_path / "x.log", 1, "")
    assert (tmp_path / "x.log").read_text() == f"{os.getpid()} {os.getpid()}\n"


@pytest.fixture
def ctrl_c():
    """Python's own reaction to SIGINT, which a shell has its background jobs ignore."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_asks_the_programs_to_save_and_begins_no_other(tmp_path):
    """A program that needs a moment to end when it is asked to."""
    patient = ("import signal, sys\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(print('saved') or 75))\n"
               "print('ready', flush=True)\nsignal.pause()")

    def work(key):
        run_commands([[sys.executable, "-c", patient], [sys.executable, "-c", "print('never')"]], tmp_path / key, 1, key)

    def interrupt():
        while not (tmp_path / "a").exists() or "ready" not in (tmp_path / "a").read_text():
            wait.wait(0.01)
        os.kill(os.getpid(), signal.SIGINT)
    wait = threading.Event()
    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt, match=r"^stopped, and what was being trained is saved; start the same command again"):
        run_graph({"a": (), "b": ()}, work, jobs=1)
    assert (tmp_path / "a").read_text() == "ready\nsaved\n"
    assert not (tmp_path / "b").exists()
    with pytest.raises(Stopped, match="before the next program began"):
        run_commands([[sys.executable, "-c", "print('never')"]], tmp_path / "c", 1, "c")
    launch.PROGRAMS.allow()
    run_graph({"d": ()}, lambda key: run_commands([[sys.executable, "-c", "pass"]], tmp_path / key, 1, key), jobs=1)


@pytest.mark.parametrize("content", ["[1]", "{}", '{"average_mAP": "high"}', '{"average_mAP": null}', '{"average_mAP": NaN}'])
def test_results_of_another_kind(tmp_path, content):
    file = tmp_path / "results.json"
    file.write_text(content)
    with pytest.raises(UserError, match=r"results\.json: average_mAP: missing or not a number"):
        read_results(file)
