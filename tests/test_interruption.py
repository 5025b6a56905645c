"""Signals are noted, not died of: real processes and real signals."""

import logging
import multiprocessing
import os
import signal
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from recipes.common import interruption
from recipes.common.interruption import (
    INTERRUPTED,
    Interrupted,
    Interruption,
    leaving_at_once,
    spare_worker,
)

# Children are forked from a server that has imported the slow modules once.
FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(["recipes.common.interruption", "torch.utils.data", "pytest"])

BOTH = pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGUSR1], ids=lambda s: s.name)


class Child:
    """A process that runs ``function(pipe, *args)``; closing ends it."""

    def __init__(self, function, *args):
        self.pipe, end = FORK.Pipe()
        self.process = FORK.Process(target=function, args=(end, *args))
        self.process.start()
        end.close()

    def close(self):
        self.process.kill()
        self.process.join()
        self.process.close()
        self.pipe.close()

    def hear(self):
        assert self.pipe.poll(60), "the child says nothing"
        return self.pipe.recv()

    def signal(self, signum):
        os.kill(self.process.pid, signum)

    @property
    def exitcode(self):
        self.process.join(60)
        return self.process.exitcode


def tell_signals(pipe):
    """Say the name after each signal, until the parent has heard enough."""
    with Interruption() as noted:
        pipe.send(noted.signal_name)
        for _ in range(2):
            pipe.recv()
            pipe.send(noted.signal_name)
    pipe.send("out")
    pipe.recv()


@BOTH
def test_a_signal_is_noted_once_and_a_second_one_waits(signum):
    with closing(Child(tell_signals)) as child:
        assert child.hear() is None
        for number in (signum, signal.SIGTERM):
            child.signal(number)
            child.pipe.send("and now?")
            assert child.hear() == signum.name


def prepare_for_ever(pipe):
    """Do what may be left at any instruction."""
    with leaving_at_once():
        pipe.send("begun")
        time.sleep(600)


@BOTH
def test_before_training_a_signal_ends_the_run_at_once_with_the_status_of_try_again(signum):
    with closing(Child(prepare_for_ever)) as child:
        assert child.hear() == "begun"
        child.signal(signum)
        assert child.exitcode == INTERRUPTED


@BOTH
def test_after_the_context_a_signal_kills_again(signum):
    with closing(Child(tell_signals)) as child:
        for _ in range(2):
            child.pipe.send("and now?")
        assert [child.hear() for _ in range(4)] == [None, None, None, "out"]
        child.signal(signum)
        assert child.exitcode == -signum


def test_the_earlier_handlers_come_back():
    earlier = [signal.getsignal(signum) for signum in interruption.SIGNALS]
    with pytest.raises(ZeroDivisionError), Interruption():
        assert signal.getsignal(signal.SIGTERM) not in earlier
        _ = 1 / 0
    assert [signal.getsignal(signum) for signum in interruption.SIGNALS] == earlier


def test_control_c_stays_what_it_is():
    with Interruption() as noted:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert noted.signal_name is None


def test_a_signal_in_a_nested_context_is_also_the_outer_ones():
    with Interruption() as outer:
        with Interruption() as inner:
            signal.raise_signal(signal.SIGUSR1)
        assert (outer.signal_name, inner.signal_name) == ("SIGUSR1", "SIGUSR1")
        with Interruption() as later:
            pass
        signal.raise_signal(signal.SIGTERM)
        assert (outer.signal_name, later.signal_name) == ("SIGUSR1", None)


def test_the_same_context_is_entered_twice_and_again():
    earlier = signal.getsignal(signal.SIGTERM)
    noted = Interruption()
    with noted:
        with noted:
            pass
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is earlier
    with noted:  # as for the test after the training
        assert noted.signal_name == "SIGTERM"
    assert signal.getsignal(signal.SIGTERM) is earlier


def test_in_another_thread_it_does_nothing_and_says_so(caplog):
    caplog.set_level(logging.DEBUG, logger=interruption.__name__)
    seen = []

    def enter():
        with Interruption() as noted:
            seen.append((noted.agree(), signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [(False, signal.getsignal(signal.SIGTERM))]
    assert "not in the main thread" in caplog.text


def fork_and_wait(pipe):
    with Interruption() as noted:
        forked = os.fork()
        if forked == 0:
            pipe.send(os.getpid())
            time.sleep(60)
            os._exit(0)
        _, status = os.waitpid(forked, 0)
        pipe.send((os.waitstatus_to_exitcode(status), noted.signal_name))


@BOTH
def test_a_forked_child_dies_of_the_signal(signum):
    with closing(Child(fork_and_wait)) as child:
        os.kill(child.hear(), signum)
        assert child.hear() == (-signum, None)


def load(pipe, worker_init_fn, patience_s):
    """Load with one worker: say its id, then go on to the end when told to."""
    interruption._PATIENCE_S = patience_s
    with Interruption():
        loader = DataLoader(
            range(64),
            num_workers=1,
            worker_init_fn=worker_init_fn,
            multiprocessing_context="fork",  # as in a run; here the default is the forkserver's
        )
        batches = iter(loader)
        next(batches)
        pipe.send(batches._workers[0].pid)
        try:
            pipe.recv()
            pipe.send(sum(int(batch) for batch in batches))
        except RuntimeError as error:  # raised at any instruction, by the handler of SIGCHLD
            pipe.send(str(error))
        del batches  # ends the worker


@BOTH
def test_loading_survives_a_signal_to_all_processes(signum):
    with closing(Child(load, spare_worker, 30.0)) as child:
        for process in (child.hear(), child.process.pid):
            os.kill(process, signum)
        child.pipe.send("go on")
        assert child.hear() == sum(range(64))
        assert child.exitcode == 0


def test_without_it_a_signal_to_all_processes_breaks_loading():
    with closing(Child(load, None, 30.0)) as child:
        for process in (child.hear(), child.process.pid):
            os.kill(process, signal.SIGTERM)
        assert "killed by signal" in str(child.hear())


def test_a_worker_that_alone_is_told_to_end_dies():
    with closing(Child(load, spare_worker, 0.1)) as child:
        os.kill(child.hear(), signal.SIGTERM)
        assert "killed by signal" in str(child.hear())


def test_a_worker_alone_ignores_the_signal_that_only_schedulers_send():
    with closing(Child(load, spare_worker, 0.1)) as child:
        os.kill(child.hear(), signal.SIGUSR1)
        child.pipe.send("go on")
        assert child.hear() == sum(range(64))


def is_pending(process, signum):
    """Whether a process has a signal before it: a second one of its kind would be lost."""
    status = Path(f"/proc/{process}/status").read_text()
    (pending,) = (line for line in status.splitlines() if line.startswith("ShdPnd"))
    return bool(int(pending.split()[1], 16) >> (signum - 1) & 1)


def end_worker(pipe):
    with Interruption() as noted:
        loader = DataLoader(
            range(64), num_workers=1, worker_init_fn=spare_worker, multiprocessing_context="fork"
        )
        batches = iter(loader)
        next(batches)
        pipe.send(batches._workers[0].pid)
        pipe.recv()
        worker = batches._workers[0]
        while noted.signal_name is None or is_pending(worker.pid, signal.SIGTERM):
            time.sleep(0.01)
        worker.terminate()
        worker.join(30)
        pipe.send(worker.exitcode)


def test_a_spared_worker_ends_when_its_main_process_says_so():
    with closing(Child(end_worker)) as child:
        for process in (child.hear(), child.process.pid):
            os.kill(process, signal.SIGTERM)
        child.pipe.send("end it")
        assert child.hear() == 0


def agree_on_ranks(pipe, rank, store):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=2
    )
    with Interruption() as noted:
        pipe.send(noted.agree())
        pipe.recv()
        pipe.send((noted.agree(), noted.signal_name))
    torch.distributed.destroy_process_group()


def test_ranks_agree_if_one_of_them_has_a_signal(tmp_path):
    with (
        closing(Child(agree_on_ranks, 0, tmp_path / "store")) as first,
        closing(Child(agree_on_ranks, 1, tmp_path / "store")) as second,
    ):
        assert (first.hear(), second.hear()) == (False, False)
        second.signal(signal.SIGUSR1)
        for child in (first, second):
            child.pipe.send("and now?")
        assert first.hear() == (True, None)
        assert second.hear() == (True, "SIGUSR1")
        assert (first.exitcode, second.exitcode) == (0, 0)


def test_one_process_agrees_with_itself():
    with Interruption() as noted:
        assert not noted.agree()
        signal.raise_signal(signal.SIGTERM)
        assert noted.agree()


def leave(pipe):
    pipe.close()
    raise Interrupted("SIGTERM", step=7)


def test_the_process_ends_with_the_status_of_try_again():
    with closing(Child(leave)) as child:
        assert child.exitcode == INTERRUPTED == 75


@pytest.mark.parametrize("name", ["SIGUSR1", None])
def test_the_error_says_how_to_continue(name):
    error = Interrupted(name, step=1234)
    assert isinstance(error, SystemExit) and error.code == INTERRUPTED
    message = str(error)
    assert (name or "another rank") in message and "1234" in message and "same command" in message
