"""`dassl-clip doctor`: one line per check with its fix, and an exit code that scripts can use.

Covered: a whole run on this machine; each thing that can be wrong, made so: no toolbox, old or missing packages,
weights that are not there, unknown backbones, data folders, folders that cannot be written to, a full disk, missing
extras; a check that stumbles.
"""

import importlib.metadata
import importlib.util
import os
import re
import shutil
import sys
from pathlib import Path

import pytest

from dassl_clip.cli import doctor


def arguments(*words):
    return doctor.build_parser().parse_args(words)


def found(check, *words):
    return list(check(arguments(*words)))


def test_this_machine_can_run(tmp_path, tiny_clip, capsys):
    assert doctor.main(["--out", str(tmp_path / "new" / "output"), "--backbone", f"local-dir:{tiny_clip}"]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert len(lines) > 12 and all(re.match(r"(ok   |warn ) \S", line) for line in lines)
    text = "\n".join(lines)
    for part in (
        "Python 3.", "dassl-clip ", "torch 2.", "open_clip_torch ", "Dassl toolbox: ", "trainers, ", "CPU: ",
        "embedded model IconsCLIP (weights ", f"weights of local-dir:{tiny_clip}", "embedded data set Icons: ",
        f"output folder {tmp_path / 'new' / 'output'}: can be written", "GiB free", "MiB cached", "matplotlib",
    ):  # fmt: skip
        assert part in text, part
    assert not (tmp_path / "new").exists() and all("  ->  " in line for line in lines if line.startswith("warn"))
    ok, warnings = sum(line.startswith("ok") for line in lines), doctor.count(text.count("warn "), "warning")
    assert last == f"{ok} ok, {warnings}, 0 errors"


def test_a_failure_is_the_exit_code(tmp_path, capsys):
    assert doctor.main(["--data", str(tmp_path / "nowhere"), "--backbone", "IconsCLIP"]) == 1
    told = capsys.readouterr().out
    assert f"fail  there is no data folder {tmp_path / 'nowhere'}  ->  give --data" in told and "1 error\n" in told


def test_a_check_that_stumbles_is_a_finding():
    def _broken_thing(args):
        yield doctor.Finding("ok", "first")
        raise RuntimeError("no such\ndevice")

    def after(args):
        yield doctor.Finding("ok", "second")

    levels = [(item.level, item.what) for item in doctor.examine(arguments(), [_broken_thing, after])]
    assert levels == [("ok", "first"), ("fail", "broken thing: RuntimeError: no such device"), ("ok", "second")]


def test_no_toolbox(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "dassl" else find(name, *rest))
    (finding,) = found(doctor.toolbox)
    assert finding.level == "fail" and "pip install ./toolbox" in finding.fix


def test_old_and_missing_packages(monkeypatch):
    version = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2.3.9+cu118" if name == "torch" else version(name))
    monkeypatch.setitem(sys.modules, "open_clip", None)
    levels = {item.what.split(" ")[0].rstrip(":"): item for item in found(doctor.packages)}
    assert levels["torch"].level == "fail" and levels["torch"].fix == "pip install 'torch>=2.4'"
    assert levels["open_clip_torch"].level == "fail" and "open_clip_torch>=3.1" in levels["open_clip_torch"].fix
    assert levels["numpy"].level == "ok"


def test_what_doctor_wants_is_what_setup_asks_for():
    text = (Path(__file__).resolve().parents[2] / "setup.py").read_text(encoding="utf-8").lower()
    for name, least in doctor.LEAST.items():
        assert f'"{name}>={least}"' in text
    for package, extra, _ in doctor.EXTRAS.values():
        assert re.search(rf'"{extra}": \[[^\]]*"{package}', text), package


@pytest.mark.parametrize("text, parts", [("2.14.1+cu130", (2, 14, 1)), ("10.0rc1", (10, 0)), ("3.dev1", (3,))])
def test_versions_compare_as_numbers(text, parts):
    assert doctor.numbers(text)[: len(parts)] == parts
    assert doctor.numbers("2.10") > doctor.numbers("2.9.1")


def test_weights_on_the_disk_and_not(tmp_path, monkeypatch, tiny_clip):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert doctor.weights("RN50").level == "warn" and "MODEL.BACKBONE.WEIGHTS" in doctor.weights("RN50").fix
    (tmp_path / ".cache" / "clip").mkdir(parents=True)
    (tmp_path / ".cache" / "clip" / "RN50.pt").touch()
    assert doctor.weights("RN50") == doctor.Finding("ok", f"weights of RN50: {tmp_path}/.cache/clip/RN50.pt")
    assert doctor.weights("hf-hub:nobody/nothing").level == "warn"
    assert doctor.weights("IconsCLIP").level == "ok"
    unknown = doctor.weights("ViTB/16")
    assert unknown.level == "fail" and "Did you mean 'ViT-B/16'" in unknown.what
    assert doctor.weights(f"local-dir:{tmp_path / 'x'}").level == "fail"


def test_data_folders(tmp_path):
    (tmp_path / "PACS" / "photo").mkdir(parents=True)
    (tmp_path / "oxford_pets").mkdir()
    first, second = found(doctor.data, "--data", str(tmp_path))
    assert re.fullmatch(r"embedded data set Icons: 2,\d{3} images \(.*\)", first.what)
    assert second.level == "ok" and "PACS (PACS)" in second.what and "OxfordPets (oxford_pets)" in second.what
    (tmp_path / "none").mkdir()
    assert found(doctor.data, "--data", str(tmp_path / "none"))[1].level == "warn"


def test_folders_that_cannot_be_written_to(tmp_path, monkeypatch):
    def refuse(*args, **named):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    monkeypatch.setenv("DASSL_CLIP_CACHE", str(tmp_path / "cache"))
    out, cache = found(doctor.disk, "--out", str(tmp_path / "out"))
    assert out.level == "fail" and "Permission denied" in out.what and "--out" in out.fix
    assert cache.level == "warn" and "DASSL_CLIP_CACHE" in cache.fix


def test_little_room_and_the_size_of_the_cache(tmp_path, monkeypatch):
    (tmp_path / "cache" / "features").mkdir(parents=True)
    (tmp_path / "cache" / "features" / "x.npy").write_bytes(b"0" * 3 * 2**20)
    monkeypatch.setenv("DASSL_CLIP_CACHE", str(tmp_path / "cache"))
    assert "3.0 MiB cached" in found(doctor.disk)[1].what
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=2**30))
    low = found(doctor.disk, "--out", str(tmp_path))[0]
    assert low.level == "warn" and "1.0 GiB free" in low.what and "free some" in low.fix
    monkeypatch.setenv("DASSL_CLIP_CACHE", "off")
    assert "not cached" in found(doctor.disk)[1].what


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_rights(tmp_path):
    tmp_path.chmod(0o500)
    assert found(doctor.disk, "--out", str(tmp_path / "out"))[0].level == "fail"


def test_extras(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "sklearn" else find(name, *rest)
    )
    (missing,) = [item for item in found(doctor.extras) if item.what.startswith("scikit-learn")]
    assert missing.level == "warn" and missing.fix == "pip install 'dassl-clip[plots]'"
