"""The wheel holds every room with its data, and none of the checkout's other folders; no toolbox gives one sentence."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("clip", "engine", "trainers", "datasets", "results", "experiments", "api", "cli", "embedded", "configs")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    pytest.importorskip("setuptools", minversion="70")
    place = tmp_path_factory.mktemp("wheel")
    tracked = subprocess.run(["git", "-C", ROOT, "ls-files", "-z"], capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a git checkout: which files belong to it is not known")
    source = place / "source"
    for name in filter(None, tracked.stdout.split("\0")):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", place, source]
    subprocess.run(build, check=True)
    (path,) = place.glob("dassl_clip-*.whl")
    with zipfile.ZipFile(path) as archive:
        return set(archive.namelist())


def test_every_tracked_file_of_a_room_is_in_the_wheel(wheel):
    tracked = subprocess.run(["git", "-C", ROOT, "ls-files", "-z", *ROOMS], capture_output=True, text=True, check=True)
    expected = {f"dassl_clip/{name}" for name in filter(None, tracked.stdout.split("\0")) if (ROOT / name).is_file()}
    assert expected - wheel == set()


def test_the_wheel_holds_nothing_else(wheel):
    tops = {name.split("/")[0] for name in wheel if ".dist-info/" not in name}
    assert tops == {"dassl_clip"}
    assert {name.split("/")[1] for name in wheel if name.startswith("dassl_clip/")} == {*ROOMS, "__init__.py"}


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
