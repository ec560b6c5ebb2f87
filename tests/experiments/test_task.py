"""Tasks of many runs: expansion into runs, skip, redo, resume, refuse, failing and killed children, tables, scripts.

Covers `experiments/plan.py`, `methods.py`, `state.py`, `launchers.py` and `progress.py` through `dassl-clip task`,
`compare` and `table`, and `scripts/`. Runs are real: two tiny trainers in forked children.
"""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dassl_clip.cli import __main__ as door
from dassl_clip.engine import catalogue, registry
from dassl_clip.experiments import launchers, locks, plan
from dassl_clip.experiments.methods import Method, reference_method, reference_name
from dassl_clip.experiments.progress import fraction_done
from dassl_clip.results import records
from dassl_clip.results.errors import UserError

SCRIPTS = Path(plan.__file__).resolve().parents[1] / "scripts"


def request(world, **changes):
    facts = {"dataset": str(world.dataset), "seeds": (1,), "out": str(world.out), "data": str(world.images)}
    return plan.Request(**{**facts, "imports": (str(world.plugin),), **changes})


def planned(world, pairs=(), **changes):
    registry.register()
    method = Method("TinyNet", str(world.config), tuple(zip(pairs[::2], pairs[1::2])))
    return plan.plan_runs(request(world, **changes), method)


def accuracy(folder):
    return records.read_record(folder)["metrics"]["test"]["accuracy"]


def test_lodo_and_fewshot_expand_to_the_runs_of_the_protocol(world):
    runs = planned(world, seeds=(1, 2))
    seen = [
        (run.task, list(run.config.DATASET.SOURCE_DOMAINS), list(run.config.DATASET.TARGET_DOMAINS), run.config.SEED)
        for run in runs
    ]
    assert seen == [
        *(("fewshot", [name], [name], seed) for name in ("day", "night") for seed in (1, 2)),
        *(("lodo", [source], [name], seed) for source, name in (("night", "day"), ("day", "night")) for seed in (1, 2)),
    ]
    assert [str(run.folder.relative_to(world.out)) for run in runs[:2]] == [
        "fewshot/colours/TinyNet/tiny/shots16/day/seed1",
        "fewshot/colours/TinyNet/tiny/shots16/day/seed2",
    ]
    assert str(runs[-1].folder.relative_to(world.out)) == "lodo/colours/TinyNet/tiny/shots16/night/seed2"
    for run in runs:
        assert str(run.folder) == run.config.OUTPUT_DIR
        assert f"shots{run.config.DATASET.NUM_SHOTS}" in run.folder.parts
        assert run.task == run.config.RUN.TASK


@pytest.mark.parametrize(
    ("pairs", "changes", "part"),
    [
        ((), {"shots": 4}, "tiny/shots4/day"),
        ((), {"shots": 0}, "tiny/shots-1/day"),
        (("DATASET.NUM_SHOTS", "2"), {}, "tiny/shots2/day"),
        (("OPTIM.LR", "0.1"), {}, "tiny/shots16/day"),  # the config's own value
        (("OPTIM.LR", "0.2"), {}, "tiny+OPTIM.LR=0.2/shots16/day"),
        (("TRAINER.TINYNET.CTX_INIT", "a b/c"), {}, "tiny+CTX_INIT=a_b_c/shots16/day"),
        (("DATALOADER.NUM_WORKERS", "2"), {}, "tiny/shots16/day"),
        (("DATASET.SUBSAMPLE_CLASSES", "base"), {}, "tiny/shots16/day-base"),
    ],
)
def test_run_folders_tell_configurations_apart(world, pairs, changes, part):
    first = planned(world, pairs, tasks=("fewshot",), **changes)[0]
    assert str(first.folder.relative_to(world.out)) == f"fewshot/colours/TinyNet/{part}/seed1"
    assert part.split("/")[0] == first.config.RUN.CONFIG


def test_very_long_changes_stay_distinct_and_short(world):
    long = ("x" * 200 + end for end in "ab")
    names = {planned(world, ("TRAINER.TINYNET.CTX_INIT", text), tasks=("lodo",))[0].config.RUN.CONFIG for text in long}
    assert len(names) == 2 and max(map(len, names)) < 140


def test_the_reference_follows_the_method_in_images_model_precision_and_words(world):
    registry.register()
    other = world.root / "other.yaml"
    other.write_text(world.config.read_text() + "MODEL: {BACKBONE: {NAME: RN101}}\n")
    pairs = {"TRAINER.TINYNET.WIDTH": "5", "OPTIM.LR": "1.0", "DATASET.SUBSAMPLE_CLASSES": "base",
             "INPUT.SIZE": "(4, 4)", "MODEL.INIT_WEIGHTS": "x"}  # fmt: skip
    method = Method("TinyNet", str(other), tuple(pairs.items()))
    reference = reference_method(request(world).overrides(method), "TinyGuess", str(world.config))
    assert dict(reference.pairs) == {
        "DATASET.SUBSAMPLE_CLASSES": "base",
        "INPUT.SIZE": "[4, 4]",
        "MODEL.BACKBONE.NAME": "RN101",
        "TRAINER.TINYGUESS.CTX_INIT": "some words",
        "TRAINER.TINYGUESS.TEMPLATES": "words",
    }
    assert plan.plan_runs(request(world), reference)[0].config.INPUT.SIZE == (4, 4)


def test_the_reference_of_the_shipped_configs_needs_no_changes():
    registry.register()
    for dataset, trainers in (("icons", ("GOPro", "CoOp", "LinearProbe")), ("pacs", ("GOPro",))):
        for trainer in trainers:
            reference = reference_method(Method(trainer).overrides(dataset), reference_name())
            assert reference == Method("ZeroshotCLIP", "", ()), trainer


def test_configs_are_found_by_data_set_then_general_then_path(world):
    assert catalogue.dataset_file("OfficeHome-DG").stem == "office_home_dg"
    assert catalogue.trainer_file("ZeroshotCLIP", "", "icons").stem == "icons"
    assert catalogue.trainer_file("ZeroshotCLIP", "", "pacs").stem == "vit_b16"
    assert catalogue.trainer_file("GOPro", "vit-b16-paper", "pacs").stem == "vit_b16_paper"
    assert catalogue.trainer_file("InMaP", "paper", "icons").stem == "icons_paper"
    assert catalogue.trainer_file("InMaP", "paper", "pacs").stem == "vit_b16_paper"
    assert catalogue.trainer_file("Any", str(world.config), "pacs") == world.config
    with pytest.raises(UserError, match=r"there is no config of GOPro 'vit_b17'\. Did you mean 'vit_b16'\? Known: "):
        catalogue.trainer_file("GOPro", "vit_b17", "pacs")
    assert catalogue.trainer_configs("GOPro", "pacs")[0] == "vit_b16"


def test_a_task_runs_skips_redoes_and_prints_its_table(world):
    words = world.task("--reference", f"TinyGuess:{world.config}", "--jobs", "2", "OPTIM.MAX_EPOCH", "3")
    done = world.run(words)
    assert done.returncode == 0, done.stderr
    name = "tiny+OPTIM.MAX_EPOCH=3"
    lodo = world.out / "lodo" / "colours" / "TinyNet" / name / "shots4"
    guess = world.out / "fewshot" / "colours" / "TinyGuess"
    assert len(records.find_records(world.out)) == 8
    assert [path.name for path in guess.iterdir()] == ["tiny+CTX_INIT=some_words+TEMPLATES=words"]
    for target in ("day", "night"):
        folder = lodo / target / "seed1"
        assert {"log.txt", "config.yaml", "record.json", "tiny", "tensorboard"} <= set(os.listdir(folder))
        assert "epoch [3/3]" in (folder / "log.txt").read_text()
    assert "[8/8]" in done.stdout

    # the table at the end, against the records
    shown = table_rows(done.stdout)
    values = [accuracy(lodo / target / "seed1") for target in ("day", "night")]
    assert [float(cell) for cell in shown["TinyNet (tiny, MAX_EPOCH=3)"]] == pytest.approx(
        [*values, sum(values) / 2], abs=0.0501
    )
    gains = next(cells for label, cells in reversed(shown.items()) if label.startswith("gain of TinyNet"))
    zero = [records.find_records(world.out / "lodo" / "colours" / "TinyGuess")[index] for index in (0, 1)]
    expected = [value - item.record["metrics"]["test"]["accuracy"] for value, item in zip(values, zero)]
    assert [float(cell) for cell in gains] == pytest.approx([*expected, sum(expected) / 2], abs=0.0501)

    # any printed line runs by itself and gives the same
    lines = [line[2:] for line in done.stdout.splitlines() if line.startswith("$ ")]
    assert len(lines) == 8
    line = next(line for line in lines if str(lodo / "night") in line)
    assert shlex.split(line)[0] == "python" and "my images" in line
    before = json.loads((lodo / "night" / "seed1" / "record.json").read_text())
    (lodo / "night" / "seed1").rename(world.root / "kept")
    assert world.run(shlex.split(line)[1:]).returncode == 0
    after = json.loads((lodo / "night" / "seed1" / "record.json").read_text())
    for key in ("metrics", "config_hash", "config", "task", "data_fingerprint", "shots"):
        assert after[key] == before[key], key
    assert shlex.split(after["command"])[1:] == shlex.split(line)[1:] == shlex.split(before["command"])[1:]

    # a torn record is redone, a finished run of another configuration refused, the rest skipped
    torn = lodo / "day" / "seed1" / "record.json"
    torn.write_text(torn.read_text()[:100])
    config = lodo / "night" / "seed1" / "config.yaml"
    config.write_text(config.read_text().replace("LR: 0.1", "LR: 0.7"))
    record = lodo / "night" / "seed1" / "record.json"
    record.write_text(record.read_text().replace(after["config_hash"], "0" * 64))
    again = world.run(words)
    assert again.returncode == 1
    assert again.stdout.count("skipped, complete: ") == 6
    assert "redo: " in again.stdout and "cannot be read" in again.stdout and "[1/1]" in again.stdout
    assert records.is_complete(torn.parent) and (torn.parent / "record.json.broken-1").exists()
    assert "refused: " in again.stderr and "OPTIM.LR: 0.7 there, 0.1 now" in again.stderr
    assert re.search(r"missing: TinyNet .*: night \(seed 1\)", again.stdout)


def test_failed_and_killed_runs_are_told_and_the_others_go_on(world):
    faults = ["TRAINER.TINYNET.FAULTS", "['lodo day killed_once', 'lodo night bug']"]
    words = world.task("--jobs", "2", "TRAIN.CHECKPOINT_FREQ", "1", *faults)
    base = world.out / "lodo/colours/TinyNet/tiny+FAULTS=lodo_day_killed_once,lodo_night_bug/shots4"
    day = base / "day" / "seed1"
    first = world.run(words)
    assert first.returncode == 1
    assert [item.folder.parts[-7] for item in records.find_records(world.out)] == ["fewshot", "fewshot"]
    assert first.stdout.count("FAILED") == 2
    assert "killed by SIGKILL" in first.stdout and "killed by SIGKILL" in (day / "log.txt").read_text()
    assert "RuntimeError: a bug in the method" in first.stdout
    line = rf"^failed: TinyNet \(tiny, FAULTS [0-9a-f]{{6}}\) lodo day seed 1, log: {re.escape(str(day))}/log.txt$"
    assert re.search(line, first.stderr, re.MULTILINE)
    assert "lodo: no finished run" in first.stdout

    # the same command again: what is finished is skipped, what was killed goes on from its checkpoint
    second = world.run(words)
    assert second.returncode == 1
    assert second.stdout.count("skipped, complete: ") == 2 and second.stdout.count("resume: ") == 2
    assert records.is_complete(day)
    (log,) = day.glob("log.txt-*")
    assert "epoch [2/2]" in log.read_text() and "epoch [1/2]" not in log.read_text()

    # half done by another configuration: moved aside, not mixed
    (day / "record.json").unlink()
    config = day / "config.yaml"
    config.write_text(config.read_text().replace("LR: 0.1", "LR: 0.7"))
    third = world.run([*words, "--task", "lodo", "--targets", "day"])
    assert third.returncode == 0 and "OPTIM.LR: 0.7 there, 0.1 now" in third.stdout
    assert (day.parent / "seed1.stale-1" / "tiny").is_dir()
    assert "epoch [1/2]" in (day / "log.txt").read_text()


def wait_for(condition, seconds=300):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def descendants(pid):
    """Every living process that a process has started, and those that they have started."""
    lists = Path("/proc", str(pid), "task").glob("*/children")
    children = [int(child) for path in lists for child in path.read_text().split()]
    return children + [other for child in children for other in descendants(child)]


def is_alive(pid):
    """Whether a process is there, and is no zombie that nobody has asked for its exit code."""
    try:
        return Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@pytest.mark.parametrize(("sign", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_killed_or_interrupted_parent_takes_its_runs_along(world, sign, code):
    """A parent that is killed is a process as a user starts it, whose runs come from a server of forks."""
    words = world.task("--task", "lodo", "--targets", "day", "TRAINER.TINYNET.FAULTS", "lodo day sleep")
    command = [sys.executable, "-m", "dassl_clip.cli", *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    pipes |= {"cwd": world.root, "env": world.environment}
    fresh = sign == signal.SIGKILL
    with subprocess.Popen(command, **pipes) if fresh else world.start(words) as parent:
        try:
            wait_for(lambda: any("epoch [1/2]" in path.read_text() for path in world.out.rglob("log.txt")))
            (holder,) = world.out.rglob(locks.HOLDER_NAME)
            run, started = json.loads(holder.read_text())["pid"], descendants(parent.pid)
            assert run in started
            if fresh:  # a second one at the same time keeps its hands off; once is enough
                busy = world.run(words)
                told = rf"^in progress elsewhere: TinyNet .* lodo day seed 1: process {run} on .* works in "
                assert busy.returncode == 1 and re.search(told, busy.stderr) and "failed" not in busy.stderr
                assert is_alive(run)
            os.kill(parent.pid, sign)
            _, err = parent.communicate(timeout=60)
        finally:
            if parent.poll() is None:
                os.kill(parent.pid, signal.SIGKILL)
    assert parent.returncode == code
    assert "Traceback" not in err
    wait_for(lambda: not any(map(is_alive, started)), seconds=30)
    assert not locks.is_locked(holder.parent) and records.find_records(world.out) == []


def table_rows(text):
    """First cell -> other cells of every line of a text table."""
    rows = [re.split(r"\s{2,}", line.strip()) for line in text.splitlines()]
    return {row[0]: row[1:] for row in rows if len(row) > 1 and not row[0].startswith("---")}


def test_compare_and_table_agree(world, capsys):
    words = ["compare", str(world.dataset), *world.task()[world.task().index("--import") :], "--tasks", "lodo"]
    words += ["--methods", f"TinyGuess:{world.config}", f"TinyNet:{world.config}", "--seeds", "1", "2"]
    dry = world.run([*words, "--dry-run"])
    assert dry.returncode == 0 and dry.stdout.count("train.py") == 8 and not world.out.exists()
    done = world.run(words)
    assert done.returncode == 0, done.stderr
    assert door.main(["table", str(world.out), "--reference", "TinyGuess"]) == 0
    shown = capsys.readouterr().out
    assert table_rows(done.stdout) == {**table_rows(done.stdout), **table_rows(shown)}
    assert list(table_rows(shown)) == [
        "accuracy (%)", "TinyGuess (tiny)", "TinyNet (tiny)", "gain of TinyNet (tiny)",
    ]  # fmt: skip
    assert "+/-" in shown and "seeds: 1, 2" in shown
    assert door.main(["table", str(world.out), "--format", "markdown", "--rows", "TinyNet"]) == 0
    body = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert [line.split("|")[1].strip() for line in body[2:]] == ["TinyNet (tiny)"]
    assert door.main(["table", str(world.out), "--per-method"]) == 0
    assert table_rows(capsys.readouterr().out)["target"] == ["seed 1", "seed 2", "accuracy (%)"]
    assert door.main(["table", str(world.out), "--rows", "TinyNett"]) == 2
    assert "Did you mean 'TinyNet'?" in capsys.readouterr().err


def test_table_of_broken_records(world, capsys):
    world.out.mkdir()
    (world.out / "record.json").write_text("{")
    assert door.main(["table", str(world.out)]) == 2
    assert "no finished run" in capsys.readouterr().err


def test_the_door(capsys):
    assert door.main(["--help"]) == 0
    shown = capsys.readouterr().out
    for name in door.COMMANDS:
        assert f"  {name}" in shown
        with pytest.raises(SystemExit) as stop:
            door.main([name, "--help"])
        assert stop.value.code == 0
        capsys.readouterr()
    assert door.main(["tabel"]) == 2
    assert "Did you mean 'table'?" in capsys.readouterr().err
    assert door.main([]) == 0


def test_help_imports_no_torch():
    code = "import sys; from dassl_clip.cli.__main__ import main; main(['--help']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_progress_lines_of_dassl():
    line = "epoch [3/8] batch [5/10] time 0.1 (0.1) data 0.0 (0.0) loss 1.0 (1.0) lr 1e-3 eta 0:00:10"
    assert fraction_done(line) == pytest.approx((2 + 0.5) / 8)
    assert fraction_done("=> result") is None


@pytest.mark.parametrize(
    ("runs", "gpus", "cores", "gigabytes", "jobs"),
    [(3, 0, 8, 64, 3), (99, 0, 8, 64, 8), (99, 0, 8, 9, 4), (99, 0, 8, 1, 1), (99, 2, 8, 64, 1)],
)
def test_jobs_are_bounded_by_runs_cores_and_memory(runs, gpus, cores, gigabytes, jobs):
    assert launchers.default_jobs(runs, gpus, cores, gigabytes * 2**30) == jobs


def script(world, name, *words, **settings):
    """Run a script with a Python that prints its arguments, one a line."""
    echo = world.root / "echo"
    echo.write_text('#!/bin/sh\n[ "$1" = -c ] || printf "%s\\n" "$@"\n')
    echo.chmod(0o755)
    command = ["bash", str(SCRIPTS / name / "main.sh"), *words]
    settings = {**world.environment, "PYTHON": str(echo), **settings}
    return subprocess.run(command, capture_output=True, text=True, cwd=world.root, timeout=60, env=settings)


@pytest.mark.parametrize("name", ["gopro", "coop", "zeroshot", "linear_probe"])
def test_scripts_without_arguments_print_their_usage(world, name):
    done = script(world, name, "icons")
    assert (done.returncode, done.stdout) == (2, "")
    assert f"usage: bash {SCRIPTS / name / 'main.sh'} DATASET SEED [SEED ...] [options] [KEY VALUE ...]" in done.stderr
    for word in ("TASK", "DATA", "OUT", "CFG", "SHOTS", "JOBS", "REFERENCE", "PYTHON"):
        assert f"\n  {word} " in done.stderr
    assert script(world, name, "--help").returncode == 0


@pytest.mark.parametrize(
    ("name", "method", "reference"),
    [("gopro", "GOPro", "ZeroshotCLIP"), ("coop", "CoOp", "ZeroshotCLIP"), ("zeroshot", "ZeroshotCLIP", "none")],
)
def test_scripts_hand_their_method_on(world, name, method, reference):
    done = script(world, name, "icons", "1")
    module = ["-m", "dassl_clip.cli"]
    assert done.stdout.split() == [*module, "task", f"--reference={reference}", method, "icons", "1"], done.stderr
    none = script(world, name, "icons", "1", REFERENCE="none")
    assert none.stdout.split()[3] == "--reference=none"


def test_environment_and_pairs_of_a_script_reach_the_runs(world, capsys):
    settings = {"TASK": "lodo", "DATA": str(world.images), "OUT": "my out", "SHOTS": "2", "JOBS": "1", "CFG": "vit_b16"}
    done = script(world, "gopro", str(world.dataset), "3", "OPTIM.LR", "0.5", **settings)
    words = done.stdout.splitlines()[2:]
    assert door.main([*words, "--dry-run"]) == 0
    lines = [shlex.split(line) for line in capsys.readouterr().out.splitlines() if line.startswith("python ")]
    assert [("ZeroshotCLIP" in line, "GOPro" in line) for line in lines] == 2 * [(True, False)] + 2 * [(False, True)]
    for line, target in zip(lines[2:], ("day", "night")):
        folder = f"my out/lodo/colours/GOPro/vit_b16+OPTIM.LR=0.5/shots2/{target}/seed3"
        assert line[line.index("--output-dir") + 1] == folder
        assert line[line.index("--root") + 1] == str(world.images)
        assert line[-4:] == ["OPTIM.LR", "0.5", "DATASET.NUM_SHOTS", "2"]


def test_mistakes_in_a_scripts_arguments_need_no_torch():
    mistakes = (
        (["task", "GOPr", "icons", "1"], "there is no method 'GOPr'. Did you mean 'GOPro'? Known: "),
        (["task", "GOPro", "icon", "1"], "there is no data set 'icon'. Did you mean 'icons'? Known: "),
        (["task", "GOPro", "icons", "1", "--task", "lodoo"], "there is no task 'lodoo'. Did you mean 'lodo'? Known: "),
        (["task", "GOPro", "icons", "1", "--reference", "CLIPP"], "there is no method 'CLIPP'."),
        (["compare", "icons", "--tasks", "x,lodo"], "there is no task 'x'."),
        (
            ["task", "GOPro", "icons", "one"],
            "argument SEED: 'one' should be a whole number, or several: 1 2 3 or 1,2,3",
        ),
        (["task", "GOPro", "icons", "1", "--jbos", "1"], "unrecognized arguments: --jbos 1. Did you mean '--jobs'?"),
        (["compare", "icons", "--methods", "COOP:x", "GPro"], "there is no method 'GPro'. Did you mean 'GOPro'?"),
    )
    code = "import json, sys; from dassl_clip.cli.__main__ import main\n"
    code += "for words in json.loads(sys.argv[1]):\n"
    code += "  try: code = main(words)\n  except SystemExit as stop: code = stop.code\n"
    code += "  print(code, 'torch' in sys.modules)"
    command = [sys.executable, "-c", code, json.dumps([words for words, _ in mistakes])]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout == "2 False\n" * len(mistakes)
    for told, (_, sentence) in zip(done.stderr.splitlines(), mistakes, strict=True):
        assert told.startswith(f"error: {sentence}")
