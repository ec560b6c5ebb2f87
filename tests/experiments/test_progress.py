"""How long runs will take, and what is shown while they do: `experiments/progress.py`.

Estimates are compared with schedules worked out by hand; lines are those of real logs; the clock is the test's own.
"""

import io

import pytest

from dassl_clip.experiments import progress
from dassl_clip.experiments.progress import Outlook, Reporter, Running, fraction_done, seconds_left

FAST, SLOW = ("ZeroshotCLIP (icons)", "lodo", "Icons", "16"), ("GOPro (icons)", "lodo", "Icons", "16")
OTHER = ("GOPro (icons)", "fewshot", "Icons", "16")


@pytest.mark.parametrize(
    ("line", "share", "left"),
    [
        ("epoch [3/8] batch [5/10] time 0.1 (0.1) loss 1.2 (1.2) lr 2.0e-03 eta 0:00:12", 2.5 / 8, 12),
        ("epoch [1/50] batch [20/200] loss 1.2 (1.2) lr 2.0e-03 eta 1 day, 2:03:04", 0.1 / 50, 93784),
        ("epoch [1/50] batch [20/200] loss 1.2 (1.2) lr 2.0e-03 eta 3 days, 0:00:01", 0.1 / 50, 259201),
        ("step 480 of at most 8000, eta 0:10:00: loss 1.2345", 0.06, 600),
        ("=> result", None, None),
        ("beta 0:00:12", None, None),
    ],
)
def test_lines_of_logs(line, share, left):
    assert fraction_done(line) == (None if share is None else pytest.approx(share))
    assert seconds_left(line) == left


def test_the_slow_method_is_not_estimated_from_the_fast_one():
    outlook = Outlook()
    for _ in range(9):
        outlook.note(FAST, 5.0)
    running = [Running("lodo emoji", SLOW, started=0.0)]
    assert outlook.estimate(running, [SLOW] * 3, 1, 60.0) == (0.0, ["GOPro (icons)"])  # a lower bound, and said so
    running[0].read("epoch [1/10] batch [1/1] eta 0:09:00", 60.0)  # by its own words it ends at 600
    assert outlook.estimate(running, [SLOW] * 3, 1, 60.0) == (540 + 3 * 600, [])
    assert outlook.estimate(running, [FAST] * 3, 1, 60.0) == (540 + 3 * 5, [])
    running[0].read("epoch [10/10] batch [1/1] eta 0:00:00", 600.0)  # its test is left
    assert outlook.estimate(running, [FAST], 1, 600.0) == (5.0, ["GOPro (icons)"])
    assert running[0].text(600.0) == "GOPro (icons) lodo emoji 100%, trained, testing"
    running[0].read("epoch [1/10] batch [1/1] eta 0:09:00", 60.0)
    outlook.note(SLOW, 700.0)  # a finished one of the kind counts for those that wait
    assert outlook.estimate(running, [SLOW] * 3, 1, 60.0) == (540 + 3 * 700, [])
    assert outlook.estimate(running, [OTHER], 1, 60.0) == (540 + 700, [])  # another task: by the method


def test_runs_side_by_side_end_with_the_last():
    outlook = Outlook({FAST: [10.0], SLOW: [100.0]}, later=[FAST])
    running = [Running("a", SLOW, 0.0), Running("b", FAST, 0.0)]
    # at 4: places free after 96 and 6; the slow one that waits takes the second until 106; the later one ends at 106
    assert outlook.estimate(running, [SLOW], 2, 4.0) == (106.0, [])
    assert outlook.estimate([], [SLOW, FAST, FAST], 2, 0.0) == (100.0, [])


@pytest.fixture
def clock(monkeypatch):
    """The time, in a list of one number that a test moves on."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_without_a_terminal_a_line_now_and_then(clock, capsys):
    reporter = Reporter([FAST, SLOW], 2)
    reporter.start("one", "lodo emoji", FAST)
    reporter.start("two", "lodo emoji", SLOW)
    for second in range(1, 28):
        clock[0] = float(second)
        if second == 5:
            reporter.finish("one", "ZeroshotCLIP lodo emoji: accuracy 60.0 %")
        if second == 12:
            reporter.read("two", "epoch [1/8] batch [2/4] loss 1 eta 0:03:00")
        if second == 20:
            reporter.read("two", "waiting: another process makes the same features")
        reporter.tick()
    assert capsys.readouterr().out.splitlines() == [
        "[1/2] ZeroshotCLIP lodo emoji: accuracy 60.0 %; time left not known yet for GOPro (icons)",
        "1 running: GOPro (icons) lodo emoji 6%, eta 0:02:58; 1 of 2 done; about 0:02:58 left",
        "1 running: GOPro (icons) lodo emoji 6%, waits: another process makes the same features, "
        "eta 0:02:49; 1 of 2 done; about 0:02:49 left",
    ]


def test_in_a_terminal_each_run_has_a_line(clock, monkeypatch):
    screen = io.StringIO()
    screen.isatty = lambda: True
    monkeypatch.setattr(progress.sys, "stdout", screen)
    monkeypatch.setattr(progress.sys, "stderr", screen)
    reporter = Reporter([SLOW, SLOW], 2)
    for name in ("emoji", "line"):
        reporter.start(name, f"lodo {name}", SLOW)
    clock[0] = 10.0
    reporter.read("emoji", "epoch [1/2] batch [1/1] eta 0:00:30")
    reporter.tick()
    reporter.close()
    drawn = screen.getvalue()
    for part in (
        "GOPro (icons) lodo emoji 50%, eta 0:00:30",
        "(icons) lodo line, 0:00:10 so far",
        "0.5/2 runs",
        "about 0:00:30",
    ):
        assert part in drawn, part
