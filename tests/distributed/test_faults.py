"""What goes wrong with several processes: told once, in a sentence, and nobody is left behind.

Covers: a batch that cannot be shared; a setting that all refuse; an image that one process cannot decode; a trainer
that knows nothing of processes; more processes than GPUs; a process that is killed; SIGTERM to torchrun, after which
the same command goes on, and to one process, where a head is trained without epochs, and in a validation; a busy run
folder; a main process that is gone with its store; a loss that is not finite in one process.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from dassl_clip.engine import distributed
from dassl_clip.experiments import locks
from dassl_clip.results.records import read_record

from .conftest import HERE, SETTINGS, finish

TRAIN = str(HERE.parents[1] / "train.py")
PLUGIN = """
import os, signal
from pathlib import Path
from dassl.engine import TRAINER_REGISTRY, TrainerX
from dassl_clip import trainers

def strike(trainer):
    mark = Path(trainer.output_dir) / "struck"
    if os.environ.get("RANK") == "1" and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGTERM)

@TRAINER_REGISTRY.register()
class Mine(TrainerX):
    pass

@TRAINER_REGISTRY.register(force=True)
class CoOp(trainers.CoOp):
    def test(self, split=None):
        if split == "val" and self.epoch == 1:
            strike(self)
        return super().test(split)

@TRAINER_REGISTRY.register(force=True)
class CLAP(trainers.CLAP):
    def build_model(self):
        super().build_model()
        save = self.checkpoints.save_fit
        self.checkpoints.save_fit = lambda *given: (save(*given), strike(self))
"""
VALIDATED = ("TEST.FINAL_MODEL", "best_val", "OPTIM.MAX_EPOCH", 3, "TRAIN.CHECKPOINT_FREQ", 0)
CLAP = {"MAX_STEPS": 150, "CHECK_EVERY": 50, "PATIENCE": 99, "LATENT_DIM": 8, "BATCH_SIZE": 8}
HEAD = [word for key, value in CLAP.items() for word in (f"TRAINER.CLAP.{key}", value)]
HEAD += ["TRAIN.CHECKPOINT_STEPS", 40, "OPTIM.LR", 1e-4]


@pytest.fixture(scope="module")
def faults(words, drive, tmp_path_factory):
    """The folder of runs by two processes that go wrong in all of them; name -> code, and errors, of the main one."""
    base = tmp_path_factory.mktemp("faults")
    for path in (base / domain / name / f"{n}.png" for domain in "ab" for name in ("dog", "house") for n in range(6)):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40), (int(path.stem) * 40, 90, 20)).save(path)
    (base / "b/house/0.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")  # in the second batch, the second process's
    (base / "plugin.py").write_text(PLUGIN)
    own, tree = {"flags": ("--import", str(base / "plugin.py"))}, {"root": base, "source": "a", "target": "b"}
    runs = {
        "batch": words("CoOp", base / "batch", "DATALOADER.TRAIN_X.BATCH_SIZE", 5),
        "setting": words("CoOp", base / "setting", "TRAINER.COOP.PREC", "fp7"),
        "image": words("ZeroshotCLIP", base / "image", **tree),
        "skipped": words("ZeroshotCLIP", base / "image", "DATALOADER.ON_BAD_IMAGE", "skip", **tree),
        "loss": words("CoOp", base / "loss", "OPTIM.LR", 1e38, "OPTIM.MAX_EPOCH", 4),
        "stranger": words("Mine", base / "stranger", **own),
        "head": words("CLAP", base / "head", *HEAD, **own),
        "validation": words("CoOp", base / "validation", *VALIDATED, **own),
        "validated": words("CoOp", base / "validation", *VALIDATED, **own),
    }
    return base, dict(zip(runs, drive(list(runs.values()))[1]))


@pytest.mark.parametrize(
    "name, sentence",
    [
        ("batch", "must be a multiple of 2, such as 6"),
        ("setting", "TRAINER.COOP.PREC is 'fp7'"),
        ("image", "b/house/0.png"),
        ("stranger", "Mine is not a CLIPTrainer"),
        ("loss", "the loss is not finite at epoch"),
    ],
)
def test_what_all_refuse_is_told_once(faults, name, sentence):
    folder, (code, said) = faults[0] / name, faults[1][name]
    told = [line for line in said.splitlines() if line.startswith("error: ")]
    assert code == 2 and len(told) == 1 and sentence in told[0], said
    if name == "loss":
        dump = torch.load(folder / "not-finite.pt", weights_only=True)
        assert len(dump["paths"]) == 3  # the rows of the process that tells
    if name == "image":  # the same command went on without it
        record = read_record(folder)
        assert faults[1]["skipped"][0] == 0 and record["metrics"]["test"]["total"] == 11
        assert record["skipped_images"] == [str(faults[0] / "b/house/0.png")]


@pytest.fixture
def assert_same(alone, but_for_rounding):
    """Makes sure that a run ended as one that one process did undisturbed."""

    def check(folder, whole, argv):
        alone([argv])
        one, two = read_record(folder), read_record(whole)
        assert one["metrics"] == but_for_rounding(two["metrics"])
        assert one.get("training", {}).get("steps") in (None, 150)
        for ours, theirs in zip(one["history"], two["history"], strict=True):
            assert ours == pytest.approx(theirs, rel=1e-5)

    return check


def test_sigterm_while_a_head_is_trained(faults, words, alone, assert_same, tmp_path):
    """One of two processes receives SIGTERM between two checks; one process resumes, as if nothing had stopped it."""
    (base, runs), files = faults, list((faults[0] / "head/clap").glob("step*"))
    code, said = runs["head"]
    assert code == 143 and "saved after step 50: the same command resumes" in said, said  # they agree at checks
    assert max(int(path.name.rpartition("-")[2]) for path in files) == 50
    assert "0 epochs and 50 steps done" in alone([words("CLAP", base / "head", *HEAD)])
    assert_same(base / "head", tmp_path / "whole", words("CLAP", tmp_path / "whole", *HEAD))
    assert len(read_record(base / "head")["history"]) == 3 and not read_record(tmp_path / "whole")["training"]["reused"]
    paths = (folder / "clap/model.pth.tar-1" for folder in (base / "head", tmp_path / "whole"))
    a, b = (torch.load(path, weights_only=True)["state_dict"] for path in paths)
    for key, value in a.items():
        torch.testing.assert_close(value, b[key], rtol=1e-4, atol=1e-5)


def test_sigterm_in_a_validation(faults, words, assert_same, tmp_path):
    """One of two processes receives SIGTERM; both stop at the next batch, and the validation is done again."""
    folder, (code, said) = faults[0] / "validation", faults[1]["validation"]
    assert code == 143 and "process 1 was stopped: the same command resumes" in said, said
    assert "lost contact" not in said
    first, second = sorted(folder.glob("log.txt*"), key=lambda path: path.stat().st_mtime)
    assert "step.pth.tar-1-2" in first.read_text() and faults[1]["validated"][0] == 0
    assert "1 epochs and 2 steps done" in second.read_text()
    assert_same(folder, tmp_path / "whole", words("CoOp", tmp_path / "whole", *VALIDATED))
    assert len(read_record(folder)["history"]) == 3


def test_a_busy_folder(words, ranks, helper, tmp_path):
    """The exit code and the sentence, as torchrun hands them on; without it the main process keeps the store.

    Others on its machine add nothing to what a main process has told that is gone with its store.
    """
    argv = words("CoOp", tmp_path / "run")
    with locks.lock(tmp_path / "run") as free:
        assert free
        (code,), _, agent = finish([helper.start([HERE / "agent.py", *argv], tmp_path, "agent", **SETTINGS)])
        codes, _, err = finish(ranks(["train", *argv], tmp_path))
    assert (code, codes) == (1, [75, 2]), agent + err
    for text in (agent, err):
        (told,) = (line for line in text.splitlines() if line.startswith("error: "))
        assert "works in" in told


def children(pid):
    """Processes that a process started, and those that they started, as far as they are alive."""
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True).stdout.split()
    return [int(child) for child in listed] + [own for child in listed for own in children(int(child))]


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for_an_epoch(folder, process):
    limit = time.monotonic() + 180
    while not list(folder.glob("gopro/model.pth.tar-*")):
        assert process.poll() is None and time.monotonic() < limit, process.communicate()
        time.sleep(0.05)


def test_sigterm_to_torchrun(words, alone, tmp_path):
    """It saves, and leaves no orphan."""
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", TRAIN]
    place = {**os.environ, **SETTINGS, "DASSL_CLIP_CACHE": str(tmp_path / "cache")}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([*command, *words("GOPro", folder, "OPTIM.MAX_EPOCH", 200)], env=place, **pipes) as process:
        try:
            wait_for_an_epoch(folder, process)
            workers = children(process.pid)
            process.terminate()
            _, err = process.communicate(timeout=100)
        finally:
            process.kill()
    assert process.returncode != 0 and len(workers) >= 2 and not any(alive(pid) for pid in workers)
    assert err.count("the same command resumes from the last checkpoint") == 1 and "saved after epoch" in err, err
    done = max(int(path.name.rpartition("-")[2]) for path in folder.glob("gopro/model.pth.tar-*"))
    assert f"{done} epochs" in alone([words("GOPro", folder, "OPTIM.MAX_EPOCH", done + 1)])
    assert len(read_record(folder)["history"]) == done + 1


def test_a_process_that_is_killed_ends_the_other(words, ranks, tmp_path):
    one, two = ranks(["train", *words("GOPro", tmp_path / "run", "OPTIM.MAX_EPOCH", 200)], tmp_path)
    wait_for_an_epoch(tmp_path / "run", one)
    os.kill(two.pid, signal.SIGKILL)
    codes, _, err = finish([one, two], 100)
    assert codes[0] > 0 and codes[1] == -signal.SIGKILL
    assert err.count("lost contact with another one") == 1, err


def test_more_processes_than_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    facts = {"RANK": 1, "WORLD_SIZE": 2, "LOCAL_RANK": 1, "LOCAL_WORLD_SIZE": 2, "MASTER_ADDR": "a", "MASTER_PORT": 1}
    for key, value in facts.items():
        monkeypatch.setenv(key, str(value))
    with pytest.raises(ValueError, match="2 processes on this machine, which shows 1 GPU; give --nproc_per_node 1"):
        distributed.start(use_cuda=True)
    monkeypatch.delenv("MASTER_PORT")
    with pytest.raises(ValueError, match="process 1 of 2, but the environment lacks MASTER_PORT"):
        distributed.start(use_cuda=True)
    monkeypatch.setenv("RANK", "first")
    with pytest.raises(ValueError, match="RANK is 'first'"):
        distributed.start(use_cuda=True)


def test_without_torchrun_nothing_is_started(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    distributed.start(use_cuda=False)
    assert distributed.world_size() == 1 and distributed.is_main() and not torch.distributed.is_initialized()
    assert distributed.from_main(lambda: (1, 2)) == (1, 2) and distributed.gather_values("x") == ["x"]
    distributed.stop()
