"""The same runs by one process and by two (gloo, on the CPU), each with a feature cache of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

HERE = Path(__file__).parent
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]


def start(program, processes, cache, **options):
    """Start `program` (a list of words) in that many processes; 0: without torchrun."""
    words = [*TORCHRUN, str(processes), *program] if processes else [sys.executable, *program]
    environment = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    environment |= {"DASSL_CLIP_CACHE": str(cache), "OMP_NUM_THREADS": "1", "DASSL_CLIP_TIMEOUT": "120"}
    environment |= {"CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def finish(process, seconds=240):
    """Exit code, stdout and stderr of a process, at most after that many seconds."""
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.terminate()
        out, err = process.communicate(timeout=60)
        pytest.fail(f"not done after {seconds} s\n{out[-3000:]}\n{err[-3000:]}")
    return process.returncode, out, err


@pytest.fixture(scope="session")
def words(tiny_clip, domain_tree, tmp_path_factory):
    """`words(trainer, folder, *KEY VALUE, flags=())`: the arguments of a small run."""
    data = tmp_path_factory.mktemp("configs") / "data.yaml"
    data.write_text(yaml.safe_dump({"DATASET": {"NAME": "FolderDomains"}}))

    def go(trainer, folder, *pairs, flags=(), source="art photo", target="sketch"):
        argv = ["--trainer", trainer, "--dataset-config-file", str(data), "--root", str(domain_tree), "--seed", "1"]
        argv += ["--source-domains", *source.split(), "--target-domains", *target.split()]
        argv += ["--output-dir", str(folder), *flags, "MODEL.BACKBONE.NAME", f"local-dir:{tiny_clip}"]
        argv += ["DATALOADER.NUM_WORKERS", "0", "DATALOADER.TRAIN_X.BATCH_SIZE", "6", "DATALOADER.TEST.BATCH_SIZE", "4"]
        argv += ["DATASET.NUM_SHOTS", "4", "OPTIM.MAX_EPOCH", "2", "OPTIM.NAME", "sgd", "OPTIM.LR", "0.002"]
        argv += ["OPTIM.LR_SCHEDULER", "cosine", "TRAIN.CHECKPOINT_FREQ", "1", "USE_CUDA", "False"]
        return [*argv, *map(str, pairs)]

    return go


@pytest.fixture(scope="session")
def drive(tmp_path_factory):
    """`drive(list of argument lists, processes)`: run them in one go; gives stdout and stderr."""

    def go(runs, processes, cache=None):
        folder = tmp_path_factory.mktemp("drive")
        (folder / "runs.json").write_text(json.dumps(runs))
        program = [str(HERE / "drive.py"), str(folder / "runs.json")]
        code, out, err = finish(start(program, processes, cache or folder / "cache"))
        assert code == 0, out[-4000:] + err[-6000:]
        assert err.count("exit 0\n") == len(runs)
        return out, err

    return go
