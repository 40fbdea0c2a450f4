"""processes.py against small programs that behave badly."""

import array
import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from azaion_devkit.leftovers import belongings, left_since
from azaion_loader import processes
from azaion_loader.processes import (
    STDERR_TAIL_BYTES,
    Outcome,
    OutputTooLarge,
    ProcessNotStarted,
    ProcessStalled,
    ProcessTimeout,
    feed,
    run,
)

ENVIRONMENT = {"PATH": os.environ["PATH"], "LC_ALL": "C"}
MIB = 1 << 20


class Stop(Exception):
    """What a test's `cancelled` raises."""


def nothing() -> None:
    """Go on."""


def count_nothing(_: int) -> None:
    """Forget the number."""


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    before = belongings()
    yield
    assert not left_since(before)


def sh(script: str, *arguments: str) -> list[str]:
    return ["/bin/sh", "-c", script, "sh", *arguments]


def run_sh(script: str, *arguments: str, timeout_s: float = 10.0, limit_bytes: int = MIB) -> Outcome:
    command = sh(script, *arguments)
    return run(command, ENVIRONMENT, timeout_s=timeout_s, stdout_limit_bytes=limit_bytes, cancelled=nothing)


def group_is_gone(pid_file: Path) -> bool:
    """Whether soon nothing of the group runs; a zombie of process 1 is none of our business."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        running = []
        for entry in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                state, _, group = entry.read_text().rsplit(")", 1)[1].split()[:3]
                if group == pid_file.read_text().strip() and state != "Z":
                    running.append(entry)
        if not running:
            return True
        time.sleep(0.05)
    return False


def test_output_and_exit_code() -> None:
    assert run_sh("echo out; echo err >&2; exit 3") == Outcome(3, b"out\n", b"err\n")


def test_death_by_signal() -> None:
    assert run_sh("kill -9 $$").exit_code == -signal.SIGKILL


def test_arguments_are_not_a_shell(tmp_path: Path) -> None:
    outcome = run_sh('printf %s "$1"', f"$(touch {tmp_path}/x); *")
    assert outcome.stdout == f"$(touch {tmp_path}/x); *".encode()
    assert not (tmp_path / "x").exists()


def test_standard_input_is_empty() -> None:
    assert run_sh("cat; echo end") == Outcome(0, b"end\n", b"")


@pytest.mark.parametrize("command", ["/nonexistent/docker", "no-such-program-here", "/etc/hostname", "/", "a\0b"])
def test_a_program_that_can_not_be_started(command: str) -> None:
    with pytest.raises(ProcessNotStarted):
        run([command], ENVIRONMENT, timeout_s=1, stdout_limit_bytes=1, cancelled=nothing)


def test_output_at_the_limit_and_over_it() -> None:
    assert len(run_sh("head -c 100000 /dev/zero", limit_bytes=100000).stdout) == 100000
    with pytest.raises(OutputTooLarge):
        run_sh("head -c 100001 /dev/zero; sleep 60", limit_bytes=100000)


def test_endless_output_ends_at_the_limit() -> None:
    started = time.monotonic()
    with pytest.raises(OutputTooLarge):
        run_sh("yes", timeout_s=60)
    assert time.monotonic() - started < 10


def test_only_the_end_of_a_long_complaint_is_kept() -> None:
    outcome = run_sh("yes | head -c 3000000 >&2; echo the end >&2")
    assert len(outcome.stderr) == STDERR_TAIL_BYTES
    assert outcome.stderr.endswith(b"the end\n")


def test_time_out_ends_the_whole_group(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    with pytest.raises(ProcessTimeout):
        run_sh(f"echo $$ >{pid_file}; sleep 60 & sleep 60 & wait", timeout_s=0.5)
    assert group_is_gone(pid_file)


def test_a_program_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    script = f"trap '' TERM; echo $$ >{pid_file}; while :; do sleep 1; done"
    with pytest.raises(ProcessTimeout):
        run_sh(script, timeout_s=0.5)
    assert group_is_gone(pid_file)


def test_sigterm_gives_the_program_time_to_clean_up(tmp_path: Path) -> None:
    mark = tmp_path / "clean"
    with pytest.raises(ProcessTimeout):
        run_sh(f"trap 'touch {mark}; exit 1' TERM; sleep 60 & wait", timeout_s=0.5)
    assert mark.exists()


def test_a_child_left_behind_neither_holds_the_call_nor_survives(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    started = time.monotonic()
    outcome = run_sh(f"echo $$ >{pid_file}; sleep 60 & echo done", timeout_s=30)
    assert outcome == Outcome(0, b"done\n", b"")
    assert time.monotonic() - started < 5
    assert group_is_gone(pid_file)


def test_a_program_that_closes_its_outputs_and_goes_on() -> None:
    assert run_sh("exec >&- 2>&-; sleep 0.3; exit 7").exit_code == 7


def run_python(script: str) -> Outcome:
    """Run a script that imports the package under test."""
    source = str(Path(processes.__file__).parents[1])
    environment = {**ENVIRONMENT, "PYTHONPATH": source}
    return run([sys.executable, "-c", script], environment, timeout_s=20, stdout_limit_bytes=9999, cancelled=nothing)


def test_process_1_of_a_container_keeps_no_zombies() -> None:
    """Orphans go to the next subreaper, in a container to process 1: here a Python that made itself one."""
    outcome = run_python("""
import ctypes, os
from azaion_loader.processes import run
PR_SET_CHILD_SUBREAPER = 36
assert ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
run(["/bin/sh", "-c", "sleep 60 & sleep 60 & echo"], dict(os.environ), timeout_s=9, stdout_limit_bytes=9,
    cancelled=lambda: None)
try:
    os.waitpid(-1, os.WNOHANG)
except ChildProcessError:
    print("none left")
""")
    assert outcome.stdout == b"none left\n", outcome


def test_cancel_while_waiting(tmp_path: Path) -> None:
    calls = 0

    def cancelled() -> None:
        nonlocal calls
        calls += 1
        if calls > 2:
            raise Stop

    started = time.monotonic()
    with pytest.raises(Stop):
        run(["sleep", "60"], ENVIRONMENT, timeout_s=60, stdout_limit_bytes=1, cancelled=cancelled)
    assert time.monotonic() - started < 5


# -- feed ------------------------------------------------------------------------------------------------------------


def feed_sh(script: str, chunks: Iterator[bytes], *, stall_s: float = 10.0, finish_s: float = 10.0) -> tuple[int, int]:
    taken: list[int] = []
    outcome = feed(
        sh(script),
        ENVIRONMENT,
        chunks,
        stall_timeout_s=stall_s,
        finish_timeout_s=finish_s,
        on_bytes=taken.append,
        cancelled=nothing,
    )
    return outcome.exit_code, sum(taken)


@pytest.mark.parametrize("size", [0, 1, 65535, 65536, 65537, MIB - 1, MIB, MIB + 1, 5 * MIB + 3])
def test_bytes_arrive_unchanged(size: int, tmp_path: Path) -> None:
    data = bytes((i * 7 + (i >> 8)) & 255 for i in range(size))
    pieces = (data[i : i + 300_001] for i in range(0, size, 300_001))
    assert feed_sh(f"cat >{tmp_path}/out", pieces) == (0, size)
    assert (tmp_path / "out").read_bytes() == data


def test_every_kind_of_buffer_is_taken(tmp_path: Path) -> None:
    chunks = iter([b"ab", bytearray(b"cd"), memoryview(b"xefx")[1:3], memoryview(array.array("H", [0x6767])), b""])
    assert feed_sh(f"cat >{tmp_path}/out", chunks) == (0, 8)
    assert (tmp_path / "out").read_bytes() == b"abcdefgg"


def test_a_program_that_never_reads_stalls() -> None:
    started = time.monotonic()
    with pytest.raises(ProcessStalled):
        feed_sh("sleep 60", (bytes(MIB) for _ in range(100)), stall_s=0.6)
    assert 0.5 < time.monotonic() - started < 8


def test_a_program_that_stops_reading_stalls() -> None:
    with pytest.raises(ProcessStalled):
        feed_sh("head -c 3000000 >/dev/null; sleep 60", (bytes(MIB) for _ in range(100)), stall_s=0.6)


def test_a_slow_reader_does_not_stall() -> None:
    script = "for i in 1 2 3 4 5 6 7 8; do head -c 400000 >/dev/null; sleep 0.2; done; cat >/dev/null"
    assert feed_sh(script, (bytes(MIB) for _ in range(4)), stall_s=1.0) == (0, 4 * MIB)


def test_slow_chunks_are_no_stall_of_the_program() -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(3):
            time.sleep(0.4)
            yield b"x"

    assert feed_sh("cat >/dev/null", chunks(), stall_s=0.2) == (0, 3)


def test_a_program_that_never_exits_after_the_last_byte() -> None:
    with pytest.raises(ProcessTimeout):
        feed_sh("cat >/dev/null; sleep 60", iter([b"x"]), finish_s=0.5)


def test_endless_output_while_feeding_is_forgotten_and_bounded_in_time() -> None:
    with pytest.raises(ProcessTimeout):
        feed_sh("yes & cat >/dev/null; wait", iter([b"x"]), finish_s=1.0)


def test_gigabytes_of_output_do_not_fill_the_memory() -> None:
    before = int(Path("/proc/self/statm").read_text().split()[1])
    assert feed_sh("cat >/dev/null; head -c 1000000000 /dev/zero", iter([b"x"]), finish_s=60)[0] == 0
    assert int(Path("/proc/self/statm").read_text().split()[1]) - before < 4096


def test_an_early_end_is_told_by_the_exit_code() -> None:
    exit_code, taken = feed_sh("head -c 100 >/dev/null; echo no >&2; exit 4", (bytes(MIB) for _ in range(100)))
    assert exit_code == 4
    assert taken < 100 * MIB


def test_a_program_that_ends_at_once() -> None:
    assert feed_sh("exit 5", (bytes(MIB) for _ in range(100)))[0] == 5


def test_an_early_end_while_its_child_holds_the_pipe() -> None:
    started = time.monotonic()
    # An asynchronous list's own input is /dev/null, unless it is given another.
    assert feed_sh("exec 3<&0; sleep 60 <&3 & exit 6", (bytes(MIB) for _ in range(100)), stall_s=30)[0] == 6
    assert time.monotonic() - started < 8


def test_cancel_while_the_pipe_is_full() -> None:
    until = time.monotonic() + 1.0

    def cancelled() -> None:
        if time.monotonic() > until:
            raise Stop

    started = time.monotonic()
    with pytest.raises(Stop):
        feed(
            ["sleep", "60"],
            ENVIRONMENT,
            (bytes(MIB) for _ in range(100)),
            stall_timeout_s=60,
            finish_timeout_s=60,
            on_bytes=count_nothing,
            cancelled=cancelled,
        )
    assert time.monotonic() - started < 1.0 + 0.5 + 2.5


def test_what_a_chunk_raises_comes_through() -> None:
    def chunks() -> Iterator[bytes]:
        yield b"x"
        raise OSError("the archive can't be read")

    with pytest.raises(OSError, match="archive"):
        feed_sh("cat >/dev/null", chunks())


def test_the_kill_of_the_feeding_process_ends_the_input(tmp_path: Path) -> None:
    """SIGKILL leaves no time to clean up; the program sees the end of its input."""
    out = tmp_path / "out"
    script = f"""
import os, signal
from azaion_loader.processes import feed
def chunks():
    yield b"x" * 1000
    os.kill(os.getpid(), signal.SIGKILL)
feed(["/bin/sh", "-c", "cat >/dev/null; echo ended >{out}"], dict(os.environ), chunks(), stall_timeout_s=9,
     finish_timeout_s=9, on_bytes=lambda n: None, cancelled=lambda: None)
"""
    outcome = run_python(script)
    assert outcome.exit_code == -signal.SIGKILL
    deadline = time.monotonic() + 10
    while not out.exists() or not out.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
