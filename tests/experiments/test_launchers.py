"""Launchers of a sweep: a run a GPU, and job arrays.

Covers `--launcher gpus` with devices by name (each run sees one of them, never two runs the same at a time, a queue for
the rest, failures that hold up nobody) and its refusals; `experiments/slurm.py` through submitit's local executor: the
same results as without, failures with their last lines, busy folders, what SIGTERM and Ctrl-C leave behind; mistakes.
Whether torch can use a device that it is given is up to torch: no GPU is needed here.
"""

import importlib.util
import itertools
import json
import os
import pickle
import signal
import sys
import time
from pathlib import Path

import pytest
import yaml

from dassl_clip.cli import __main__ as door
from dassl_clip.engine import registry
from dassl_clip.experiments import locks, plan, slurm, state
from dassl_clip.experiments import sweeps as sheet
from dassl_clip.results import records

MARKER = '''
"""A trainer that notes the device that it was given, and when."""

import json
import os
import time

import torch
from dassl.engine import TRAINER_REGISTRY, TrainerX
from torch import nn


@TRAINER_REGISTRY.register()
class Marker(TrainerX):
    def build_model(self):
        self.model = nn.Linear(1, self.num_classes)

    def train(self):
        begin = time.time()
        time.sleep(0.5)
        note = {"device": os.environ.get("CUDA_VISIBLE_DEVICES"), "begin": begin, "end": time.time()}
        with open(os.path.join(self.cfg.OUTPUT_DIR, "note.json"), "w") as file:
            json.dump(note, file)
        if self.cfg.SEED == 2:
            raise RuntimeError("a bug in seed 2")
        self.test()

    def model_inference(self, image):
        return self.model(image.mean(dim=(1, 2, 3))[:, None])
'''


def write(world, rows, **changes):
    """A sweep file of the world's data."""
    tree = {"title": "Colours", "task": "lodo", "datasets": [str(world.dataset)], "shots": 4, "rows": rows}
    path = world.root / "launched.yaml"
    path.write_text(yaml.safe_dump(tree | changes), encoding="utf-8")
    return path


def words(world, path, *more, out=None):
    """Arguments of `dassl-clip sweep`."""
    place = ["--data", str(world.images), "--out", str(out or world.out), "--import", str(world.plugin)]
    return ["sweep", str(path), *place, *more]


def run_of(world, path, column):
    """The run of a sweep of one row and seed on a domain."""
    registry.register()
    facts = {"out": str(world.out), "data": str(world.images), "imports": (str(world.plugin),)}
    entries = sheet.expand(sheet.read_sweep(str(path)), plan.Request("", (), **facts), ())
    (run,) = [entry.run for entry in entries if entry.column == column]
    return run


def accuracies(out):
    found = records.find_records(out)
    return {str(item.folder.relative_to(out)): item.record["metrics"]["test"] for item in found}


# ------------------------------------------------------------------------------------------------------------ GPUs


def test_each_run_has_a_gpu_of_its_own(world):
    world.plugin = world.root / "marker.py"
    world.plugin.write_text(MARKER)
    path = write(world, [f"Marker:{world.config}"], seeds=[1, 2, 3])  # on two domains: six runs
    done = world.run(words(world, path, "--launcher", "gpus", "--gpus", "4,MIG-7"))
    assert done.returncode == 1
    assert "6 runs, 2 at a time" in done.stdout and "Colours: 4 complete, 2 failed" in done.stdout
    assert done.stderr.startswith("caution: of --gpus 4,MIG-7 torch can use 0; what has none works on the CPU\n")
    notes = [json.loads(note.read_text()) for note in world.out.rglob("note.json")]
    assert len(notes) == 6 and {note["device"] for note in notes} == {"4", "MIG-7"}
    for device in ("4", "MIG-7"):
        own = sorted((note for note in notes if note["device"] == device), key=lambda note: note["begin"])
        assert len(own) >= 2
        assert all(before["end"] <= after["begin"] for before, after in itertools.pairwise(own))
    failed = [file.read_text() for file in world.out.rglob(state.FAILURE_NAME)]
    assert len(failed) == 2 and all("RuntimeError: a bug in seed 2" in text for text in failed)


def test_the_gpu_launcher_needs_a_gpu(world):
    done = world.run(words(world, write(world, [f"TinyGuess:{world.config}"]), "--launcher", "gpus"))
    assert done.returncode == 2
    assert done.stderr == "error: --launcher gpus: this machine has no usable GPU; take --launcher local\n"
    assert not list(world.out.rglob("log.txt"))


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (["--launcher", "gpus", "--gpus", "0,0"], "argument --gpus: '0,0' should be numbers or identifiers of GPUs"),
        (["--launcher", "gpus", "--gpus", "0,"], "argument --gpus: '0,' should be numbers or identifiers of GPUs"),
        (["--gpus", "0,1"], "--gpus goes with --launcher gpus, and this is --launcher local"),
        (["--launcher", "gpus", "--slurm", "a=b"], "--slurm goes with --launcher slurm, and this is --launcher gpus"),
    ],
)
def test_mistakes_in_devices_are_sentences(world, capsys, given, sentence):
    try:
        code = door.main(words(world, write(world, [f"TinyGuess:{world.config}"]), *given))
    except SystemExit as stop:
        code = stop.code
    assert code == 2 and capsys.readouterr().err.startswith(f"error: {sentence}")


# ------------------------------------------------------------------------------------------------------ job arrays

SLURM = pytest.mark.skipif(importlib.util.find_spec("submitit") is None, reason="submitit is not installed")
ON_THIS_MACHINE = ("--launcher", "slurm", "--slurm", "cluster=local")


@SLURM
def test_job_arrays_run_a_sweep(world):
    faults = {"TRAINER.TINYNET.FAULTS": ["lodo night bug"]}
    path = write(
        world,
        [{"method": f"TinyNet:{world.config}", "set": faults}, {"method": f"TinyNet:{world.config}", "label": "b"}],
    )
    given = [*ON_THIS_MACHINE, "--targets", "night"]
    done = world.run(words(world, path, *given))
    assert done.returncode == 1, done.stderr
    assert " jobs submitted: " in done.stdout and "Colours: 1 complete, 1 failed" in done.stdout
    assert "RuntimeError: a bug in the method" in done.stdout
    local = world.root / "local"
    assert world.run(words(world, path, "--targets", "night", out=local)).returncode == 1
    assert accuracies(world.out) == accuracies(local) and len(accuracies(local)) == 1
    (record,) = [item.record for item in records.find_records(world.out)]
    assert "train.py --trainer TinyNet" in record["command"]  # the line that makes the same run again
    again = world.run(words(world, path, *given))
    assert again.returncode == 1 and "submitted" not in again.stdout


@SLURM
def test_a_job_leaves_finished_and_busy_folders_alone(world):
    run = run_of(world, write(world, [f"TinyGuess:{world.config}"]), "day")
    program, given = world.root / "job.py", world.root / "run.pickle"
    program.write_text(
        "import pickle, sys; from dassl_clip.experiments import slurm\n"
        "sys.exit(slurm.run_job(pickle.load(open('run.pickle', 'rb'))))"
    )
    given.write_bytes(pickle.dumps(run))
    with locks.lock(run.folder):
        done = world.run([program])
    assert done.returncode == locks.BUSY_EXIT
    assert not (run.folder / "log.txt").exists() and not records.is_complete(run.folder)


@SLURM
@pytest.mark.parametrize(
    ("number", "code", "ready", "left"),
    [
        (signal.SIGTERM, 143, "epoch [1/2]", "resume"),  # the same command goes on with it
        (signal.SIGINT, 130, "", "missing"),  # before the job has begun
    ],
)
def test_a_sweep_that_is_told_to_end_cancels_its_jobs(world, number, code, ready, left):
    faults = {"TRAINER.TINYNET.FAULTS": ["lodo night sleep"]}  # the run would take ten minutes
    path = write(world, [{"method": f"TinyNet:{world.config}", "set": faults}])
    run = run_of(world, path, "night")
    log = run.folder / "log.txt"
    with world.start(words(world, path, *ON_THIS_MACHINE, "--targets", "night")) as sweep:
        end = time.monotonic() + 120
        while " jobs submitted" not in sweep.out.read_text() or ready not in (log.read_text() if log.exists() else ""):
            assert sweep.poll() is None and time.monotonic() < end
            time.sleep(0.05)
        own = [job for path in Path(f"/proc/{sweep.pid}/task").glob("*/children") for job in path.read_text().split()]
        os.kill(sweep.pid, number)
        out, err = sweep.communicate(timeout=60)
    assert sweep.returncode == code, err
    assert "1 jobs cancelled" in out
    end = time.monotonic() + 60
    while locks.is_locked(run.folder) or any(
        path.read_bytes() for job in own for path in Path("/proc", job).glob("cmdline")
    ):
        assert time.monotonic() < end, "the job goes on"
        time.sleep(0.1)
    assert state.state_of(run).name == left


@SLURM
@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (["timeout_min"], "--slurm: 'timeout_min' should be KEY=VALUE, such as slurm_partition=gpu"),
        (["cluster=moon"], "--slurm: AutoExecutor doesn't know any executor named moon"),
        (["cluster=local", "timeout=5"], "--slurm: "),
    ],
)
def test_mistakes_in_submitits_parameters_are_sentences(world, capsys, given, sentence):
    path = write(world, [f"TinyGuess:{world.config}"])
    assert door.main(words(world, path, "--launcher", "slurm", "--slurm", *given)) == 2
    assert capsys.readouterr().err.startswith(f"error: {sentence}")
    assert not list(world.out.rglob("log.txt"))


def test_without_submitit_the_sentence_says_how_to_get_it(world, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    path = write(world, [f"TinyGuess:{world.config}"])
    assert door.main(words(world, path, "--launcher", "slurm")) == 2
    assert capsys.readouterr().err == "error: --launcher slurm needs submitit: pip install 'dassl-clip[slurm]'\n"


def test_values_of_parameters():
    given = ["slurm_partition=gpu", "timeout_min=600", "slurm_additional_parameters=a=b"]
    expected = {"slurm_partition": "gpu", "timeout_min": 600, "slurm_additional_parameters": "a=b"}
    assert slurm.parameters(given) == expected
