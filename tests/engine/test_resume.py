"""Runs that stop anywhere go on as if they had not: the disturbed run's files equal the undisturbed one's bit for bit.

Covers `engine/loop.py` (step checkpoints, SIGTERM, what is read after a resume, dumps), `engine/checkpoints.py` (which
checkpoint is taken), and the folder's lock and exit codes in `cli/train.py`.
"""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from dassl.engine import TRAINER_REGISTRY
from dassl_clip import trainers
from dassl_clip.engine import checkpoint_files as checkpoint
from dassl_clip.engine import loop
from dassl_clip.experiments import locks

# Trainers as a user's plugin registers them: one signal to their own process in the middle of a step, once.
PLUGIN = """
import os, signal
from pathlib import Path
from dassl.engine import TRAINER_REGISTRY
from dassl_clip import trainers

class Struck:
    def forward_backward(self, batch):
        mark = Path(self.output_dir) / "struck"
        epoch, step, number = map(int, os.environ["STRIKE"].split())
        if (self.epoch, self.batch_idx) == (epoch, step) and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), number)
        Path(self.output_dir, "read.txt").open("a").write("".join(f"{self.epoch} {p}\\n" for p in batch["impath"]))
        return super().forward_backward(batch)

@TRAINER_REGISTRY.register(force=True)
class CoOp(Struck, trainers.CoOp):
    pass

@TRAINER_REGISTRY.register(force=True)
class GOPro(Struck, trainers.GOPro):
    pass
"""
KEYS = ("OPTIM.MAX_EPOCH", 2, "OPTIM.LR", 0.05, "DATALOADER.TRAIN_X.BATCH_SIZE", 3, "USE_CUDA", False)
VIEWS = ("INPUT.TRANSFORMS", "('random_resized_crop','random_flip','normalize')")
NOBODY = "-1 -1 0"


@pytest.fixture
def strike(run, tmp_path, monkeypatch):
    """`strike(trainer, when, *pairs, name=...)` runs a struck trainer; `when` is "epoch step signal", from 0."""
    plugin = tmp_path / "plugin.py"
    plugin.write_text(PLUGIN)

    def go(trainer, when, *pairs, flags=(), **options):
        monkeypatch.setenv("STRIKE", when)
        return run(trainer, *KEYS, *pairs, flags=("--import", str(plugin), *flags), **options)

    yield go
    for kind in (trainers.CoOp, trainers.GOPro):
        TRAINER_REGISTRY.register(kind, force=True)


def states(folder):
    """The last checkpoint of each model of a run."""
    models = sorted(path.parent for path in folder.glob("*/checkpoint"))
    found = {m.name: checkpoint.load_checkpoint(m / (m / "checkpoint").read_text().strip()) for m in models}
    assert found
    return found


def assert_same(one, other):
    """Parameters, optimiser, schedule, random states and history are equal bit for bit."""
    one, other = states(one), states(other)
    assert one.keys() == other.keys()
    for name in one:
        for key in ("state_dict", "optimizer", "scheduler", "scaler", "random", "history", "best_result", "epoch"):
            assert equal(one[name][key], other[name][key]), (name, key)


def equal(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def epochs_read(folder, epoch):
    """Names of the images that were trained on in an epoch, in order, over all starts."""
    return [line.split(" ", 1)[1] for line in (folder / "read.txt").read_text().splitlines() if line[0] == str(epoch)]


@pytest.mark.parametrize("trainer, seed, steps", [("CoOp", 1, (1, 3)), ("CoOp", -1, (1,)), ("GOPro", 1, (1,))])
def test_sigterm_saves_after_the_step_and_the_next_start_goes_on_from_there(strike, trainer, seed, steps):
    pairs = ("SEED", seed) + (VIEWS if trainer == "CoOp" else ())
    if seed < 0:  # unseeded runs repeat only from the same states
        pairs += ("DATASET.SPLIT_SEED", "1")
    loop.seed_all(5)
    flags = ("--seed", str(seed))
    whole, record, _ = strike(trainer, NOBODY, *pairs, name="whole", flags=flags)
    for step in steps:
        when, options = f"1 {step} {signal.SIGTERM}", {"name": f"ended-{step}", "flags": flags}
        loop.seed_all(5)
        folder, none, output = strike(trainer, when, *pairs, code=143, **options)
        assert none is None and f"saved after epoch 2, step {step + 1}: the same command resumes" in output.err
        torch.manual_seed(77)  # what the second process starts from must not matter
        _, again, output = strike(trainer, when, *pairs, **options)
        assert f"1 epochs and {step + 1} steps done" in output.out
        assert_same(whole, folder)
        assert record["metrics"] == again["metrics"] and record["losses"] == again["losses"]
        assert record["history"] == again["history"]
        assert epochs_read(folder, 1) == epochs_read(whole, 1)  # no image twice, none left out
        assert not list(folder.glob("*/step.pth.tar-*")), "an ended run keeps no step checkpoints"


PLUGIN_END = """
class AtTheEnd(Struck):
    def test(self, split=None):  # the signal comes in the middle of the validation after an epoch
        mark, (epoch, _, number) = Path(self.output_dir) / "struck", map(int, os.environ["STRIKE"].split())
        if split == "val" and self.epoch == epoch and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), number)
        return super(Struck, self).test(split)

    def forward_backward(self, batch):
        return super(Struck, self).forward_backward(batch)

@TRAINER_REGISTRY.register(force=True)
class CoOp(AtTheEnd, trainers.CoOp):
    pass

class WhileSaving(Struck):
    def save_model(self, epoch, directory, *given, **more):
        mark, (at, _, number) = Path(self.output_dir) / "struck", map(int, os.environ["STRIKE"].split())
        if epoch == at and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), number)
        return super(Struck, self).save_model(epoch, directory, *given, **more)

    def forward_backward(self, batch):
        return super(Struck, self).forward_backward(batch)

@TRAINER_REGISTRY.register(force=True)
class GOPro(WhileSaving, trainers.GOPro):
    pass
"""


@pytest.mark.parametrize("seed, cache", [(1, "on"), (-1, "off")])
def test_sigterm_in_a_validation_loses_nothing(strike, seed, cache, tmp_path, monkeypatch):
    """The validation stops, and is done again; random states of an unseeded run too are those of the undisturbed."""
    if cache == "off":
        monkeypatch.setenv("DASSL_CLIP_CACHE", cache)
    (tmp_path / "plugin.py").write_text(PLUGIN + PLUGIN_END)
    keys = ("TEST.FINAL_MODEL", "best_val", "OPTIM.MAX_EPOCH", 3, "SEED", seed, "DATASET.SPLIT_SEED", 1)
    flags = ("--seed", str(seed))
    loop.seed_all(5)
    whole, record, _ = strike("CoOp", NOBODY, *keys, name="whole", flags=flags)
    loop.seed_all(5)
    folder, none, output = strike("CoOp", f"1 0 {signal.SIGTERM}", *keys, name="ended", code=143, flags=flags)
    assert none is None and [path.name for path in folder.glob("*/step*")] == ["step.pth.tar-1-4"]
    loop.seed_all(77)
    _, again, output = strike("CoOp", f"1 0 {signal.SIGTERM}", *keys, name="ended", flags=flags)
    assert "1 epochs and 4 steps done" in output.out
    assert_same(whole, folder)
    assert record["metrics"] == again["metrics"] and record["history"] == again["history"]


def test_sigterm_while_an_epoch_is_saved_lets_it_be_saved(strike, tmp_path):
    (tmp_path / "plugin.py").write_text(PLUGIN + PLUGIN_END)
    keys = ("TRAIN.CHECKPOINT_FREQ", 1)
    whole, record, _ = strike("GOPro", NOBODY, *keys, name="whole")
    folder, none, _ = strike("GOPro", f"0 0 {signal.SIGTERM}", *keys, name="ended", code=143)
    assert none is None and [path.name for path in folder.glob("*/*.tar-*")] == ["model.pth.tar-1"]
    _, again, output = strike("GOPro", NOBODY, *keys, name="ended")
    assert "1 epochs done" in output.out and again["losses"] == record["losses"]
    assert_same(whole, folder)


def test_a_run_that_died_in_its_last_test_has_the_losses_of_its_training(strike):
    _, record, _ = strike("CoOp", NOBODY, name="run")
    folder = strike("CoOp", NOBODY, name="whole")[0]
    (folder / "record.json").unlink()
    _, again, output = strike("CoOp", NOBODY, name="whole")
    assert "nothing left to train" in output.out
    assert again["losses"] == record["losses"] != {} and again["history"] == record["history"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="who sent a signal is not known here")
def test_a_signal_to_the_whole_group_saves_too(helper, tmp_path, tiny_clip, domain_tree, number):
    """As schedulers send it: to the run, to its loader's workers, and again by a launcher a moment later."""
    (tmp_path / "data.yaml").write_text("DATASET:\n  NAME: FolderDomains\n")
    words = ["train", "--trainer", "CoOp", "--seed", "1"]
    words += ["--dataset-config-file", tmp_path / "data.yaml", "--root", domain_tree]
    words += ["--source-domains", "art", "--target-domains", "sketch", "--output-dir", tmp_path / "run"]
    words += ["MODEL.BACKBONE.NAME", f"local-dir:{tiny_clip}", "OPTIM.MAX_EPOCH", 2000, "TRAIN.PRINT_FREQ", 1]
    words += ["DATALOADER.TRAIN_X.BATCH_SIZE", 3, "DATALOADER.NUM_WORKERS", 2, "USE_CUDA", False, *VIEWS]
    with helper.start(words, tmp_path) as process:
        while "epoch [2/" not in process.out.read_text():
            assert process.poll() is None
            time.sleep(0.02)
        for _ in range(2):
            os.killpg(process.pid, number)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 143 and "the same command resumes" in err, out + err
    assert list((tmp_path / "run").glob("*/step.pth.tar-*")) or list((tmp_path / "run").glob("*/model.pth.tar-*"))


def test_a_process_that_was_forked_off_does_not_hold_the_folder(tmp_path):
    told, tell = os.pipe()
    with locks.lock(tmp_path) as free:
        assert free
        child = os.fork()
        if not child:
            os.write(tell, b"1")  # what python does after a fork is done
            signal.pause()
        assert os.read(told, 1) == b"1"
        assert locks.is_locked(tmp_path)
    try:
        assert not locks.is_locked(tmp_path)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_goes_on_within_the_spread_of_its_kernels(strike):
    """On a GPU sums may be taken in another order from call to call: relative 1e-3 after eight steps."""
    whole, _, _ = strike("GOPro", NOBODY, "USE_CUDA", True, name="whole")
    folder, _, _ = strike("GOPro", f"1 1 {signal.SIGTERM}", "USE_CUDA", True, name="ended", code=143)
    strike("GOPro", NOBODY, "USE_CUDA", True, name="ended")
    ours, theirs = (states(f)["gopro"]["state_dict"] for f in (whole, folder))
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-3, atol=1e-4)


def test_step_checkpoints_bound_what_is_lost_by_a_crash(strike):
    """Steps 0 to 3 of two epochs are struck by a signal that nobody handles, which ends the process in that step."""
    keys = ("TRAIN.CHECKPOINT_STEPS", 2, *VIEWS)
    whole, record, _ = strike("GOPro", NOBODY, *keys, name="whole")
    for step in (0, 2, 3):
        when, name = f"1 {step} {signal.SIGINT}", f"crashed-{step}"
        folder, none, _ = strike("GOPro", when, *keys, name=name, code=130)
        assert none is None
        _, again, _ = strike("GOPro", when, *keys, name=name)
        assert_same(whole, folder)
        assert record["metrics"] == again["metrics"] and record["history"] == again["history"]
        repeated = len(epochs_read(folder, 0)) + len(epochs_read(folder, 1)) - 2 * len(epochs_read(whole, 1))
        assert repeated <= 2 * 3  # at most CHECKPOINT_STEPS steps of three images


def test_only_the_two_newest_step_checkpoints_are_kept_and_a_torn_one_gives_way(strike):
    keys = ("TRAIN.CHECKPOINT_STEPS", 1)
    whole, _, _ = strike("CoOp", NOBODY, *keys, name="whole")
    folder, _, _ = strike("CoOp", f"1 2 {signal.SIGTERM}", *keys, name="torn", code=143)
    model = folder / "prompt_learner"
    assert sorted(path.name for path in model.glob("step*")) == ["step.pth.tar-1-2", "step.pth.tar-1-3"]
    newest = model / "step.pth.tar-1-3"
    newest.write_bytes(newest.read_bytes()[:-700])
    _, _, output = strike("CoOp", NOBODY, *keys, name="torn")
    assert "set aside as step.pth.tar-1-3.torn" in output.out and "1 epochs and 2 steps done" in output.out
    assert_same(whole, folder)


def test_resume_auto_and_the_folder_of_another_run(strike):
    folder, _, _ = strike("CoOp", f"1 0 {signal.SIGTERM}", name="first", code=143)
    _, _, output = strike("CoOp", NOBODY, name="second", flags=("--resume", str(folder)))
    assert "1 epochs and 1 steps done" in output.out
    flags = ("--resume", str(folder))  # a second start of the same command goes on from what the first has made of it
    strike("CoOp", f"1 2 {signal.SIGTERM}", name="twice", flags=flags, code=143)
    _, _, output = strike("CoOp", NOBODY, name="twice", flags=flags)
    assert "1 epochs and 3 steps done" in output.out and "holds a checkpoint of its own" in output.out
    _, _, output = strike("CoOp", NOBODY, name="first", flags=("--resume", "auto"))
    assert "1 epochs and 1 steps done" in output.out
    _, _, output = strike("CoOp", NOBODY, name="third", flags=("--resume", "auto"))
    assert "training from the start" in output.out
    assert_same(folder, folder.parent / "third")
    assert_same(folder, folder.parent / "second")
    assert_same(folder, folder.parent / "twice")


def test_validation_results_survive_a_resume(strike):
    keys = ("TEST.FINAL_MODEL", "best_val", "OPTIM.MAX_EPOCH", 3)
    whole, record, _ = strike("CoOp", NOBODY, *keys, name="whole")
    strike("CoOp", f"2 1 {signal.SIGTERM}", *keys, name="ended", code=143)
    folder, again, _ = strike("CoOp", NOBODY, *keys, name="ended")
    best = [checkpoint.load_checkpoint(f / "prompt_learner" / checkpoint.BEST_NAME) for f in (whole, folder)]
    assert equal(best[0]["state_dict"], best[1]["state_dict"]) and best[0]["val_result"] == best[1]["val_result"]
    assert record["metrics"] == again["metrics"]


def test_random_states_go_through_a_checkpoint(tmp_path):
    loop.seed_all(3)
    torch.save(loop.random_states(), tmp_path / "states")
    first = random.random(), np.random.rand(), torch.rand(()).item()
    loop.seed_all(4)
    loop.restore_random(torch.load(tmp_path / "states", weights_only=True))
    assert (random.random(), np.random.rand(), torch.rand(()).item()) == first


def test_a_dump_holds_what_led_to_a_loss_that_is_not_finite(run):
    folder, _, output = run("CoOp", "OPTIM.LR", 1e30, "OPTIM.MAX_EPOCH", 3, code=2)
    dump = torch.load(folder / "not-finite.pt", weights_only=True)
    assert f"all of it is in {folder / 'not-finite.pt'}" in output.err
    assert f"epoch {dump['epoch']}, step {dump['step']}" in output.err and dump["first_bad"] in output.err
    bad = dump["first_bad"].split(" (")[0]
    assert not dump["tensors"][bad].isfinite().all()
    assert len(dump["paths"]) == 6 and all(Path(path).is_file() for path in dump["paths"])


def test_the_second_of_two_processes_is_told_who_holds_the_folder(run, tmp_path):
    code = (
        "import sys; from pathlib import Path; from dassl_clip.experiments import locks\n"
        "with locks.lock(Path(sys.argv[1])): print(flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "run")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        _, none, output = run("ZeroshotCLIP", code=locks.BUSY_EXIT)
        assert none is None and re.search(rf"process {other.pid} on \S+, since 20\S+ \(", output.err)
        other.stdin.close()
    _, record, _ = run("ZeroshotCLIP")
    assert record["method"] == "ZeroshotCLIP"
    assert (tmp_path / "run" / locks.LOCK_NAME).read_text() == ""


def test_what_a_killed_writer_left_is_removed_and_of_others_kept(run, tmp_path):
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    host = os.uname().nodename
    model = tmp_path / "run" / "prompt_learner"
    model.mkdir(parents=True)
    left = model / f".model.pth.tar-1.{host}.{dead.stdout.strip()}.tmp"
    others = [model / f".model.pth.tar-1.elsewhere.{dead.stdout.strip()}.tmp", model / f".x.{host}.{os.getppid()}.tmp"]
    for path in (left, *others):
        path.write_bytes(b"half")
    run("CoOp")
    assert not left.exists() and all(path.exists() for path in others)


def test_the_record_says_what_held_of_determinism(run):
    try:
        _, record, _ = run("CoOp", flags=("--deterministic",), name="strict")
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
    assert record["determinism"] == {"seed": 1, "algorithms": True, "cudnn_benchmark": False}
    _, plain, _ = run("CoOp", name="plain")
    assert plain["determinism"]["algorithms"] is False
    assert plain["config_hash"] == record["config_hash"], "it asks for the same computation"
    assert json.dumps(plain["metrics"]) == json.dumps(record["metrics"])
