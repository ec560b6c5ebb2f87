"""The same runs by one process and by two (gloo, on the CPU), each with a feature cache of its own."""

import contextlib
import io
import json
import re
import socket
from pathlib import Path

import pytest
import torch
import yaml

from dassl_clip.cli import train

HERE = Path(__file__).parent
SETTINGS = {"OMP_NUM_THREADS": "1", "DASSL_CLIP_TIMEOUT": "60", "CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture(scope="session")
def ranks(helper):
    """`ranks(words, folder)`: a command, or a program, in two processes as torchrun starts them; its files go there."""

    def go(words, folder):
        folder.mkdir(exist_ok=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
        place |= SETTINGS | {"DASSL_CLIP_CACHE": str(folder / "cache")}
        return [helper.start(words, folder, RANK=rank, LOCAL_RANK=rank, **place) for rank in "01"]

    return go


def finish(processes, seconds=240):
    """Exit codes of processes that print to the same files, and what is in these, at most after that many seconds."""
    with contextlib.ExitStack() as stack:
        for process in processes:
            stack.enter_context(process)
        *_, (out, err) = [process.communicate(timeout=seconds) for process in processes]
    return [process.returncode for process in processes], out, err


@pytest.fixture(scope="session")
def words(tiny_clip, domain_tree, tmp_path_factory):
    """`words(trainer, folder, *KEY VALUE, flags=())`: the arguments of a small run."""
    data = tmp_path_factory.mktemp("configs") / "data.yaml"
    data.write_text(yaml.safe_dump({"DATASET": {"NAME": "FolderDomains"}}))

    def go(trainer, folder, *pairs, flags=(), source="art photo", target="sketch", root=domain_tree, seed=1):
        argv = ["--trainer", trainer, "--dataset-config-file", data, "--root", root, "--seed", seed]
        argv += ["--source-domains", *source.split(), "--target-domains", *target.split()]
        argv += ["--output-dir", folder, *flags, "MODEL.BACKBONE.NAME", f"local-dir:{tiny_clip}"]
        argv += ["DATALOADER.NUM_WORKERS", 0, "DATALOADER.TRAIN_X.BATCH_SIZE", 6, "DATALOADER.TEST.BATCH_SIZE", 4]
        argv += ["DATASET.NUM_SHOTS", 4, "OPTIM.MAX_EPOCH", 2, "OPTIM.NAME", "sgd", "OPTIM.LR", 0.002]
        argv += ["OPTIM.LR_SCHEDULER", "cosine", "TRAIN.CHECKPOINT_FREQ", 1, "USE_CUDA", False]
        return [*map(str, argv), *map(str, pairs)]

    return go


@pytest.fixture(scope="session")
def alone(tmp_path_factory):
    """`alone(list of argument lists)`: the runs in this process, in one thread as the others; gives stdout."""

    def go(runs, cache=None):
        threads, out = torch.get_num_threads(), io.StringIO()
        torch.set_num_threads(1)
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out):
            patch.setenv("DASSL_CLIP_CACHE", str(cache or tmp_path_factory.mktemp("cache")))
            codes = [train.main(words) for words in runs]
        torch.set_num_threads(threads)
        assert codes == [0] * len(runs), out.getvalue()[-4000:]
        return out.getvalue()

    return go


@pytest.fixture(scope="session")
def drive(ranks, tmp_path_factory):
    """`drive(list of argument lists)`: the runs by two processes; gives stdout, and code and stderr of each run."""

    def go(runs):
        folder = tmp_path_factory.mktemp("drive")
        (folder / "runs.json").write_text(json.dumps(runs))
        codes, out, err = finish(ranks([HERE / "drive.py", folder / "runs.json"], folder))
        *found, _ = re.split(r"exit (\d+)\n", err)
        assert codes == [0, 0] and len(found) == 2 * len(runs), out[-4000:] + err[-6000:]
        return out, [(int(code), said) for said, code in zip(found[::2], found[1::2])]

    return go
