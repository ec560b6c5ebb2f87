"""Every key of the configuration is read by somebody, and every key that shipped files set is declared.

Covers: each declared key is read in the syntax trees of the rooms or the toolbox (for a trainer's own node: by that
trainer or by a module that it is made of); keys of Dassl that only third-party programs read are listed with the
reason, and the list holds nothing that is gone or is read after all; a key that nobody reads, or that only another
trainer reads, is found; keys in shipped yaml files, scripts and pages exist; real runs of all trainers read the keys of
their nodes, do not read the keys that they say they have no use for, and warn a user who changed one of these.
"""

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from yacs.config import CfgNode

from dassl.engine import TRAINER_REGISTRY
from dassl_clip import trainers
from dassl_clip.cli import train
from dassl_clip.engine.config import default_config

ROOT = Path(__file__).parents[1]
OURS = sorted(trainers.__all__)
ROOMS = ("clip", "trainers", "engine", "datasets", "results", "experiments", "cli", "toolbox/dassl")
KEYED_CALLS = ("get", "getattr")  # node.get("KEY", ...), getattr(node, "KEY")
LISTS_OF_KEYS = ("KEYS", "PAIR_KEYS")  # tables that declare keys

# Keys of the Dassl contract that no code here reads, or none that a run can reach. They exist because third-party
# plugins and their yaml files set or read them: a tree without them would refuse those files.
DATA_OF_OTHERS = "read by Dassl's own semi-supervised and corruption data sets, which the embedded toolbox lacks"
METHOD_OF_OTHERS = "the node of a Dassl trainer that the embedded toolbox lacks; yaml files of other plugins set it"
THIRD_PARTY = {
    "VERSION": "the number of Dassl's scheme, set by yaml files of its time",
    "DATASET.NUM_LABELED": DATA_OF_OTHERS,
    "DATASET.VAL_PERCENT": DATA_OF_OTHERS,
    "DATASET.STL10_FOLD": DATA_OF_OTHERS,
    "DATASET.CIFAR_C_TYPE": DATA_OF_OTHERS,
    "DATASET.CIFAR_C_LEVEL": DATA_OF_OTHERS,
    "DATASET.ALL_AS_UNLABELED": DATA_OF_OTHERS,
    **dict.fromkeys(
        [
            f"TRAINER.{name}"
            for name in (
                *("MCD", "MME", "CDAC", "SE", "M3SDA", "DAEL", "DDAIG", "DAELDG"),
                *("ENTMIN", "MEANTEACHER", "MIXMATCH"),
            )
        ],
        METHOD_OF_OTHERS,
    ),
}


def leaves(node: dict, prefix: str = "") -> Iterator[str]:
    """Every key below a node, with dots."""
    for name, value in node.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def is_key(word: object) -> bool:
    """Whether a name is written as keys are."""
    return isinstance(word, str) and re.fullmatch(r"[A-Z][A-Z0-9_]*", word) is not None


def reads_of(source: str) -> set[tuple[str, ...]]:
    """What a source text reads: ("OPTIM", "LR") for `cfg.OPTIM.LR`, ("LR",) for `node.LR` and `node.get("LR")`."""
    tree = ast.parse(source)
    declared = declarations(tree)
    found = set()
    for node in ast.walk(tree):
        if id(node) in declared:
            continue
        if isinstance(node, ast.Attribute | ast.Subscript) and isinstance(node.ctx, ast.Load):
            found.add(run_of_keys(node))
        elif isinstance(node, ast.Call) and node.args:
            function = node.func
            name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
            if name in KEYED_CALLS:
                owner, word = (function.value, node.args[0]) if name == "get" else (node.args[0], node.args[-1])
                found.add((*run_of_keys(owner), *key_of(word)))
        elif isinstance(node, ast.For | ast.comprehension):
            # for key in ("SOLVER", "UNLABELED"): node[key]
            found |= {(word,) for item in ast.walk(node.iter) for word in key_of(item)}
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Tuple | ast.List | ast.Dict):
            # a table of keys, walked elsewhere
            found |= {(word,) for item in ast.walk(node.value) for word in key_of(item)}
    return found - {()}


def declarations(tree: ast.Module) -> set[int]:
    """The nodes inside functions that declare settings, and inside the dicts that these spread (`**KEYS`)."""
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == "add_config"]
    names = [*re.findall(r"\b([A-Z_]*KEYS)\b", "".join(map(ast.unparse, functions))), *LISTS_OF_KEYS]
    dicts = [
        node
        for node in tree.body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and node.targets[0].id in names
        and isinstance(node.value, ast.Dict | ast.Call | ast.Tuple)
    ]
    return {id(inner) for outer in (*functions, *dicts) for inner in ast.walk(outer)}


def key_of(node: ast.AST) -> tuple[str, ...]:
    """The key that a string in the source is, if it is one."""
    return (node.value,) if isinstance(node, ast.Constant) and is_key(node.value) else ()


def run_of_keys(node: ast.expr) -> tuple[str, ...]:
    """The keys at the end of a chain of attributes and subscripts; "*" stands for a computed one."""
    keys: list[str] = []
    while isinstance(node, ast.Attribute | ast.Subscript):
        if isinstance(node, ast.Attribute):
            word = node.attr
        else:
            word = node.slice.value if isinstance(node.slice, ast.Constant) else "*"
        if not (word == "*" or is_key(word)):
            break
        keys.insert(0, word)
        node = node.value
    return tuple(keys) if any(key != "*" for key in keys[-1:]) else ()


def reads(key: str, found: set[tuple[str, ...]]) -> bool:
    """Whether one of the reads is a read of `key`."""
    parts = key.split(".")
    return any(
        len(run) <= len(parts) and all(a in ("*", b) for a, b in zip(run, parts[-len(run) :], strict=True))
        for run in found
    )


def made_of(name: str) -> set[Path]:
    """The files of a trainer: those of the files or folders in `trainers/` of its classes, and the engine."""
    files = set((ROOT / "engine").glob("*.py"))
    for kind in TRAINER_REGISTRY.get(name).__mro__:
        if kind.__module__.startswith("dassl_clip.trainers."):
            own = Path(inspect.getfile(kind)).resolve()
            files |= {own} if own.parent == ROOT / "trainers" else set(own.parent.glob("*.py"))
    return files


@pytest.fixture(scope="module")
def sources() -> dict[Path, set[tuple[str, ...]]]:
    """The reads of every file."""
    return {
        path: reads_of(path.read_text(encoding="utf-8"))
        for room in ROOMS
        for path in sorted((ROOT / room).rglob("*.py"))
    }


def nobody_reads(keys: list[str], sources: dict[Path, set[tuple[str, ...]]]) -> list[str]:
    """The keys that no file reads; keys of our trainers count only where these are made."""
    everywhere = set().union(*sources.values())
    own = {name.upper(): set().union(*(sources[path] for path in made_of(name))) for name in OURS}
    in_full = {run for run in everywhere if run[0] == "TRAINER"}
    in_full |= set().union(*(found for path, found in sources.items() if path.parent.name in ("cli", "experiments")))
    unread = []
    for key in keys:
        first, *rest = key.split(".")
        owner = rest[0] if first == "TRAINER" and len(rest) == 2 else ""
        if not reads(key, own[owner] | in_full if owner in own else everywhere):
            unread.append(key)
    return unread


def is_excepted(key: str) -> bool:
    return any(key == other or key.startswith(f"{other}.") for other in THIRD_PARTY)


def test_every_key_is_read(sources, strangers):
    keys = [key for key in leaves(default_config()) if not is_excepted(key) and not key.startswith(strangers)]
    assert len(keys) > 150
    assert nobody_reads(keys, sources) == []


def test_the_exceptions_exist_and_are_read_by_nobody(sources):
    keys = list(leaves(default_config()))
    gone = [other for other in THIRD_PARTY if not any(key == other or key.startswith(f"{other}.") for key in keys)]
    assert gone == []
    unread = nobody_reads(keys, sources)
    needless = [
        other for other in THIRD_PARTY if not any(key == other or key.startswith(f"{other}.") for key in unread)
    ]
    assert needless == []


@pytest.mark.parametrize(
    "key",
    [
        "TRAINER.COOP.NOBODY",
        "TRAINER.COOP.SHIFT_SCALE",
        "TRAINER.LINEARPROBE.THRESHOLD",
        "DATASET.NOBODY",
        "OPTIM.NOBODY",
    ],
)
def test_keys_that_nobody_reads_are_found(key, sources):
    assert nobody_reads([key], sources) == [key]


@pytest.mark.parametrize(
    ("line", "run"),
    [
        ("cfg.OPTIM.LR", ("OPTIM", "LR")),
        ("self.cfg.TRAINER.GOPRO.CTX_INIT", ("TRAINER", "GOPRO", "CTX_INIT")),
        ("self.node.PULL", ("PULL",)),
        ("cfg.TRAINER[name.upper()].PREC", ("TRAINER", "*", "PREC")),
        ('cfg["TEST"]["SPLIT"]', ("TEST", "SPLIT")),
        ('cfg.DATASET.get("MANIFEST", "")', ("DATASET", "MANIFEST")),
        ('getattr(node, "STEPS")', ("STEPS",)),
        ('for key in ("GAMMA", "STEPS"): print(node[key])', ("STEPS",)),
    ],
)
def test_reads_are_seen(line, run):
    assert run in reads_of(line)


@pytest.mark.parametrize("line", ["cfg.OPTIM.LR = 1", 'cfg["SEED"] = 1', "def add_config(cfg):\n    f(cfg.A.B)"])
def test_writes_and_declarations_are_no_reads(line):
    assert not {("OPTIM", "LR"), ("SEED",), ("A", "B")} & reads_of(line)


# ------------------------------------------------------------------------------------------------- shipped files


def shipped_keys() -> list[tuple[str, str]]:
    """Every key that a shipped yaml file for `train.py` sets, with the file."""
    return [
        (str(path.relative_to(ROOT)), key)
        for folder in ("datasets", "trainers")
        for path in sorted((ROOT / "configs" / folder).rglob("*.yaml"))
        for key in leaves(yaml.safe_load(path.read_text(encoding="utf-8")))
    ]


def test_keys_in_shipped_yaml_files_are_declared():
    known = set(leaves(default_config()))
    assert len(shipped_keys()) > 200
    assert [(path, key) for path, key in shipped_keys() if key not in known] == []


def test_keys_in_shipped_yaml_files_belong_to_their_trainer():
    wrong = []
    for path, key in shipped_keys():
        parts = Path(path).parts
        if parts[1] == "trainers" and key.startswith("TRAINER.") and key.split(".")[1] != parts[2].upper():
            wrong.append((path, key))
    assert wrong == []


@pytest.mark.parametrize("pattern", ["scripts/**/*.sh", "docs/*.md", "README.md", "configs/sweeps/*.yaml"])
def test_keys_that_scripts_and_pages_name_exist(pattern):
    cfg = default_config()
    known = set(leaves(cfg))
    known |= {key.rpartition(".")[0] for key in known} | {f"TRAINER.{name}" for name in cfg.TRAINER}
    tops = "|".join(name for name in cfg if isinstance(cfg[name], dict))
    named = {
        (path.name, match)
        for path in ROOT.glob(pattern)
        for match in re.findall(rf"(?<![\w.])((?:{tops})(?:\.[A-Z][A-Z0-9_]*)+)\b", path.read_text(encoding="utf-8"))
    }
    example = {"TRAINER.MINE", "TRAINER.NODE"}  # pages on adding a method show nodes of their own
    unknown = sorted((file, key) for file, key in named if key not in known)
    assert [pair for pair in unknown if not any(pair[1].startswith(name) for name in example)] == []


# ----------------------------------------------------------------------------------------------------- real runs


class Recorder:
    """Notes which keys the modules of some rooms read while it is in force."""

    def __init__(self):
        self.keys: set[str] = set()
        self._paths: dict[int, tuple[str, CfgNode]] = {}  # the nodes themselves are kept, so that no number comes twice

    def note(self, node: CfgNode, name: str, value: object, file: str) -> None:
        """One read of `name` from `node` by a line in `file`."""
        if "VERSION" in node and "OPTIM" in node:
            self._paths[id(node)] = ("", node)
        if id(node) not in self._paths:
            return
        key = f"{self._paths[id(node)][0]}{name}"
        if isinstance(value, CfgNode):
            self._paths[id(value)] = (f"{key}.", value)
        elif any(f"/{room}/" in file for room in ("trainers", "clip", "optim", "engine")):
            self.keys.add(key)


@pytest.fixture
def recorder(monkeypatch):
    """A recorder of what is read by attribute or subscript from any configuration."""
    recorder = Recorder()

    def by_name(self, name):
        if name not in self:
            raise AttributeError(name)
        value = dict.__getitem__(self, name)
        recorder.note(self, name, value, inspect.currentframe().f_back.f_code.co_filename)
        return value

    def by_subscript(self, name):
        value = dict.__getitem__(self, name)
        recorder.note(self, name, value, inspect.currentframe().f_back.f_code.co_filename)
        return value

    monkeypatch.setattr(CfgNode, "__getattr__", by_name)
    monkeypatch.setattr(CfgNode, "__getitem__", by_subscript, raising=False)
    return recorder


CHANGED = {
    "OPTIM.NAME": "rmsprop",
    "OPTIM.MAX_EPOCH": "1",
    "OPTIM.LR_SCHEDULER": "cosine",
    "OPTIM.LR": "0.01",
    "DATALOADER.TRAIN_X.BATCH_SIZE": "6",
}
OWN = {
    "CLIPLoRA": ["TRAINER.CLIPLORA.STEPS_PER_SHOT", "0"],
    "CLAP": ["TRAINER.CLAP.MAX_STEPS", "4", "TRAINER.CLAP.CHECK_EVERY", "2", "TRAINER.CLAP.LATENT_DIM", "4"],
    "GOPro": ["TRAINER.GOPRO.CTX_INIT", "a", "TRAINER.GOPRO.SHIFT_SCALE", "auto:2"],
    "MaPLe": ["TRAINER.MAPLE.PROMPT_DEPTH", "2"],
    "PromptSRC": ["TRAINER.PROMPTSRC.PROMPT_DEPTH_TEXT", "2", "TRAINER.PROMPTSRC.PROMPT_DEPTH_VISION", "2"],
}
# Keys of a trainer's node that a plain run of it does not come to, and what reads them.
NOT_REACHED = {
    "TASKS": "the command of the scripts",
    "ATTACK_IMAGES": "runs with ATTACKS",
    "NC_PER_BATCH": "runs with the template set NC",
    "NC_STD": "runs with the template set NC",
    "IMAGE_FOLDER": "runs with MODALITY image",
    "IMAGE_VIEWS": "runs with MODALITY image",
    "SINKHORN_ITERATIONS": "runs with MARGINAL uniform",
    "RENEW": "runs of the task online",
}


@pytest.fixture
def tiny_run(tmp_path, tiny_clip, domain_tree, capsys):
    """`tiny_run(trainer, *pairs)` runs the command line on the small tree; gives what it wrote to the console."""

    def go(trainer, *pairs):
        data = tmp_path / "data.yaml"
        data.write_text("DATASET: {NAME: FolderDomains}")
        words = ["--trainer", trainer, "--dataset-config-file", str(data), "--root", str(domain_tree), "--seed", "1"]
        words += ["--output-dir", str(tmp_path / "run"), "--source-domains", "art", "--target-domains", "sketch"]
        words += ["MODEL.BACKBONE.NAME", f"local-dir:{tiny_clip}", "DATALOADER.NUM_WORKERS", "0"]
        code = train.main([*words, "DATASET.NUM_SHOTS", "2", *OWN.get(trainer, []), *pairs])
        output = capsys.readouterr()
        text = output.out + output.err
        assert code == 0, text[-3000:]
        return text

    return go


@pytest.mark.parametrize("name", OURS)
def test_runs_read_what_they_use_and_warn_of_what_they_do_not(name, recorder, tiny_run, monkeypatch):
    kind = TRAINER_REGISTRY.get(name)
    text = tiny_run(name, *(word for pair in CHANGED.items() for word in pair))
    ours = {key for key in recorder.keys if key.startswith(f"TRAINER.{name.upper()}.")}
    assert {
        key for key in leaves(default_config()["TRAINER"][name.upper()]) if f"TRAINER.{name.upper()}.{key}" not in ours
    } <= NOT_REACHED.keys()

    warning = next((line for line in text.splitlines() if f"{name} ignores" in line), "")
    for key, value in CHANGED.items():
        unused = key not in kind.used_keys and any(
            key == node or key.startswith(f"{node}.") for node in kind.unused_keys
        )
        assert (f"{key} {value}" in warning) == unused, f"{key}: {warning or 'no warning'}"
    # The optimiser's keys are read if, and only if, the trainer says so.
    read = {key for key in recorder.keys if key.startswith("OPTIM.")} - {"OPTIM.MAX_EPOCH"}
    assert not read & set(kind.unused_keys)
    if "OPTIM" in kind.unused_keys:
        assert read == {key for key in kind.used_keys if key.startswith("OPTIM.")}
    else:
        usual = {"OPTIM.NAME", "OPTIM.LR", "OPTIM.WEIGHT_DECAY", "OPTIM.LR_SCHEDULER", "OPTIM.WARMUP_EPOCH"}
        assert usual - set(kind.unused_keys) <= read


def test_defaults_and_the_models_own_input_are_no_reason_to_warn(tiny_run):
    text = tiny_run("ZeroshotCLIP", "OPTIM.LR", "0.0003", "INPUT.SIZE", "(32, 32)")
    assert "ignores" not in text


def test_another_input_than_the_models_is_said(tiny_run):
    text = tiny_run("ZeroshotCLIP", "INPUT.SIZE", "(64, 64)")
    assert "ignores INPUT.SIZE (64, 64) (it takes (32, 32))" in text
