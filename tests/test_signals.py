"""Signals and output of a command, apart from all that takes seconds to import."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from iqmjx.run import signals, terminal

BUSY = "import zlib; zlib.compress(bytes(2**28))"  # seconds without a step of Python


def start(script, before=":", **kwargs):
    """A process that has said `ready`; `before` is done in its shell."""
    script = f"from iqmjx.run import signals, terminal\n{script}"
    process = subprocess.Popen(
        ["bash", "-c", f'{before}; exec "$@"', "bash", sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        bufsize=1,
        **kwargs,
    )
    assert process.stdout.readline() == "ready\n"
    return process


def finish(process):
    with process:  # closes its pipes
        output = process.stdout.read()
    return process.returncode, output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("idle_exit", [None, 0])
def test_with_nothing_to_save_a_signal_ends_the_process_at_once(number, idle_exit):
    process = start(
        f"stop = signals.listen({idle_exit}); stop.farewell = 'farewell'\n"
        f"print('ready', flush=True); {BUSY}; print('too late')"
    )
    process.send_signal(number)
    code = 128 + number if idle_exit is None else idle_exit
    assert finish(process) == (code, "farewell\n")


DEFERRING = """
import threading
import time
stop = signals.listen()
def say(text):
    time.sleep(0.3)  # whatever follows from the signal must come after it
    print(text, flush=True)
with stop.deferred(say):
    print("ready", flush=True)
    while not stop.requested:
        pass
    {then}
    print("saved", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_where_there_is_something_to_save_a_signal_is_noted_and_said(number):
    process = start(DEFERRING.format(then="pass"))
    process.send_signal(number)
    code, output = finish(process)
    assert code == 0
    first, second = output.splitlines()
    assert "stopping after this chunk" in first and second == "saved"


@pytest.mark.slow  # a quiet machine's time
def test_a_signal_is_answered_while_the_main_thread_computes():
    script = f"{BUSY}; {BUSY}; {BUSY}"
    process = start(
        "stop = signals.listen()\n"
        "with stop.deferred(lambda text: print(text, flush=True)):\n"
        f"    print('ready', flush=True); {script}; print('computed', flush=True)"
    )
    begin = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert "stopping" in process.stdout.readline()
    answered = time.monotonic() - begin
    assert process.stdout.readline() == "computed\n"
    assert answered < 0.5 * (time.monotonic() - begin)
    assert finish(process) == (0, "")


@pytest.mark.parametrize(
    ("second", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)]
)
def test_a_second_ctrl_c_ends_at_once_and_a_second_sigterm_does_not(second, code):
    process = start(DEFERRING.format(then=BUSY))
    process.send_signal(signal.SIGTERM)
    assert "stopping" in process.stdout.readline()
    process.send_signal(second)
    found, output = finish(process)
    assert found == code
    assert ("saved" in output) == (code == 0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_that_comes_as_python_ends_leaves_the_exit_code(number):
    """What is left then: no handler, and objects that are torn down."""
    process = start(
        "import os, signal, sys\n"
        "class Late:\n"
        "    def __del__(self, kill=os.kill, own=os.getpid()):\n"
        f"        kill(own, {int(number)})\n"
        "signals.listen()\n"
        "sys.modules['late'] = Late()\n"
        "print('ready', flush=True)\n"
        "sys.exit(3)"
    )
    assert finish(process) == (3, "")


def test_a_signal_that_nohup_ignores_stays_ignored():
    process = start(
        "signals.listen(); print('ready', flush=True)\n"
        "import sys; sys.stdin.read(); print('here')",
        before="trap '' HUP",
        stdin=subprocess.PIPE,
    )
    process.send_signal(signal.SIGHUP)
    process.stdin.close()
    assert finish(process) == (0, "here\n")


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_output_that_nobody_reads_is_dropped(stream, tmp_path):
    done = tmp_path / "done"
    process = start(
        "import sys, pathlib\n"
        "terminal.keep_going(); print('ready'); sys.stdin.read()\n"
        f"for _ in range(10000): print('x' * 99, file=sys.{stream})\n"
        f"pathlib.Path({str(done)!r}).touch()",
        stdin=subprocess.PIPE,
    )
    process.stdout.close()
    process.stdin.close()
    assert process.wait(60) == 0 and done.exists()


def test_output_to_a_full_disk_is_dropped():
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            [sys.executable, "-c"]
            + ["from iqmjx.run import terminal\nterminal.keep_going(); print('x')"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert (result.returncode, result.stderr) == (0, "")


def test_output_arrives_whole_and_in_order():
    code = "terminal.keep_going(); print('ready'); print('\\u00e9', flush=True)\n"
    code += "import sys; print('two', file=sys.stderr); print('three', end='')"
    environment = os.environ | {"PYTHONIOENCODING": "utf-8"}
    assert finish(start(code, env=environment)) == (0, "\u00e9\ntwo\nthree")


def test_text_from_files_is_made_harmless():
    assert terminal.plain("a\x1b[2Jb\nc\u00e9\u202e") == "a\\x1b[2Jb\\nc\u00e9\\u202e"
    assert terminal.plain(3) == "3"


def test_ctrl_c_reaches_a_program_once_its_run_is_saved():
    """Noted while there is something to save; then its own handler is called."""
    done = []
    with pytest.raises(KeyboardInterrupt), signals.held_back() as stop:
        with stop.deferred(print):
            signal.raise_signal(signal.SIGINT)
            assert stop.requested
            done.append("saved")
        done.append("left")
    assert done == ["saved", "left"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_reaches_a_program_at_once_without_anything_to_save():
    with signals.held_back(), pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_ctrl_c_reaches_a_program_at_once():
    with signals.held_back() as stop, stop.deferred(print):
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_run_that_stops_for_another_reason_raises_nothing():
    with signals.held_back() as stop, stop.deferred(print):
        stop.requested = True


@pytest.mark.parametrize("raised", [0, 1])
def test_a_program_s_own_handler_is_called_after_the_run(raised):
    """As asyncio has one, which ends its main task."""
    called = []
    before = signal.signal(signal.SIGINT, lambda *_: called.append(stop.requested))
    try:
        with signals.held_back() as stop, stop.deferred(print):
            for _ in range(raised):
                signal.raise_signal(signal.SIGINT)
            assert not called
        assert called == [True] * raised
        signal.raise_signal(signal.SIGINT)
        assert len(called) == raised + 1
    finally:
        signal.signal(signal.SIGINT, before)


def test_ignored_signals_and_other_threads_are_left_alone():
    def hold(handler):
        with signals.held_back():
            found.append(signal.getsignal(signal.SIGINT) is handler)

    found = []
    thread = threading.Thread(target=hold, args=(signal.default_int_handler,))
    thread.start()
    thread.join()
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with signals.held_back():
            found.append(signal.getsignal(signal.SIGINT) == signal.SIG_IGN)
    finally:
        signal.signal(signal.SIGINT, before)
    assert found == [True, True]
