"""What a command answers before torch is imported: `--help`, what needs no model, and most mistakes.

Each runs in a process of its own in which importing torch, torchvision or open_clip raises an error.
"""

import subprocess
import sys

import pytest

from dassl_clip.cli import completion
from dassl_clip.cli.__main__ import COMMANDS

WITHOUT_TORCH = """
import sys, importlib.abc
class Hidden(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "torchvision", "open_clip"):
            raise RuntimeError(f"{name} was imported")
sys.meta_path.insert(0, Hidden())
from dassl_clip.cli.__main__ import main
sys.exit(main())
"""
SUBCOMMANDS = [f"{name} {action}" for name, parser in completion.subparsers(completion.whole_parser())
               for action, _ in completion.subparsers(parser)]  # fmt: skip
ICONS = "--dataset-config-file configs/datasets/icons.yaml"
MISTAKES = {
    "task Gopro2 icons 1": "there is no method 'Gopro2'. Did you mean 'GOPro'?",
    "task GOPro+Tda2 icons 1": "there is no method 'GOPro+Tda2'.",
    "task GOPro icon 1": "there is no data set 'icon'. Did you mean 'icons'?",
    "task GOPro icons one": "argument SEED: 'one' should be a whole number",
    "task GOPro icons 1 --task lodoo": "there is no task 'lodoo'. Did you mean 'lodo'?",
    "task GOPro icons 1 OPTIM.LRR=1": "there is no config key 'OPTIM.LRR'. Did you mean 'OPTIM.LR'?",
    "task GOPro icons 1 TRAINER.CLAP.LATENT_DIMM=1": "Did you mean 'TRAINER.CLAP.LATENT_DIM'?",
    "task GOPro icons 1 OPTIM.LR high": "OPTIM.LR takes a number (now 0.1), but 'high' was given",
    "task GOPro+inmap icons 1 TEST.SPLIT=tests": "TEST.SPLIT is 'tests'. Did you mean 'test'?",
    "task GOPro icons 1 --config none.yaml": "there is no config file none.yaml",
    "task GOPro icons 1 --config nones": "there is no config of GOPro 'nones'",
    "task GOPro icons 1 --weights none.pt": "--weights: there is no file none.pt",
    "task GOPro icons 1 --import none.py": "--import: there is no file none.py",
    "compare icons --methods GOPro Tda2": "there is no method 'Tda2'",
    "compare icons OPTIM.LRR=1": "there is no config key 'OPTIM.LRR'",
    "compare icon": "there is no data set 'icon'",
    "check Gopro2": "there is no method 'Gopro2'. Did you mean 'GOPro'?",
    "diagnose icon": "there is no data set 'icon'",
    "sweep icon": "there is no sweep 'icon'",
    "sweep icons --seeds one": "argument --seeds: 'one' should be a whole number",
    "sweep icons OPTIM.LRR=1": "there is no config key 'OPTIM.LRR'",
    f"train --trainer Gopro2 {ICONS}": "there is no trainer 'Gopro2'. Did you mean 'GOPro'?",
    f"train --trainer lp {ICONS}": "there is no trainer 'lp'. Did you mean 'LinearProbe'?",
    f"train --trainer GOPro {ICONS} OPTIM.LRR 1": "there is no config key 'OPTIM.LRR'",
    f"train --trainer GOPro {ICONS} --weights none.pt": "--weights: there is no file none.pt",
    "train --trainer GOPro --dataset-config-file none.yaml": "there is no config file none.yaml",
    "train --trainer GOPro --seed one": "argument --seed: 'one' should be one whole number",
    "predict none --names a,b": "there is no file or folder none",
    "predict configs --run none": "there is no folder or file none; give the folder of a finished run",
    "eval none": "there is no folder or file none; give the folder of a finished run",
    "export none": "there is no folder or file none",
    "interpret none": "there is no folder or file none",
    "plot domains none": "no folder none",
    "report none": "no folder none",
}


def call(line, root):
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *line.split()], capture_output=True, text=True, cwd=root
    )


@pytest.mark.parametrize("line", [*COMMANDS, *SUBCOMMANDS])
def test_help(line, pytestconfig):
    done = call(f"{line} --help", pytestconfig.rootpath)
    assert (done.returncode, done.stderr) == (0, "") and "usage: " in done.stdout


@pytest.mark.parametrize("line", ["--help", "--version", "completion bash", "cache ls", "table {records}"])
def test_what_needs_no_model(line, pytestconfig, monkeypatch, tmp_path):
    monkeypatch.setenv("DASSL_CLIP_CACHE", str(tmp_path))
    records = "results/worlds"
    done = call(line.format(records=records), pytestconfig.rootpath)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout


@pytest.mark.parametrize("line", MISTAKES)
def test_mistakes(line, pytestconfig):
    done = call(line, pytestconfig.rootpath)
    assert done.returncode == 2 and done.stdout == ""
    (said,) = done.stderr.splitlines()
    assert said.startswith("error: ") and MISTAKES[line] in said


def test_torch_is_really_out_of_reach(pytestconfig):
    done = call("doctor", pytestconfig.rootpath)
    assert "torch was imported" in done.stdout + done.stderr
