"""What goes wrong with several processes: told once, in a sentence, and nobody is left behind.

Covers: a batch that cannot be shared; a setting that all refuse; an image that one process cannot decode; a trainer
that knows nothing of processes; more processes than GPUs; a process that is killed; SIGTERM to torchrun, after which
the same command goes on, also where a head is trained without epochs, and in a validation; a busy run folder; a main
process that is gone with its store; a loss that is not finite in one process.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from dassl_clip.engine import distributed
from dassl_clip.results.records import read_record

from .conftest import HERE, finish, start

TRAIN = str(HERE.parents[1] / "train.py")


def run(argv, cache, processes=2):
    code, out, err = finish(start([TRAIN, *argv], processes, cache))
    told = [line for line in err.splitlines() if line.startswith("error: ")]
    return code, told, out + err


def children(pid):
    """Processes that a process started, and those that they started, as far as they are alive."""
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True).stdout.split()
    return [int(child) for child in listed] + [own for child in listed for own in children(int(child))]


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    "pairs, sentence",
    [
        (("DATALOADER.TRAIN_X.BATCH_SIZE", 5), "must be a multiple of 2, such as 6"),
        (("TRAINER.COOP.PREC", "fp7"), "TRAINER.COOP.PREC is 'fp7'"),
    ],
)
def test_what_all_refuse_is_told_once(words, tmp_path, pairs, sentence):
    code, told, everything = run(words("CoOp", tmp_path / "run", *pairs), tmp_path / "cache")
    assert code == 1 and len(told) == 1 and sentence in told[0], everything


def test_an_image_that_one_process_reads(words, tmp_path):
    tree = tmp_path / "tree"
    for domain in ("art", "sketch"):
        for name in ("dog", "house"):
            for number in range(6):
                path = tree / domain / name / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (40, 40), (number * 40, 90, 20)).save(path)
    broken = tree / "sketch" / "house" / "0.png"  # in the second batch of four, which the second process reads
    broken.write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    argv = words("ZeroshotCLIP", tmp_path / "run", source="art")
    argv[argv.index("--root") + 1] = str(tree)
    code, told, everything = run(argv, tmp_path / "cache")
    assert code == 1 and len(told) == 1 and str(broken) in told[0], everything
    assert not (tmp_path / "run" / "record.json").exists()
    code, told, everything = run([*argv, "DATALOADER.ON_BAD_IMAGE", "skip"], tmp_path / "cache")
    record = read_record(tmp_path / "run")
    assert code == 0 and record["skipped_images"] == [str(broken)] and record["metrics"]["test"]["total"] == 11


def test_a_trainer_that_knows_nothing_of_processes(words, tmp_path):
    module = tmp_path / "mine.py"
    module.write_text(
        "from dassl.engine import TRAINER_REGISTRY, TrainerX\n\n\n"
        "@TRAINER_REGISTRY.register()\nclass Mine(TrainerX):\n    pass\n"
    )
    argv = words("Mine", tmp_path / "run", flags=("--import", str(module)))
    code, told, everything = run(argv, tmp_path / "cache")
    assert code == 1 and len(told) == 1 and "Mine is not a CLIPTrainer" in told[0], everything


def test_a_busy_folder(words, tmp_path):
    from dassl_clip.experiments import locks

    with locks.lock(tmp_path / "run") as free:
        assert free
        code, told, everything = run(words("CoOp", tmp_path / "run"), tmp_path / "cache")
    assert code == 1 and len(told) == 1 and "works in" in told[0], everything


def test_a_main_process_that_is_gone_with_its_store(words, tmp_path):
    """Without torchrun the main process keeps the store: others on its machine add nothing to what it has told."""
    from dassl_clip.experiments import locks

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    environment = os.environ | place | {"DASSL_CLIP_TIMEOUT": "60", "OMP_NUM_THREADS": "1"}
    argv, started = [sys.executable, TRAIN, *words("CoOp", tmp_path / "run")], []
    with locks.lock(tmp_path / "run") as busy:
        assert busy
        for rank in ("0", "1"):
            own = environment | {"RANK": rank, "LOCAL_RANK": rank}
            started.append(subprocess.Popen(argv, env=own, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        (first, _, one), (second, _, two) = map(finish, started)
    assert (first, second) == (75, 2) and one.count("error: ") == 1 and "works in" in one, one
    assert "error: " not in two, two


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_signals(words, tmp_path, number):
    """SIGTERM to torchrun saves and leaves no orphan; a killed process ends the other, with a sentence."""
    argv = words("GOPro", tmp_path / "run", "OPTIM.MAX_EPOCH", 200, "TRAIN.CHECKPOINT_FREQ", 1)
    process = start([TRAIN, *argv], 2, tmp_path / "cache")
    limit = time.monotonic() + 180
    while not list((tmp_path / "run").glob("gopro/model.pth.tar-*")) and time.monotonic() < limit:
        assert process.poll() is None, process.communicate()
        time.sleep(0.2)
    workers = children(process.pid)
    assert len(workers) >= 2
    if number == signal.SIGTERM:
        os.kill(process.pid, number)
    else:
        ranks = [pid for pid in workers if b"RANK=1" in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")]
        os.kill(ranks[0], number)
    code, _, err = finish(process, 100)
    assert code != 0
    assert not any(alive(pid) for pid in workers)
    if number == signal.SIGTERM:
        assert err.count("the same command resumes from the last checkpoint") == 1, err
        assert "saved after epoch" in err
    else:
        assert err.count("lost contact with another one") <= 1
        return
    done = max(int(path.name.rpartition("-")[2]) for path in (tmp_path / "run" / "gopro").glob("model.pth.tar-*"))
    again = words("GOPro", tmp_path / "run", "OPTIM.MAX_EPOCH", done + 1)
    code, _, everything = run(again, tmp_path / "cache")
    assert code == 0 and f"{done} epochs" in everything, everything
    assert len(read_record(tmp_path / "run")["history"]) == done + 1


def test_sigterm_while_a_head_is_trained(words, tmp_path):
    """CLAP in two processes, told to end between two checks; one process goes on, as one did that was left alone."""
    keys = {"MAX_STEPS": 1500, "CHECK_EVERY": 50, "PATIENCE": 99, "LATENT_DIM": 8, "BATCH_SIZE": 8}
    pairs = [word for key, value in keys.items() for word in (f"TRAINER.CLAP.{key}", value)]
    pairs += ["TRAIN.CHECKPOINT_STEPS", 40, "OPTIM.LR", 1e-4]
    argv, folder = words("CLAP", tmp_path / "run", *pairs), tmp_path / "run" / "clap"
    process = start([TRAIN, *argv], 2, tmp_path / "cache")
    limit = time.monotonic() + 180
    while not list(folder.glob("step*")) and time.monotonic() < limit:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGTERM)
    code, _, err = finish(process, 100)
    assert code != 0 and "saved after step" in err, err
    done = max(int(path.name.rpartition("-")[2]) for path in folder.glob("step*"))
    assert done % 50 == 0 and 50 <= done < 1500  # the processes agree at checks
    code, _, everything = run(argv, tmp_path / "cache", 0)
    assert code == 0 and f"0 epochs and {done} steps done" in everything, everything
    code, _, everything = run(words("CLAP", tmp_path / "whole", *pairs), tmp_path / "other-cache", 0)
    assert code == 0, everything
    one, two = (read_record(tmp_path / name) for name in ("run", "whole"))
    assert one["training"]["steps"] == two["training"]["steps"] == 1500 and not two["training"]["reused"]
    for ours, theirs in zip(one["history"], two["history"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
    a, b = (
        torch.load(tmp_path / name / "clap/model.pth.tar-1", weights_only=True)["state_dict"]
        for name in ("run", "whole")
    )
    for key, value in a.items():
        torch.testing.assert_close(value, b[key], rtol=1e-4, atol=1e-5)


VALIDATED = """
import os, signal
from pathlib import Path
from dassl.engine import TRAINER_REGISTRY
from dassl_clip import trainers

@TRAINER_REGISTRY.register(force=True)
class CoOp(trainers.CoOp):
    def test(self, split=None):
        mark = Path(self.output_dir) / "struck"
        if split == "val" and self.epoch == 1 and os.environ.get("RANK") == "1" and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGTERM)
        return super().test(split)
"""


def test_sigterm_in_a_validation(words, tmp_path):
    """One of two processes is told; both leave at the next batch, and the validation is done again."""
    (tmp_path / "plugin.py").write_text(VALIDATED)
    pairs = ("TEST.FINAL_MODEL", "best_val", "OPTIM.MAX_EPOCH", 3, "TRAIN.CHECKPOINT_FREQ", 0)
    argv = words("CoOp", tmp_path / "run", *pairs, flags=("--import", str(tmp_path / "plugin.py")))
    code, _, everything = run(argv, tmp_path / "cache")
    assert code != 0 and "process 1 was stopped: the same command resumes" in everything, everything
    assert "lost contact" not in everything
    files = sorted(path.name for path in (tmp_path / "run").glob("prompt_learner/*"))
    assert files == ["checkpoint", "model-best.pth.tar", "step.pth.tar-1-2"]
    code, _, everything = run(argv, tmp_path / "cache")
    assert code == 0 and "1 epochs and 2 steps done" in everything, everything
    code, _, everything = run(words("CoOp", tmp_path / "whole", *pairs), tmp_path / "cache", 0)
    assert code == 0, everything
    one, two = (read_record(tmp_path / name) for name in ("run", "whole"))
    assert one["metrics"] == two["metrics"] and len(one["history"]) == 3
    for ours, theirs in zip(one["history"], two["history"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)


def test_a_loss_that_is_not_finite(words, tmp_path):
    argv = words("CoOp", tmp_path / "run", "OPTIM.LR", 1e38, "OPTIM.MAX_EPOCH", 4)
    code, told, everything = run(argv, tmp_path / "cache")
    assert code == 1 and len(told) == 1 and "the loss is not finite at epoch" in told[0], everything
    dump = torch.load(tmp_path / "run" / "not-finite.pt", weights_only=True)
    assert len(dump["paths"]) == 3  # the rows of the process that tells


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
