"""Sweeps: what a file expands to, states on the disk, going on after kills and failures, shipped sweeps.

Covers `cli/sweep.py`, the reading and expansion in `experiments/sweeps.py`, locks in `experiments/launchers.py`, and
`configs/sweeps/`. Runs are real: two tiny Dassl trainers of a user's file, in children.
"""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from functools import cache

import pytest
import yaml

from dassl_clip.cli import __main__ as door
from dassl_clip.cli import sweep, table, task, train
from dassl_clip.cli.arguments import split_command
from dassl_clip.engine import registry
from dassl_clip.engine.fingerprint import config_hash
from dassl_clip.engine.overrides import resolve_config
from dassl_clip.experiments import locks, plan, state
from dassl_clip.experiments import sweeps as sheet
from dassl_clip.experiments.tasks import TASKS
from dassl_clip.results import published as sheets
from dassl_clip.results import records
from dassl_clip.results.protocols import flatten_config

FAST = {"OPTIM.LR": 0.5}


def write(world, **changes):
    """A user's sweep file: two methods, one of them in two configurations."""
    tree = {
        "title": "Colours",
        "task": "lodo",
        "datasets": [str(world.dataset)],
        "shots": 4,
        "rows": [
            f"TinyGuess:{world.config}",
            {"method": f"TinyNet:{world.config}", "label": "slow"},
            {"method": f"TinyNet:{world.config}", "label": "fast", "set": FAST, "seeds": [1, 2]},
        ],
        **changes,
    }
    path = world.root / "my sweep.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


def words(world, path, *more, out=None):
    """Arguments of `dassl-clip sweep`."""
    place = ["--data", str(world.images), "--out", str(out or world.out), "--import", str(world.plugin)]
    return ["sweep", str(path), *place, *more]


def expand(world, path, pairs=(), only=(), **changes):
    """The entries of a sweep file, in this process."""
    registry.register()
    facts = {"dataset": "", "seeds": (), "out": str(world.out), "data": str(world.images)}
    request = plan.Request(**{**facts, "imports": (str(world.plugin),), **changes})
    return sheet.expand(sheet.read_sweep(str(path)), request, pairs, only)


def commands_in(text):
    return [shlex.split(line) for line in text.splitlines() if line.startswith("python ")]


def states_in(text):
    """(method, target, seed) -> state of a `--status` listing."""
    rows = [line.split() for line in text.splitlines()[1:] if " seed " in line and ":" not in line]
    return {(row[3], row[-3], row[-1], row[4]): row[0] for row in rows}


def accuracies(out):
    found = records.find_records(out)
    return {str(item.folder.relative_to(out)): item.record["metrics"]["test"] for item in found}


# ------------------------------------------------------------------------------------------------------- the file


def test_a_file_of_ones_own_expands_to_methods_by_domains_by_seeds(world):
    entries = expand(world, write(world))
    assert Counter((entry.label, entry.run.seed) for entry in entries) == {
        (f"TinyGuess:{world.config}", 1): 2,
        ("slow", 1): 2,
        ("fast", 1): 2,
        ("fast", 2): 2,
    }
    assert {(entry.group, entry.column) for entry in entries} == {("FolderDomains", "day"), ("FolderDomains", "night")}
    assert {entry.run.task for entry in entries} == {"lodo"}
    for entry in entries:
        assert entry.run.config.DATASET.NUM_SHOTS == 4
        rate = 0.5 if entry.label == "fast" else 0.1
        assert rate == entry.run.config.OPTIM.LR
        assert str(entry.run.folder).startswith(str(world.out / "lodo" / "colours"))
    assert len({entry.run.folder for entry in entries}) == 8

    assert {entry.run.seed for entry in expand(world, write(world), seeds=(7, 8))} == {7, 8}
    assert {entry.label for entry in expand(world, write(world), only=["fast"])} == {"fast"}
    changed = expand(world, write(world), pairs=(("OPTIM.MAX_EPOCH", "9"),), only=["slow"], shots=2)
    assert {(entry.run.config.OPTIM.MAX_EPOCH, entry.run.config.DATASET.NUM_SHOTS) for entry in changed} == {(9, 2)}
    both = expand(world, write(world, tasks=["fewshot", "lodo"], task="lodo"))
    assert Counter(entry.run.task for entry in both) == {"fewshot": 8, "lodo": 8}


def test_ids_are_stable_and_tell_configurations_apart(world):
    path = write(world)
    first = [state.run_id(entry.run) for entry in expand(world, path)]
    assert len(set(first)) == len(first) == 8 and all(len(name) == 12 for name in first)
    (world.root / "another disk").symlink_to(world.images)
    elsewhere = expand(world, path, out=str(world.root / "elsewhere"), data=str(world.root / "another disk"))
    assert [state.run_id(entry.run) for entry in elsewhere] == first
    listed = world.run(words(world, path, "--status"))
    shown = [line.split()[1] for line in listed.stdout.splitlines()[1:]]
    assert sorted(shown) == sorted(first), listed.stderr  # in another process
    for pair in (("OPTIM.LR", "0.7"), ("INPUT.SIZE", "(4, 4)"), ("TRAINER.TINYNET.WIDTH", "4")):
        others = [state.run_id(entry.run) for entry in expand(world, path, pairs=(pair,), only=["slow"])]
        assert not set(others) & set(first), pair
    quiet = [state.run_id(entry.run) for entry in expand(world, path, pairs=(("TRAIN.PRINT_FREQ", "9"),))]
    assert quiet == first  # computes the same


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"seed": [1]}, r"unknown key 'seed'\. Did you mean 'seeds'\? Known: title, published, readings, rows"),
        ({"rows": []}, r"should be a mapping with a list `rows`; its keys may be title,"),
        ({"rows": [{"label": "a"}]}, r"row 1 needs a `method`: TRAINER or TRAINER:CONFIG"),
        ({"rows": [{"method": "GOPro", "dataset": "icons"}]}, r"unknown key 'dataset'\. Did you mean 'datasets'"),
        ({"rows": [{"method": "GOPro", "set": ["OPTIM.LR"]}]}, r"row 1: `set` should be a mapping of config keys"),
        ({"rows": ["CoOp", "CoOp"]}, r"2 rows are called 'CoOp'; give each a `label` of its own"),
        ({"datasets": "icons"}, r"`datasets` should be a list of names, not 'icons'"),
        ({"datasets": []}, r"`datasets` should be a list of names, not \[\]"),
        ({"seeds": 3}, r"`seeds` should be a list of whole numbers, not 3"),
        ({"seeds": [1, "two"]}, r"`seeds` should be a list of whole numbers, not \[1, 'two'\]"),
        ({"seeds": [True]}, r"`seeds` should be a list of whole numbers"),
        ({"tasks": "lodo"}, r"`tasks` should be a list of names, not 'lodo'"),
        ({"readings": "C"}, r"`readings` should be a list of names, not 'C'"),
        ({"shots": "many"}, r"`shots` should be a whole number, not 'many'"),
        ({"title": 3}, r"`title` should be a text, not 3"),
        ({"task": "lodoo"}, r"there is no task 'lodoo'\. Did you mean 'lodo'\?"),
        ({"datasets": ["icon"]}, r"there is no data set 'icon'\. Did you mean 'icons'\?"),
        ({"rows": ["TinyNett:x.yaml"]}, r"there is no method 'TinyNett'\. Did you mean 'TinyNet'\?"),
        ({"rows": [{"method": "GOPro", "set": {"OPTIM.LRR": 1}}]}, r"no config key 'OPTIM\.LRR'\. Did you mean"),
    ],
)  # fmt: skip
def test_mistakes_in_a_file_are_sentences(world, capsys, changes, sentence):
    assert door.main(words(world, write(world, **changes), "--dry-run")) == 2
    told = capsys.readouterr()
    assert told.err.startswith("error: ") and told.err.count("\n") == 1
    assert re.search(sentence, told.err), told.err
    assert not world.out.exists()


def test_a_file_without_data_sets_or_that_is_no_yaml(world, capsys):
    tree = yaml.safe_load(write(world).read_text())
    del tree["datasets"]
    path = write(world)
    path.write_text(yaml.safe_dump(tree))
    assert door.main(words(world, path, "--status")) == 2
    assert "row 1 has no data set; give `datasets` a list of names" in capsys.readouterr().err
    for text, part in (("rows: [", "is not a yaml file"), ("- CoOp", "should be a mapping with a list `rows`")):
        path.write_text(text)
        assert door.main(words(world, path)) == 2
        assert part in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "more", "sentence"),
    [
        ("absent.yaml", [], "there is no sweep 'absent.yaml'."),
        ("gopro-xd", ["--rows", "GOPr"], "gopro-xd has no row 'GOPr'. Did you mean 'GOPro'? Its rows: CLIP, CoOp, CoC"),
        ("clap-zeroshot", ["--datasets", "vlc"], "clap-zeroshot has no data set 'vlc'. Did you mean 'vlcs'? Its data "),
        (
            "gopro-xd",
            ["--rows", "CLIP", "--targets", "eurosta"],
            "gopro-xd has no target 'eurosta'. Did you mean 'eurosat'? Its targets: i",
        ),
        (
            "gopro-b2n",
            ["--rows", "CLIP", "--targets", "eurosat"],
            "gopro-b2n has no target 'eurosat'. Its targets: base, new.",
        ),
        ("icons", ["--launcher", "clouds"], "argument --launcher: invalid choice: 'clouds'"),
        ("icons", ["--rtry"], "unrecognized arguments: --rtry. Did you mean '--retry'?"),
        ("icons", ["SEED", "3"], "SEED 3: a task sets SEED itself"),
    ],
)
def test_mistakes_on_the_command_line_are_sentences(tmp_path, monkeypatch, capsys, name, more, sentence):
    monkeypatch.chdir(tmp_path)
    try:
        code = door.main(["sweep", name, *more])
    except SystemExit as stop:
        code = stop.code
    told = capsys.readouterr().err
    assert code == 2
    assert told.startswith(f"error: {sentence}") and told.count("\n") == 1, told
    assert list(tmp_path.iterdir()) == []


def test_the_table_command_looks_at_the_same_runs(world):
    path = write(world)
    more = ["--seeds", "1", "2", "--shots", "2", "--rows", "slow", "fast", "OPTIM.LR", "0.3"]
    args, pairs = split_command(sweep.build_parser(), words(world, path, *more)[1:])
    said = shlex.split(task.sweep_command("table", [args.name], args, pairs))
    assert said[:2] == ["dassl-clip", "table"]
    shown, shown_pairs = split_command(table.build_parser(), said[2:])
    assert (shown.what, shown_pairs) == ([str(path)], (("OPTIM.LR", "0.3"),))
    assert task.request_of(shown) == task.request_of(args)
    assert list(shown.rows) == list(args.rows)


# ------------------------------------------------------------------------------------------------------- running


def test_a_sweep_runs_what_is_missing_and_nothing_else(world, monkeypatch):
    monkeypatch.chdir(world.root)  # where its commands run
    path = write(world)
    dry = world.run(words(world, path, "--dry-run"))
    assert dry.returncode == 0 and not world.out.exists()
    assert dry.stdout.splitlines()[0] == "Colours: 8 runs: 8 missing"
    lines = commands_in(dry.stdout)
    wanted = {str(entry.run.folder): entry.run for entry in expand(world, path)}
    assert {line[line.index("--output-dir") + 1] for line in lines} == set(wanted)
    for line in lines:  # each line is a run as the sweep means it
        overrides, _ = train.parse(line[2:])
        run = wanted[line[line.index("--output-dir") + 1]]
        assert config_hash(resolve_config(overrides)) == config_hash(run.config)

    some = world.run(words(world, path, "--rows", "slow", "--jobs", "2"))
    assert some.returncode == 0, some.stderr
    assert "2 runs, 2 at a time" in some.stdout and "Colours: 2 complete; the table: dassl-clip table" in some.stdout
    before = {p: p.stat().st_mtime_ns for p in world.out.rglob("record.json")}
    assert len(before) == 2
    done = world.run(words(world, path, "--jobs", "2"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Colours: 8 runs: 2 complete, 6 missing\n6 runs, 2 at a time")
    assert len(records.find_records(world.out)) == 8
    assert {p: p.stat().st_mtime_ns for p in before} == before
    again = world.run(words(world, path))
    assert again.returncode == 0 and " at a time" not in again.stdout
    assert again.stdout.splitlines()[0] == "Colours: 8 runs: 8 complete"
    assert world.run(words(world, path, "--dry-run")).stdout == "Colours: 8 runs: 8 complete\n"

    said = shlex.split(again.stdout.splitlines()[-1].partition("the table: dassl-clip ")[2])
    shown = world.run(said)
    assert shown.returncode == 0, shown.stderr
    assert "missing" not in shown.stdout and "fast: TinyNet (tiny, LR=0.5), OPTIM.LR 0.5\n" in shown.stdout
    assert re.search(r"^gain of fast +[+-]", shown.stdout, re.M) and re.search(r"^slow +\d", shown.stdout, re.M)


def test_states_failures_and_retries(world):
    faults = {"TRAINER.TINYNET.FAULTS": ["lodo day killed_once", "lodo night bug"]}
    path = write(world, rows=[{"method": f"TinyNet:{world.config}", "set": faults}, f"TinyGuess:{world.config}"])
    first = world.run(words(world, path, "--jobs", "2"))
    assert first.returncode == 1
    assert "Colours: 2 complete, 2 failed" in first.stdout
    status = world.run(words(world, path, "--status"))
    assert status.returncode == 0
    told = states_in(status.stdout)
    assert sorted(told.values()) == ["complete", "complete", "failed", "failed"]
    assert {key[1] for key, state in told.items() if state == "failed"} == {"day", "night"}
    assert "    RuntimeError: a bug in the method" in status.stdout  # the last lines of a failed run
    assert "    killed by SIGKILL" in status.stdout and "exit code -9" in status.stdout

    listed = status.stdout.splitlines()[1:]
    runs = [line for line in listed if re.match(rf"(complete|failed) +[0-9a-f]{{12}} {world.dataset.stem} Tiny", line)]
    assert len(runs) == 4  # one line a run: its state, id, data set and name

    rest = world.run(words(world, path))  # failed ones are left alone
    assert rest.returncode == 1 and " at a time" not in rest.stdout
    assert world.run(words(world, path, "--dry-run")).stdout.count("python ") == 0
    assert world.run(words(world, path, "--dry-run", "--retry")).stdout.count("--output-dir") == 2
    retried = world.run(words(world, path, "--retry", "--jobs", "2"))
    assert retried.returncode == 1 and "2 runs, 2 at a time" in retried.stdout
    assert "Colours: 3 complete, 1 failed" in retried.stdout
    (day,) = {entry.run.folder for entry in expand(world, path) if "TinyNet" in entry.label and entry.column == "day"}
    assert records.is_complete(day) and not (day / "failed.txt").exists()


def test_a_run_that_another_process_works_on_is_running(world):
    path = write(world)
    run = expand(world, path)[0].run
    assert state.state_of(run).name == "missing"
    code = (
        "import sys, time; from pathlib import Path; from dassl_clip.experiments import locks\n"
        "with locks.lock(Path(sys.argv[1])) as free: print(free, flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(run.folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "True\n"
        assert state.state_of(run).name == "running"
        with locks.lock(run.folder) as free:
            assert not free
        assert state.state_of(run).name == "running"
        os.kill(other.pid, signal.SIGKILL)
        other.wait()
        assert state.state_of(run).name == "missing"
    state.note_failure(run.folder, 3, ["the last", "lines"])
    assert state.state_of(run) == state.State("failed", "", ("exit code 3", "the last", "lines"), "missing")


def test_looking_at_a_lock_keeps_nobody_from_taking_it(tmp_path):
    """Status listings while runs start: every one of many quick locks is had."""
    (tmp_path / locks.LOCK_NAME).touch()
    stop = threading.Event()

    def look():
        while not stop.is_set():
            locks.is_locked(tmp_path)

    lookers = [threading.Thread(target=look) for _ in range(3)]
    for looker in lookers:
        looker.start()
    try:
        for _ in range(100):
            with locks.lock(tmp_path) as free:
                assert free
    finally:
        stop.set()
        for looker in lookers:
            looker.join()


def test_a_finished_run_of_another_configuration_is_refused_with_its_reason(world):
    path = write(world, rows=[f"TinyGuess:{world.config}"])
    assert world.run(words(world, path)).returncode == 0
    run = expand(world, path)[0].run
    record = json.loads((run.folder / "record.json").read_text())
    (run.folder / "record.json").write_text(json.dumps({**record, "config_hash": "0" * 64}))
    done = world.run(words(world, path))
    assert done.returncode == 1
    assert "Colours: 2 runs: 1 complete, 1 refused" in done.stdout
    assert f"{run.folder} holds a finished run of another configuration" in done.stdout
    assert records.read_record(run.folder)["config_hash"] == "0" * 64  # left alone


@pytest.mark.skipif(sys.platform != "linux", reason="children that die with their parent")
def test_a_sweep_killed_twice_and_started_again_gives_the_undisturbed_table(world):
    path = write(world, rows=[f"TinyNet:{world.config}", f"TinyGuess:{world.config}"], seeds=[1, 2])
    pairs = ["TRAIN.CHECKPOINT_FREQ", "1", "OPTIM.MAX_EPOCH", "6"]
    calm, killed = world.root / "calm", world.root / "killed"
    assert world.run(words(world, path, "--jobs", "1", *pairs, out=calm)).returncode == 0

    moments = (
        lambda: any("epoch [3/6]" in log.read_text() for log in killed.rglob("log.txt")),  # in the middle of a run
        lambda: len(list(killed.rglob("record.json"))) >= 2,  # right after one
    )
    for moment in moments:
        with world.start(words(world, path, "--jobs", "1", *pairs, out=killed)) as process:  # killed at the end
            end = time.monotonic() + 120
            while not moment():
                assert process.poll() is None and time.monotonic() < end, "waited in vain"
                time.sleep(0.02)
    done_before = len(records.find_records(killed))
    assert 2 <= done_before < 8
    last = world.run(words(world, path, "--jobs", "1", *pairs, out=killed))
    assert last.returncode == 0, last.stderr
    assert f"Colours: 8 runs: {done_before} complete, {8 - done_before} missing" in last.stdout
    assert accuracies(killed) == accuracies(calm)
    tables = [world.run(["table", *words(world, path, *pairs, out=out)[1:]]).stdout for out in (calm, killed)]
    assert tables[0] == tables[1] and "TinyNet" in tables[0] and "missing" not in tables[0]


# ---------------------------------------------------------------------------------------------------- what is shipped

DOMAINS_OF = {"pacs": 4, "vlcs": 4, "office_home": 4, "domainnet": 6}
ELEVEN = ["imagenet", "caltech101", "oxford_pets", "stanford_cars", "oxford_flowers", "food101", "fgvc_aircraft",
          "sun397", "dtd", "eurosat", "ucf101"]  # fmt: skip
FIVE = (1, 2, 3, 4, 5)


def wanted_runs():
    """Sweep -> (row, data set of the folder, seed) -> number of runs."""
    wanted = {"clap-zeroshot": {}, "clap-fewshot": {}, "clap-attacks": {}, "icons": {}}
    for dataset, count in DOMAINS_OF.items():
        for row in ("CLIP", "CLAP", "CLIP ViT-L/14", "CLAP ViT-L/14"):
            wanted["clap-zeroshot"][row, dataset, 2024] = count
        for row in ("CLIP", "CLAP"):
            wanted["clap-fewshot"][row, dataset, 2024] = wanted["clap-attacks"][row, dataset, 2024] = count
    three = [(row, seed) for row in ("CoOp", "CoCoOp", "MaPLe") for seed in (1, 2, 3)]
    pairs = [("CLIP", 1), *three, *(("GOPro", seed) for seed in FIVE)]
    wanted["gopro-b2n"] = {(row, name, seed): 2 for row, seed in pairs for name in ELEVEN}
    wanted["gopro-xd"] = {(row, "imagenet", seed): 11 for row, seed in pairs}
    wanted["gopro-dg"] = {(row, "imagenet", seed): 5 for row, seed in pairs}
    peers = [*three, *(("PromptSRC", seed) for seed in (1, 2, 3))]
    more = [(row, seed) for row in ("ProGrad", "KgCoOp") for seed in (1, 2, 3)]
    wanted["peers-b2n"] = {(row, name, seed): 2 for row, seed in [("CLIP", 1), *peers, *more] for name in ELEVEN}
    wanted["peers-xd"] = {(row, "imagenet", seed): 11 for row, seed in peers if row != "CoOp"}
    wanted["peers-dg"] = {(row, "imagenet", seed): 5 for row, seed in [("CLIP", 1), *three]}
    shots = [f"{number} shot{'s' * (number > 1)}" for number in (1, 2, 4, 8, 16)]
    few = [f"{row}, {words}" for row in ("CoOp", "CoCoOp", "ProGrad", "KgCoOp") for words in shots]
    several = [(row, seed) for row in few for seed in (1, 2, 3)]
    wanted["peers-fewshot"] = {(row, name, seed): 1 for row, seed in [("CLIP", 1), *several] for name in ELEVEN}
    wanted["inmap-imagenet"] = {("CLIP", "imagenet", 1): 1, ("InMaP", "imagenet", 1): 1}
    peers = ("CLIP", "InMaP", "StatA", "TransCLIP", "ZLaP")
    wanted["transduction"] = {(row, name, 1): 1 for row in (*peers, "IOTA") for name in ELEVEN}
    wanted["transduction-streams"] = {(row, name, 1): 1 for row in (*peers, "TDA", "OnZeta") for name in ELEVEN}
    plain = ("ZeroshotCLIP", "CLAP", "CoOp", "GOPro", "LinearProbe", "InMaP")
    refined = tuple(f"{name}+InMaP" for name in ("CLAP", "CoOp", "GOPro", "LinearProbe"))
    searched = [f"ERM, set {number}" for number in range(20)]
    published = ("CLIP", "ERM (CLIPood's settings)", "SMA", "SWAD", "CLIPood", "WiSE-FT", "FLYP", "MIRO")
    wanted["domainbed-clip"] = {
        (row, dataset, 0): count
        for dataset, count in {**DOMAINS_OF, "terra_incognita": 4}.items()
        for row in (*published, *searched)
    }
    few = dict.fromkeys(("CLIP", "ERM, set 0", "ERM, set 1", "ERM, set 2"), 4)
    wanted["domainbed-icons"] = {(row, "icons", 0): count for row, count in few.items()}
    wanted["icons"] = {(row, "icons", seed): 8 for row in (*plain, *refined) for seed in (1, 2, 3)}
    return wanted


@cache
def shipped(name):
    """The entries of a shipped sweep; of the three trials of the largest one, the first."""
    registry.register()
    asked = sheet.read_sweep(name)
    if name == "domainbed-clip":
        assert {tuple(row["seeds"]) for row in asked.rows} == {(0, 1, 2)}
    return sheet.expand(asked, plan.Request("", (0,) if name == "domainbed-clip" else (), out="out"), ())


def test_a_row_with_a_single_seed_is_run_once(world):
    rows = [
        {"method": f"TinyGuess:{world.config}", "seeds": [1]},
        {"method": f"TinyNet:{world.config}", "seeds": [1, 2]},
    ]
    asked = expand(world, write(world, rows=rows), seeds=(7, 8, 9))
    assert Counter((entry.label.partition(":")[0], entry.run.seed) for entry in asked) == {
        ("TinyGuess", 7): 2, **{("TinyNet", seed): 2 for seed in (7, 8, 9)},
    }  # fmt: skip


def test_the_sweeps_that_ship():
    assert sheet.sweep_names() == sorted(wanted_runs())
    assert {sheet.read_sweep(name).published for name in sheet.sweep_names()} == {"", *sheets.published_names()}


@pytest.mark.parametrize("name", sorted(wanted_runs()))
def test_a_shipped_sweep_expands_to_the_runs_of_its_table(name):
    entries = shipped(name)
    counted = Counter((entry.label, entry.run.folder.parts[2], entry.repetition) for entry in entries)
    assert counted == wanted_runs()[name]
    assert len({entry.run.folder for entry in entries}) == len(entries)
    assert len({state.run_id(entry.run) for entry in entries}) == len(entries)
    position = {entry.run.folder: index for index, entry in enumerate(entries)}
    for index, entry in enumerate(entries):
        run = entry.run
        assert run.needs is None or position[run.needs] < index
        own = {"SEED": run.seed, "RUN.TASK": run.task, "OUTPUT_DIR": str(run.folder)}
        assert flatten_config(run.config).items() >= own.items()
        if run.needs is None or TASKS[run.task].transfers:  # a refined run names its base in its row
            assert (run.row.method, run.row.config) == (run.config.TRAINER.NAME, run.config.RUN.CONFIG)
        shots = run.config.DATASET.NUM_SHOTS
        assert f"shots{shots}" in run.folder.parts
        named = entry.label.rpartition(", ")[2].partition(" shot")[0] if name == "peers-fewshot" else 16
        assert shots == (
            -1
            if run.task in ("zeroshot", "probe", "attacks") or entry.is_trial
            else int(named)
            if str(named).isdigit()
            else 16
        )


@pytest.mark.parametrize("name", sheets.published_names())
def test_every_published_row_of_a_sweep_and_every_place_is_made_by_its_runs(name):
    """Rows of our methods: each published cell is one that runs fill or that is summed up from them."""
    asked, published, entries = sheet.read_sweep(name), sheets.read_published(name), shipped(name)
    labels = {entry.label for entry in entries if not entry.searches}
    assert labels <= set(published["cells"])
    summaries = {"mean", "HM", "mean of targets"}
    for label in labels:
        made = {(entry.group, entry.column) for entry in entries if entry.label == label}
        for reading, places in published["cells"][label].items():
            assert reading in (*(asked.readings or ("test",)), "R", "delta", "Delta_NC")
            for place in places:
                group, _, column = place.partition("/")
                if group not in ("Overall", "Average") and column not in summaries:
                    assert (group, column) in made, (label, reading, place)


@pytest.mark.parametrize(
    ("name", "label", "facts"),
    [
        ("clap-zeroshot", "CLIP", {"MODEL.BACKBONE.NAME": "ViT-B/16", "TRAINER.ZEROSHOTCLIP.TEMPLATES": "clap_pc"}),
        ("clap-zeroshot", "CLIP ViT-L/14", {"MODEL.BACKBONE.NAME": "ViT-L/14"}),
        ("clap-zeroshot", "CLAP ViT-L/14", {"MODEL.BACKBONE.NAME": "ViT-L/14"}),
        ("clap-attacks", "CLIP", {"TRAINER.ZEROSHOTCLIP.ATTACK_SPACE": "authors", "MODEL.BACKBONE.NAME": "ViT-B/16"}),
        ("clap-attacks", "CLAP", {"TRAINER.CLAP.ATTACK_SPACE": "authors", "DATASET.PROTOCOL": "all-images"}),
        ("clap-fewshot", "CLAP", {"DATASET.PROTOCOL": "all-images", "MODEL.BACKBONE.NAME": "ViT-B/16"}),
        ("gopro-b2n", "GOPro", {"MODEL.BACKBONE.NAME": "ViT-B/16", "OPTIM.MAX_EPOCH": 50, "OPTIM.LR": 0.002}),
        ("gopro-xd", "CoOp", {"MODEL.BACKBONE.NAME": "ViT-B/16"}),
        ("transduction-streams", "CLIP", {"SCENARIOS.BLOCK": 128, "TRAINER.ZEROSHOTCLIP.TEMPLATES": "coop"}),
        ("transduction-streams", "TDA", {"SCENARIOS.ORDERS": 100, "TRAINER.TDA.TEMPLATES": "coop"}),
        ("transduction", "TransCLIP", {"TRAINER.TRANSCLIP.START": "text", "TRAINER.TRANSCLIP.TEMPLATES": "coop"}),
        (
            "transduction",
            "InMaP",
            {"SCENARIOS.DRAWS": 1000, "TRAINER.INMAP.TEMPLATES": "coop", "DATASET.PROTOCOL": "dassl"},
        ),
        ("inmap-imagenet", "CLIP", {"MODEL.BACKBONE.NAME": "ViT-L/14@336px"}),
        ("inmap-imagenet", "InMaP", {"MODEL.BACKBONE.NAME": "ViT-L/14@336px"}),
    ],
)
def test_a_shipped_row_has_the_papers_settings(name, label, facts):
    for entry in (entry for entry in shipped(name) if entry.label == label):
        flat = flatten_config(entry.run.config)
        assert {key: flat[key] for key in facts} == facts


def test_a_row_of_refined_runs_alone_brings_the_runs_that_it_refines():
    registry.register()
    asked = plan.Request("", (1,), out="out", tasks=())
    entries = sheet.expand(sheet.read_sweep("icons"), asked, (), ["CoOp+InMaP"])
    labels = Counter(entry.label for entry in entries)
    assert labels == {"CoOp+InMaP": 8, "": 8}
    folders = {entry.run.folder for entry in entries if not entry.label}
    assert {entry.run.needs for entry in entries if entry.label} == folders
    with_both = sheet.expand(sheet.read_sweep("icons"), asked, (), ["CoOp", "CoOp+InMaP"])
    assert Counter(entry.label for entry in with_both) == {"CoOp": 8, "CoOp+InMaP": 8}
