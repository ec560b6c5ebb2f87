"""Which package may import which: the arrows of the architecture, read from the syntax trees of all modules.

Covers: imports between packages (at any depth, inside functions too); no package that imports the tests or
benchmarks; the toolbox knows nothing of the plugin; no circles between modules at import time; imports inside a package
are relative; third-party packages are those that `setup.py` (or the toolbox's own file) states; the map in
docs/contributing.md says the same, and the files and names that it points to exist; no method is named in what runs all
methods; and the reader of imports itself, on forbidden ones.
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PLUGIN, TOOLBOX = "dassl_clip", "dassl"
MAY_IMPORT = {
    "clip": {"results"},
    "results": set(),
    "datasets": {"embedded", "results", TOOLBOX},
    "engine": {"clip", "results", "configs", TOOLBOX},
    "trainers": {"clip", "engine", "results", TOOLBOX},
    "experiments": {"clip", "engine", "results", "configs", TOOLBOX},
    "api": {"engine", "results", "datasets"},
    "checks": {"engine", "experiments", "results", "embedded", TOOLBOX},
    "cli": {"checks", "clip", "engine", "results", "experiments", "trainers", "datasets"}
    | {"embedded", "configs", TOOLBOX},
    "embedded": set(),
    "configs": set(),
    "tools": {"embedded", "results"},
    "toolbox": {TOOLBOX},
}
# These spell the names of their own modules in full: cli/ is run as a program.
SPELLS_ITS_NAME = {"cli", "embedded", "toolbox"}
# Import names that are not those of the distributions that setup.py states, and packages that come with one of them.
DISTRIBUTIONS = {
    "PIL": "pillow",
    "yaml": "pyyaml",
    "sklearn": "scikit-learn",
    "umap": "umap-learn",
    "open_clip": "open-clip-torch",
    "resvg_py": "resvg-py",
    "huggingface_hub": "open-clip-torch",
}
# Packages that are asked for when they are there, and whose absence a sentence explains.
ON_REQUEST = {"wandb"}

# Files that still name a method, though they run any: one that no longer does leaves the list.
NAMES_A_METHOD = {
    "engine": [],
    "experiments": [],
    "results": ["bands.py", "domainbed.py"],  # DomainBed calls its baseline ERM, too
    "checks": [],
    "cli": [],
}

FILES = {
    room: sorted(path for path in (ROOT / room).rglob("*.py") if "tools" not in path.relative_to(ROOT / room).parts)
    for room in MAY_IMPORT
}
FILES["tools"] = sorted((ROOT / "tools" / "build_icons").glob("*.py"))  # single scripts may import anything
MODULES = [(room, path) for room, paths in FILES.items() for path in paths]


def package_of(room: str, path: Path) -> list[str]:
    """The package that a module lies in, as parts of its name."""
    inside = list(path.relative_to(ROOT / room).parts[:-1])
    return inside if room == "toolbox" else [PLUGIN, room, *inside]


def imports(source: str, package: list[str], top_only: bool = False) -> Iterator[tuple[str, bool]]:
    """The full names of all modules (or names in them) that a source text imports, and whether relatively."""
    tree = ast.parse(source)
    nodes = top_level(tree) if top_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from ((alias.name, False) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((f"{stem}.{alias.name}", bool(node.level)) for alias in node.names)


def top_level(tree: ast.Module) -> Iterator[ast.stmt]:
    """The statements that run when a module is imported, those under `if TYPE_CHECKING` left out."""
    waiting: list[ast.AST] = list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.stmt):
            yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.expr):
            waiting += ast.iter_child_nodes(node)


def forbidden(room: str, source: str, package: list[str]) -> list[str]:
    """What a module of `room` imports and may not."""
    found = []
    for name, _ in imports(source, package):
        first, *rest = name.split(".")
        other = rest[0] if first == PLUGIN and rest else first
        to_another_room = first == PLUGIN and other != room and other not in MAY_IMPORT[room]
        to_the_toolbox = first == TOOLBOX and room != "toolbox" and TOOLBOX not in MAY_IMPORT[room]
        if to_another_room or to_the_toolbox or first in ("tests", "benchmarks", "conftest", *MAY_IMPORT):
            found.append(name)
    return found


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_rooms_import_only_what_they_may(room):
    assert FILES[room], f"the room {room} has no modules"
    wrong = {}
    for path in FILES[room]:
        names = forbidden(room, path.read_text(encoding="utf-8"), package_of(room, path))
        if names:
            wrong[str(path.relative_to(ROOT))] = names
    assert wrong == {}


@pytest.mark.parametrize(
    ("room", "line"),
    [
        ("clip", "from dassl_clip.engine.trainer import CLIPTrainer"),
        ("clip", "def late():\n    from dassl.engine import TrainerX"),
        ("clip", "from ..datasets import spec"),
        ("results", "import dassl_clip.clip.losses"),
        ("trainers", "from dassl_clip.datasets import options"),
        ("trainers", "if True:\n    from dassl_clip import cli"),
        ("datasets", "from dassl_clip.trainers import coop"),
        ("embedded", "from tools.build_icons import store"),
        ("toolbox", "from dassl_clip.clip import losses"),
        ("trainers", "from clip.losses import nt_xent"),
        ("cli", "from tests.conftest import anything"),
    ],
)
def test_forbidden_arrows_are_seen(room, line):
    assert forbidden(room, line, ["dassl"] if room == "toolbox" else [PLUGIN, room])


@pytest.mark.parametrize(
    ("room", "line"),
    [
        ("trainers", "from dassl_clip.clip.losses import nt_xent"),
        ("engine", "from .features import FeatureStore"),
        ("clip", "import torch\nfrom .losses import nt_xent"),
        ("datasets", "from dassl.data.datasets import DatasetBase"),
    ],
)
def test_allowed_arrows_pass(room, line):
    assert forbidden(room, line, [PLUGIN, room]) == []


@pytest.mark.parametrize("room", [room for room in MAY_IMPORT if room not in SPELLS_ITS_NAME])
def test_imports_inside_a_room_are_relative(room):
    spelled = [
        f"{path.name}: {name}"
        for path in FILES[room]
        for name, relative in imports(path.read_text(encoding="utf-8"), package_of(room, path))
        if not relative and name.startswith(f"{PLUGIN}.{room}.")
    ]
    assert spelled == []


@pytest.mark.parametrize("room", NAMES_A_METHOD)
def test_what_runs_all_methods_names_none(room):
    import dassl_clip.trainers  # noqa: F401
    from dassl.engine import TRAINER_REGISTRY

    registry = {name: TRAINER_REGISTRY.get(name).__module__ for name in TRAINER_REGISTRY.registered_names()}
    ours = [name for name, module in registry.items() if module.startswith(PLUGIN)]
    assert len(ours) >= 6
    words = re.compile(rf"\b({'|'.join(ours)}|ALPHA|alpha(?!=0\.))\b")  # alpha=0.2 is an opacity of matplotlib
    naming = {
        path.relative_to(ROOT / room).as_posix()
        for path in FILES[room]
        if words.search(path.read_text(encoding="utf-8"))
    }
    assert sorted(naming) == NAMES_A_METHOD[room]


@pytest.mark.parametrize("which", ["plugin", "toolbox"])
def test_no_circles_at_import_time(which):
    names = {}
    for room, path in MODULES:
        if (room == "toolbox") == (which == "toolbox"):
            package = package_of(room, path)
            names[".".join(package + ([] if path.stem == "__init__" else [path.stem]))] = (path, package)
    arrows = {
        name: {
            target
            for full, _ in imports(path.read_text(encoding="utf-8"), package, top_only=True)
            for target in (full, full.rpartition(".")[0])
            # A package's own __init__ is already being imported when one of its modules is.
            if target in names and target != name and not name.startswith(f"{target}.")
        }
        for name, (path, package) in names.items()
    }
    assert circle(arrows) == []


def circle(arrows: dict[str, set[str]]) -> list[str]:
    """Modules that cannot be put in an order in which each comes after what it imports."""
    left = dict(arrows)
    while free := [name for name, targets in left.items() if not targets & left.keys()]:
        for name in free:
            del left[name]
    return sorted(left)


def test_circles_are_seen():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}, "e": set()}) == ["a", "b", "c", "d"]


def stated(*files: str) -> set[str]:
    """The distributions that files name with a lower bound, in one spelling."""
    text = "".join((ROOT / file).read_text(encoding="utf-8") for file in files)
    return {name.lower().replace("_", "-") for name in re.findall(r'"([A-Za-z_.-]+)>=', text)}


@pytest.mark.parametrize(("rooms", "file"), [(set(MAY_IMPORT) - {"toolbox"}, "setup.py"), ({"toolbox"}, None)])
def test_third_party_packages_are_stated(rooms, file):
    known = stated(file or "toolbox/pyproject.toml")
    unknown = {}
    for room, path in MODULES:
        if room not in rooms:
            continue
        for name, relative in imports(path.read_text(encoding="utf-8"), package_of(room, path)):
            first = name.split(".")[0]
            if relative or first in sys.stdlib_module_names or first in (PLUGIN, TOOLBOX) or first in ON_REQUEST:
                continue
            if DISTRIBUTIONS.get(first, first).lower().replace("_", "-") not in known:
                unknown.setdefault(first, []).append(str(path.relative_to(ROOT)))
    assert unknown == {}


def test_the_map_of_the_code_shows_the_same_arrows():
    text = (ROOT / "docs" / "contributing.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)/` \|[^|]*\|([^|]*)\|$", text, flags=re.MULTILINE)
    shown = {room: set(re.findall(r"`(\w+)`", cell)) for room, cell in rows if room in MAY_IMPORT}
    assert shown == {room: targets - {room} for room, targets in MAY_IMPORT.items() if room != "toolbox"} | {
        "toolbox": set()
    }


def test_the_map_of_the_code_names_what_is_there():
    text = (ROOT / "docs" / "contributing.md").read_text(encoding="utf-8")
    table = text.partition("## Where does")[2].partition("\n## ")[0]
    named = re.findall(r"`(\w+/\w+\.py)`((?:(?: and)? `\w+`)*)", table)
    assert len(named) > 40
    wrong = []
    for file, symbols in named:
        path = ROOT / file
        tree = ast.parse(path.read_text(encoding="utf-8")) if path.is_file() else ast.Module([], [])
        there = {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.ClassDef)}
        missing = [symbol for symbol in re.findall(r"`(\w+)`", symbols) if symbol not in there]
        if not path.is_file() or missing:
            wrong.append((file, missing))
    assert wrong == []
