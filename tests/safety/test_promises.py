"""The promises of docs/security.md that the source itself can be held to: an abstract syntax tree of every file.

Covered: no `eval`, `exec`, `shell=True`, `os.system`, no unpickling, YAML by the safe loader, tensors with
`weights_only=True`, arrays without pickles, no `extractall`, no TorchScript, programs started from lists of words, no
network outside the modules that say so, writes of what matters through the atomic writer. Each exception stands in a
table with its reason, and an exception that nothing needs any more fails too.
"""

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("clip", "engine", "trainers", "datasets", "results", "experiments", "cli", "embedded")
FOLDERS = (*PACKAGES, "toolbox", "benchmarks", "tools")

# what is forbidden: {file: why it is there all the same}
ALLOWED = {
    "unpickling": {
        "clip/weights.py": "an Unpickler whose find_class knows tensors and containers alone",
    },
    "running code": {
        "engine/registry.py": "--import FILE.py: the user's own code, named on the command line",
    },
    "network": {
        "datasets/download.py": "dassl-clip data links --download",
        "clip/weight_files.py": "a backbone that was asked for by name and is in no cache",
        "toolbox/dassl/utils/tools.py": "download_url, part of the toolbox's interface; nothing here calls it",
        "toolbox/dassl/data/datasets/download.py": "behind the switch DASSL_DOWNLOAD",
    },
    "plain writes": {
        "engine/errors.py": "the null device",
        "experiments/launchers.py": "the console of a run's process, and lines added to a log",
        "cli/train.py": "the null device",
        "experiments/run.py": "a log that grows",
        "toolbox/dassl/utils/atomic.py": "the atomic writer itself",
        "toolbox/dassl/utils/logger.py": "the log of a run, which grows",
        "datasets/download.py": "a download that goes on where it stopped, renamed when whole; members of an archive",
        "toolbox/dassl/utils/archives.py": "members of an archive",
        "results/files.py": "the atomic writer itself",
        "engine/extraction.py": "rows of features in a partial file, renamed when whole",
    },
}  # fmt: skip
BUILDS = ("tools/", "benchmarks/")  # made by a developer in a folder that is thrown away or under git


@cache
def sources():
    """Syntax tree of every Python file, by its path in the checkout."""
    files = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))] + [ROOT / "train.py"]
    files = [path for path in files if "build" not in path.relative_to(ROOT).parts]  # links of an install in link mode
    return {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(encoding="utf-8")) for path in files}


@cache
def calls():
    """Path, dotted name and node of every call."""
    nodes = [(path, node) for path, tree in sources().items() for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [(path, ast.unparse(node.func), node) for path, node in nodes]


def keyword(node, name):
    """The source of a keyword argument, or ""."""
    return next((ast.unparse(part.value) for part in node.keywords if part.arg == name), "")


def found(rule):
    """Files and lines in which a rule finds something."""
    return [f"{path}:{node.lineno}" for path, name, node in calls() if rule(name, node)]


def without(hits, kind):
    """Hits outside the exceptions of a kind; every exception must still be needed."""
    allowed = ALLOWED[kind]
    stale = [path for path in allowed if not any(hit.startswith(f"{path}:") for hit in hits)]
    assert not stale, f"exceptions for {kind} that nothing needs: {stale}"
    return [hit for hit in hits if hit.rpartition(":")[0] not in allowed]


def named(*names):
    return lambda called, node: called in names


def ends(*ends):
    return lambda called, node: called.endswith(ends)


def without_keyword(names, key, value):
    return lambda called, node: called in names and keyword(node, key) != value


def writes(called, node):
    if called in ("open", "os.fdopen", "gzip.open", "io.open"):
        mode = node.args[1] if len(node.args) > 1 else ast.Constant("r")
    elif called.endswith(".open") and node.args and isinstance(node.args[0], ast.Constant):
        mode = node.args[0]  # of a path
    else:
        return called.endswith((".write_text", ".write_bytes", ".to_csv", "json.dump"))
    return any(letter in getattr(mode, "value", "w") for letter in "wax+")


# What is called nowhere: but for the exceptions of a kind in `ALLOWED`, and for what lies below some places.
RULES = {
    "text becomes code": (
        named("eval", "exec", "compile", "__import__", "os.system", "os.popen", "builtins.eval"), "", ()
    ),
    "code is loaded": (ends(".exec_module", "spec_from_file_location", "runpy.run_path"), "running code", ()),
    "objects are unpickled": (
        named("pickle.load", "pickle.loads", "pickle.Unpickler", "joblib.load", "dill.load", "torch.jit.load",
              "shelve.open"), "", (),
    ),
    "arrays are read with pickles": (  # tools/ reads its own temporary folder
        without_keyword(("np.load", "numpy.load"), "allow_pickle", "False"), "", ("tools/",)
    ),
    "yaml is read without bounds": (  # a benchmark reads the project's own configurations
        named("yaml.load", "yaml.full_load", "yaml.unsafe_load", "yaml.load_all", "yaml.safe_load", "yaml.Loader"),
        "", BUILDS,
    ),
    "yacs reads files": (ends(".merge_from_file", "load_cfg"), "", ("toolbox/",)),
    "archives are unpacked without a look at their members": (  # download.py looks at them first
        ends(".extractall", "shutil.unpack_archive", ".extract"), "", ("datasets/download.py",)
    ),
    "the network is asked": (
        ends("urllib.request.urlopen", "requests.get", "urlretrieve", "hf_hub_download", "gdown.download",
             "socket.connect"), "network", (),
    ),
    "what matters is written in place": (writes, "plain writes", (*BUILDS, "toolbox/dassl/utils/tools.py")),
    "images are opened in any format": (
        lambda called, node: called == "Image.open" and not keyword(node, "formats"), "", BUILDS
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", RULES)
def test_nowhere(what):
    rule, kind, places = RULES[what]
    hits = [hit for hit in found(rule) if not hit.startswith(places)]
    assert not (without(hits, kind) if kind else hits)


def test_every_package_is_looked_at():
    assert {path.split("/")[0] for path in sources()} >= set(FOLDERS)


def test_programs_are_lists_of_words():
    starters = ("subprocess.run", "subprocess.Popen", "subprocess.call", "subprocess.check_output", "os.execv")
    for path, name, node in calls():
        assert keyword(node, "shell") in ("", "False"), f"{path}:{node.lineno}"
        if name in starters:
            assert not isinstance(node.args[0], (ast.Constant, ast.JoinedStr, ast.BinOp)), f"{path}:{node.lineno}"


def test_unpicklers_and_stars():
    nodes = [(f"{path}:{node.lineno}", node) for path, tree in sources().items() for node in ast.walk(tree)
             if isinstance(node, ast.ClassDef | ast.ImportFrom)]  # fmt: skip
    classes = [(place, node.bases) for place, node in nodes if isinstance(node, ast.ClassDef)]
    kinds = [place for place, bases in classes if any("Unpickler" in ast.unparse(base) for base in bases)]
    stars = [place for place, node in nodes if isinstance(node, ast.ImportFrom) and node.names[0].name == "*"]
    assert not stars
    loads = found(without_keyword(("torch.load",), "weights_only", "True"))
    assert not without(kinds + loads, "unpickling")


def test_yaml_has_one_safe_loader():
    assert {hit.rpartition(":")[0] for hit in found(ends("SafeLoader"))} == {"results/documents.py"}


def test_shell_scripts_evaluate_nothing():
    for path in (ROOT / "scripts").rglob("*.sh"):
        text = path.read_text(encoding="utf-8")
        assert "eval " not in text and "bash -c" not in text and "curl" not in text, path
