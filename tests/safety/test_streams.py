"""The standard streams: readers that leave, closed streams, full devices, terminals that are not in UTF-8 (row 8.1).

Covered: `| head` and closed streams of real processes; what names and bars may write on stdout, stderr and in a log;
the words of argparse; errors of the system, of workers and of memory as one line.
"""

import errno
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dassl_clip.engine import errors
from dassl_clip.results.escaping import printable

PROGRAM = [sys.executable, "-m", "dassl_clip.cli"]
needs_full = pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="no device without room")


def shell(tail, *words, **settings):
    """Exit codes of a command and what it is piped into, and what stands on stderr."""
    line = f'"$@" {tail}; echo "codes ${{PIPESTATUS[*]}}" >&3'
    reading, writing = os.pipe()
    done = subprocess.run(
        ["bash", "-c", line.replace("&3", f"&{writing}"), "bash", *PROGRAM, *map(str, words)],
        pass_fds=[writing], capture_output=True, text=True, **settings,
    )  # fmt: skip
    os.close(writing)
    with open(reading) as codes:
        return codes.read().split()[1:], done.stderr


@pytest.fixture(scope="module")
def many(trained, tmp_path_factory):
    """A folder of so many runs that their table fills a pipe."""
    record = (trained / "record.json").read_text()
    folder = tmp_path_factory.mktemp("many")
    for number in range(400):
        (folder / str(number)).mkdir()
        text = record.replace('"CoOp"', f'"CoOp{number:03d} {"x" * 100}"')
        (folder / str(number) / "record.json").write_text(text)
    return folder


def test_8_1_a_reader_that_leaves_ends_the_command_quietly(many):
    codes, err = shell("| head -1 >/dev/null", "table", many, "--format", "json")
    assert codes == [str(errors.PIPE_EXIT), "0"] and err == ""


@pytest.mark.parametrize("closed", [">&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_8_1_closed_streams_lead_nowhere(closed, trained):
    codes, err = shell(closed, "table", trained)
    assert codes == ["0"] and err == ""


def test_8_1_a_closed_stdout_is_never_the_number_of_a_file(tmp_path, trained):
    out = tmp_path / "page.html"
    codes, err = shell(">&- <&-", "report", trained, "--no-plots", "--out", out)
    assert codes == ["0"] and err == "" and out.read_text().endswith("</html>\n")


@needs_full
@pytest.mark.parametrize("asked", [("table", "RUN"), ("--help",), ("--version",)])
def test_8_1_a_full_device_behind_stdout_is_named(asked, trained):
    codes, err = shell(">/dev/full", *[trained if word == "RUN" else word for word in asked])
    assert codes == ["2"]
    assert err == "error: standard output: No space left on device; free disk space, or name another folder\n"


@needs_full
def test_8_1_what_stderr_cannot_hold_is_dropped(tmp_path):
    assert shell("2>/dev/full", "table", tmp_path / "none")[0] == ["2"]


def test_8_1_a_terminal_that_is_not_in_utf_8_shows_escapes():
    raw = io.BytesIO()
    shown = errors.Console(io.TextIOWrapper(raw, encoding="ascii", write_through=True), "standard output")
    print("1.0 ± 0.2, 漢", file=shown)
    assert raw.getvalue() == rb"1.0 \xb1 0.2, \u6f22" + b"\n"


def test_8_7_names_do_not_steer_the_console_and_bars_do():
    out, err = io.StringIO(), io.StringIO()
    shown = errors.Console(out, "standard output")
    print("\x1b[31m\r\u202e name", file=shown)
    assert out.getvalue() == r"\x1b[31m\r\u202e name" + "\n"
    told = errors.Console(err, "standard error", spoken=True)
    for text in ("\r 50%|###", "\n\x1b[A", "\r", "error: \x1b[A\r\u202e"):
        told.write(text)
    assert err.getvalue() == "\r 50%|###" + "\n\x1b[A" + "\r" + r"error: \x1b[A\r\u202e"


@pytest.mark.parametrize(
    "asked", ["plot \x1b[2J\u202e", "train --trainer\x1b[2J x", "\x1b[2J", "task \x1b]0;x\x07 icons 1"]
)
def test_8_7_the_words_of_the_command_line_are_printable(asked, call):
    code, out, err = call(*asked.split())
    assert code == 2 and err == printable(err) and out == printable(out) and r"\x1b" in err


def test_8_7_the_log_is_printable(words, call, tmp_path):
    """Also what a user's trainer prints, and its traceback."""
    (tmp_path / "loud.py").write_text(
        "from dassl.engine import TRAINER_REGISTRY\n"
        "@TRAINER_REGISTRY.register()\n"
        "class LoudTrainer:\n"
        "    def __init__(self, cfg):\n"
        "        print('\\x1b[2J loud')\n"
        "        raise RuntimeError('\\x1b[31m\\u202e a bug')\n"
    )
    code, out, err = call(*words("LoudTrainer", tmp_path / "run", "--import", tmp_path / "loud.py"))
    log = (tmp_path / "run" / "log.txt").read_text()
    assert code == 1 and r"\x1b[2J loud" in log and r"RuntimeError: \x1b[31m\u202e a bug" in log
    assert (log, out, err) == (printable(log), printable(out), printable(err))


SPACE = "free disk space, or name another folder"
OF_WORKER = """Caught FileNotFoundError in DataLoader worker process 0.
Original Traceback (most recent call last):
  File "x", line 1, in y
    open()
FileNotFoundError: [Errno 2] No such file or directory: '/d/f'
"""
SYSTEM = [
    # error, part of the expected line
    (OSError(errno.ENOSPC, "No space left on device", "/d/f"), f"/d/f: No space left on device; {SPACE}"),
    (OSError(errno.EDQUOT, "Disk quota exceeded", "/d/f"), f"/d/f: Disk quota exceeded; {SPACE}"),
    (OSError(errno.EROFS, "Read-only file system", b"/d/\xff"), "/d/\\udcff: Read-only file system; name a folder"),
    (OSError(errno.EIO, "Input/output error"), "error: Input/output error; the device does not answer"),
    (OSError(errno.ENOSPC, "No space left on device", 7), f"error: No space left on device; {SPACE}"),
    (FileNotFoundError(errno.ENOENT, "No such file", "/d/f"), "/d/f: No such file; it does not exist, cannot be"),
    (FileNotFoundError(OF_WORKER), "error: [Errno 2] No such file or directory: '/d/f'"),
    (MemoryError(), "error: not enough memory"),
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "set a smaller DATALOADER"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9"), "9; set a smaller DATAL"),
    (RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. It is"), "error; set fewer DATALOADER"),
]  # fmt: skip


@pytest.mark.parametrize(("error", "line"), SYSTEM, ids=range(len(SYSTEM)))
def test_8_1_the_machine_refuses_in_one_line(error, line, capsys):
    """(rows 8.1, 8.3)"""

    def work(words):
        raise error

    assert errors.guarded(work, []) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ") and line in told and told.count("\n") == 1


@pytest.mark.parametrize("error", [RuntimeError("a bug"), OSError(errno.EBADF, "Bad file descriptor"), TypeError("x")])
def test_a_bug_keeps_its_traceback(error, capsys):
    def work(words):
        raise error

    assert errors.guarded(work, []) == 1 and "Traceback" in capsys.readouterr().err
