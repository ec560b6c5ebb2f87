"""Packages of others keep their names: the checkout's folders are never found as `datasets`, `trainers`, ... (row 8.5).

Covered: `python train.py`, `python -m` and a job's function, each started in the checkout's root with the
root on PYTHONPATH too; `--import` of a file and of a module; files of the user that lie in the root.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dassl_clip.engine import paths, registry
from dassl_clip.results.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
PROBE = """
import sys
import datasets, trainers
print("found", datasets.whose, trainers.whose)
"""


@pytest.fixture
def site(tmp_path):
    """A folder of installed packages that are called as ours are, and a plugin that needs them."""
    for name in ("datasets", "trainers"):
        (tmp_path / "site" / name).mkdir(parents=True)
        (tmp_path / "site" / name / "__init__.py").write_text(f"whose = 'another {name}'\n")
    (tmp_path / "site" / "plugin.py").write_text(PROBE)
    (tmp_path / "file.py").write_text(PROBE)
    return tmp_path / "site"


def python(site, *words):
    """What a Python started in the checkout's root prints; both the root and the packages are on PYTHONPATH."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(site)]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, env=env, capture_output=True, text=True)
    return done.stdout + done.stderr


def test_8_5_plugins_find_packages_of_others(site):
    told = python(site, "-m", "dassl_clip.cli", "train", "--import", "plugin", "--import", site.parent / "file.py")
    assert told.count("found another datasets another trainers") == 2, told


@pytest.mark.parametrize(
    "words",
    [("train.py", "--help"), ("-m", "dassl_clip.cli", "--help"),
     ("-c", "from dassl_clip.experiments import slurm; slurm.run_job(None)")],
)  # fmt: skip
def test_8_5_every_start_leaves_the_checkout(site, words):
    """What a program can import in the end; the job ends at once, as it was given no run."""
    (site / "sitecustomize.py").write_text("import atexit\natexit.register(lambda: __import__('plugin'))\n")
    assert "found another datasets another trainers" in python(site, *words)


def test_8_5_files_of_the_user_in_the_root_are_found(site, tmp_path, monkeypatch):
    """In a checkout of its own making: what is beside train.py and not ours, and nothing else."""
    root = tmp_path / "checkout"
    for name in ("datasets", "mine"):
        (root / name).mkdir(parents=True)
        (root / name / "__init__.py").write_text("whose = 'of the root'\n")
    (root / "scripts").mkdir()
    (root / "helper_of_mine.py").write_text("import mine\nwhose = mine.whose\n")
    for name in ("train", "setup"):
        (root / f"{name}.py").write_text("raise SystemExit('a program')\n")
    monkeypatch.setattr(paths, "ROOT", root)
    real = importlib.util.find_spec
    ours = importlib.util.spec_from_file_location("datasets", root / "datasets" / "__init__.py")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: ours if name == "dassl_clip.datasets" else real(name))
    undo = paths.add_folder(root)
    try:
        finder = sys.meta_path[0]
        names = ("helper_of_mine", "mine", "datasets", "scripts", "train", "setup")
        shown = {name: finder.find_spec(name) for name in names}
    finally:
        undo()
    assert [name for name, spec in shown.items() if spec is not None] == ["helper_of_mine", "mine"]
    assert finder not in sys.meta_path and str(root) not in sys.path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("import no_such_thing\n", r"ModuleNotFoundError: No module named 'no_such_thing' \(line 1 of "),
        ("a = 1\nb = a +\n", r"SyntaxError: .* \(line 2 of "),
        ("a = {}\na['x']\n", r"KeyError: 'x' \(line 2 of "),
        ("import sys\nsys.exit(3)\n", r"SystemExit: 3"),
    ],
)
def test_8_1_a_file_that_fails_is_named_with_its_line(text, expected, tmp_path):
    """(row 8.1)"""
    (tmp_path / "bad_plugin.py").write_text(text)
    with pytest.raises(UserError, match=expected):
        registry.import_user_code(str(tmp_path / "bad_plugin.py"))
