"""The wheels of both distributions; and no toolbox gives one sentence.

Covers: the plugin's wheel holds every package with its data, and none of the checkout's other folders; a second build
has the same bytes; `twine check` has no remark; the description names every method; the extra `toolbox` is the other
distribution.
"""

import email
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from dassl_clip.engine import catalogue

ROOT = Path(__file__).resolve().parents[1]
ROOMS = (
    "clip",
    "engine",
    "trainers",
    "datasets",
    "results",
    "experiments",
    "checks",
    "api",
    "cli",
    "embedded",
    "configs",
)
DISTRIBUTIONS = {"dassl-clip": ".", "dassl-toolbox-embedded": "toolbox"}  # folder of each
EPOCH = "1700000000"  # a release sets the time of its commit


def build(folder, place, pip=True):
    """The wheel that `pip wheel`, or what it calls, makes of the tracked files of a folder."""
    pytest.importorskip("setuptools", minversion="77")  # of `toolbox/pyproject.toml`
    tracked = subprocess.run(["git", "-C", ROOT / folder, "ls-files", "-z"], capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a git checkout: which files belong to it is not known")
    for name in filter(None, tracked.stdout.split("\0")):
        if (ROOT / folder / name).is_file():
            (place / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            (place / "source" / name).write_bytes((ROOT / folder / name).read_bytes())
    command = [sys.executable, "-c", "from setuptools import build_meta; build_meta.build_wheel('..')"]
    if pip:
        command = [sys.executable, *["-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", "..", "."]]
    subprocess.run(command, cwd=place / "source", check=True, env=os.environ | {"SOURCE_DATE_EPOCH": EPOCH})
    (path,) = place.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    return {name: build(folder, tmp_path_factory.mktemp(name)) for name, folder in DISTRIBUTIONS.items()}


@pytest.fixture(scope="module")
def wheel(wheels):
    with zipfile.ZipFile(wheels["dassl-clip"]) as archive:
        return set(archive.namelist())


def metadata(path):
    with zipfile.ZipFile(path) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return email.message_from_bytes(archive.read(name))


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_a_second_build_has_the_same_bytes(name, wheels, tmp_path):
    again = build(DISTRIBUTIONS[name], tmp_path / "elsewhere", pip=False)
    assert again.name == wheels[name].name and again.read_bytes() == wheels[name].read_bytes()
    with zipfile.ZipFile(again) as archive:
        assert {info.date_time for info in archive.infolist()} == {(2023, 11, 14, 22, 13, 20)}


def test_twine_has_no_remark(wheels):
    pytest.importorskip("twine")
    command = [sys.executable, "-m", "twine", "check", "--strict", *wheels.values()]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count("PASSED") == 2 and "warning" not in done.stdout, done.stdout


def test_the_description_names_every_method(wheels):
    summary = metadata(wheels["dassl-clip"])["Summary"]
    assert summary.split(": ")[1].split(", ") == catalogue.trainer_names() and len(summary) <= 512  # PyPI's limit


def test_the_extra_toolbox_is_the_other_distribution(wheels):
    (wanted,) = (
        line for line in metadata(wheels["dassl-clip"]).get_all("Requires-Dist") if 'extra == "toolbox"' in line
    )
    toolbox = metadata(wheels["dassl-toolbox-embedded"])
    assert wanted.split(";")[0] == f"{toolbox['Name']}>={toolbox['Version']}"


def test_every_tracked_file_of_a_room_is_in_the_wheel(wheel):
    tracked = subprocess.run(["git", "-C", ROOT, "ls-files", "-z", *ROOMS], capture_output=True, text=True, check=True)
    expected = {f"dassl_clip/{name}" for name in filter(None, tracked.stdout.split("\0")) if (ROOT / name).is_file()}
    assert expected - wheel == set()
    assert {"dassl_clip/py.typed", *(f"dassl_clip/{room}/py.typed" for room in ROOMS)} - wheel == set()


def test_the_wheel_holds_nothing_else(wheel):
    tops = {name.split("/")[0] for name in wheel if ".dist-info/" not in name}
    assert tops == {"dassl_clip"}
    inside = {name.split("/")[1] for name in wheel if name.startswith("dassl_clip/")}
    assert inside == {*ROOMS, "__init__.py", "py.typed"}


@pytest.mark.parametrize("room", ["datasets", "trainers"])
def test_without_a_toolbox_one_sentence_says_what_to_install(room):
    program = (
        "import sys, importlib.abc\n"
        "class Hide(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] == 'dassl': raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Hide())\n"
        f"import dassl_clip.{room}\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and last.startswith("ModuleNotFoundError: ") and "pip install ./toolbox" in last
