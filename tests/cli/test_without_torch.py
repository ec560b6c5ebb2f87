"""What a command answers before torch is imported: `--help`, what needs no model, and most mistakes.

All run in one process in which importing torch, torchvision or open_clip raises an error.
"""

import json
import subprocess
import sys

import pytest

from dassl_clip.cli import completion
from dassl_clip.cli.__main__ import COMMANDS

WITHOUT_TORCH = """
import contextlib, importlib.abc, importlib.machinery, io, json, sys
class Refused(importlib.abc.Loader):
    def exec_module(self, module):
        raise RuntimeError(f"{module.__name__} was imported")
class Hidden(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name in ("torch", "torchvision", "open_clip"):
            spec = importlib.machinery.PathFinder.find_spec(name, path)
            spec.loader = Refused()
            return spec
sys.meta_path.insert(0, Hidden())
from dassl_clip.cli.__main__ import main
for line in sys.stdin:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(line.split())
        except SystemExit as stop:
            code = stop.code
        except RuntimeError as error:
            code = str(error)
    print(json.dumps([code or 0, out.getvalue(), err.getvalue()]))
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
    "check GOPro --only label": "there is no check 'label'. Did you mean 'labels'?",
    "data verify pac": "there is no data set 'pac'. Did you mean 'PACS'?",
    "data verify pacs --root none": "--root: there is no folder none",
    "data verify pacs DATASET.SHOTS=1": "there is no config key 'DATASET.SHOTS'",
    "data verify none.yaml": "there is no config file none.yaml",
    "data verify pacs --jobs 0": "--jobs 0: at least 1 thread must decode",
    "data inspect pacs --out none/a.png": "--out: there is no folder none",
    "data inspect icons --images 0": "--images 0: at least one image a domain is needed",
    "data links pac": "no links are known for 'pac'. Did you mean 'PACS'?",
    "data verify pacs --root setup.py": "--root: setup.py is a file, not a folder",
    "data list --root none": "--root: there is no folder none",
    "diagnose icons --backbone ViTB16": "unknown backbone 'ViTB16'. Did you mean",
    "task GOPro icons 1 --backbone local-dir:none": "there is no folder none; check the path after local-dir:",
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
    "predict docs --names a,b": "is none of the embedded icons, so the model has to be named",
    "predict docs --names none.txt": "--names gives 1 name (and there is no file none.txt)",
    "predict docs --names a,b --method Gopro2": "there is no method 'Gopro2'. Did you mean 'GOPro'?",
    "predict docs --names a,b --method GOPro": "GOPro trains on labels, and these images have none",
    "predict docs --names a,b --method InMaP TRAINER.INMAP.GAMA=1": "Did you mean 'TRAINER.INMAP.GAMMA'?",
    "predict docs --names a,b --backbone ViTB16": "unknown backbone 'ViTB16'. Did you mean",
    "predict configs --run none": "there is no folder or file none; give the folder of a finished run",
    "eval none": "there is no folder or file none; give the folder of a finished run",
    "export none": "there is no folder or file none",
    "interpret none": "there is no folder or file none",
    "plot domains none": "no folder none",
    "report none": "no folder none",
}


HELP = [f"{line} --help" for line in (*COMMANDS, *SUBCOMMANDS)]
PLAIN = ["--help", "--version", "completion bash", "cache ls", "data list", "data links pacs", "table results/worlds"]


@pytest.fixture(scope="module")
def answers(pytestconfig, tmp_path_factory):
    """Line -> exit code, stdout and stderr."""
    lines = [*HELP, *PLAIN, *MISTAKES, "doctor"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DASSL_CLIP_CACHE", str(tmp_path_factory.mktemp("cache")))
        done = subprocess.run(
            [sys.executable, "-c", WITHOUT_TORCH], input="\n".join(lines), capture_output=True, text=True,
            cwd=pytestconfig.rootpath,
        )  # fmt: skip
    found = done.stdout.splitlines()
    assert len(found) == len(lines), done.stderr
    return dict(zip(lines, map(json.loads, found)))


@pytest.mark.parametrize("line", [*HELP, *PLAIN])
def test_what_needs_no_model(answers, line):
    code, out, err = answers[line]
    assert (code, err) == (0, "") and out and ("usage: " in out or line in PLAIN)


@pytest.mark.parametrize("line", MISTAKES)
def test_mistakes(answers, line):
    code, out, err = answers[line]
    assert code == 2 and out == ""
    (said,) = err.splitlines()
    assert said.startswith("error: ") and MISTAKES[line] in said


def test_torch_is_really_out_of_reach(answers):
    assert "torch was imported" in str(answers["doctor"])
