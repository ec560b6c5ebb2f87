"""Archives: unpacking beside the file, printed lines, members that would leave the folder, checksums, refusals."""

import hashlib
import io
import sys
import tarfile
import types
import zipfile
from contextlib import suppress
from pathlib import Path

import pytest

from dassl.data.datasets import DatasetBase


def zip_of(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def tar_of(members: dict[str, bytes], mode: str) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


@pytest.fixture
def serve(monkeypatch):
    """Puts a package gdown in place that serves the given bytes."""

    def put(content: bytes):
        module = types.ModuleType("gdown")
        module.download = lambda url, dst, quiet: Path(dst).write_bytes(content)
        monkeypatch.setitem(sys.modules, "gdown", module)

    return put


@pytest.fixture
def dataset():
    return DatasetBase.__new__(DatasetBase)


@pytest.mark.parametrize("ending", [".zip", ".tar", ".tar.gz"])
def test_archives_are_unpacked_beside_the_file(serve, dataset, tmp_path, capsys, ending):
    members = {"data/a.txt": b"1", "data/deep/b.txt": b"2"}
    serve(zip_of(members) if ending == ".zip" else tar_of(members, "w:gz" if ending == ".tar.gz" else "w"))
    dataset.download_data("address", str(tmp_path / "new" / f"x{ending}"), from_gdrive=True)
    assert (tmp_path / "new" / "data" / "deep" / "b.txt").read_bytes() == b"2"
    assert capsys.readouterr().out.splitlines() == ["Extracting file ...", f"File extracted to {tmp_path / 'new'}"]


@pytest.mark.parametrize("name", ["../outside.txt", "/tmp/toolbox_outside.txt", "data/../../outside.txt"])
@pytest.mark.parametrize("ending", [".zip", ".tar"])
def test_members_cannot_leave_the_folder(serve, dataset, tmp_path, name, ending):
    serve(zip_of({name: b"x"}) if ending == ".zip" else tar_of({name: b"x"}, "w"))
    folder = tmp_path / "inner"
    with suppress(ValueError, tarfile.TarError):
        dataset.download_data("address", str(folder / f"x{ending}"))
    assert not (tmp_path / "outside.txt").exists() and not Path("/tmp/toolbox_outside.txt").exists()


def test_checksums(serve, dataset, tmp_path):
    content = zip_of({"a": b"1"})
    serve(content)
    dataset.download_data("address", str(tmp_path / "x.zip"), sha256=hashlib.sha256(content).hexdigest())
    with pytest.raises(ValueError, match="checksum"):
        dataset.download_data("address", str(tmp_path / "x.zip"), sha256="0" * 64)


def test_8_6_cut_files_and_web_pages_are_not_kept(serve, dataset, tmp_path):
    """Row 8.6: the archive has its name only when it is whole."""
    serve(b"\n<!DOCTYPE html><html>Quota exceeded</html>")
    with pytest.raises(ValueError, match="address gave a web page in place of the archive"):
        dataset.download_data("address", str(tmp_path / "x.zip"))
    with pytest.raises(ValueError, match="checksum"):
        serve(b"PK cut")
        dataset.download_data("address", str(tmp_path / "x.zip"), sha256="0" * 64)
    assert not (tmp_path / "x.zip").exists()


@pytest.mark.parametrize("ending", [".zip", ".tar", ".tar.gz"])
def test_8_6_of_a_damaged_archive_nothing_stays(serve, dataset, tmp_path, ending):
    """Row 8.6: neither its name, nor half of the data set, which the next run would take for all of it."""
    members = {f"data/{number}.bin": bytes([65 + number]) * 3000 for number in range(4)}
    content = zip_of(members) if ending == ".zip" else tar_of(members, "w:gz" if ending == ".tar.gz" else "w")
    changed = content.replace(b"D" * 3000, b"D" * 2999 + b"E")  # of another checksum than the archive says
    serve(changed if ending == ".zip" else content[: 2 * len(content) // 3])
    (tmp_path / "kept.txt").touch()
    with pytest.raises(ValueError, match="cannot be unpacked"):
        dataset.download_data("address", str(tmp_path / f"x{ending}"))
    assert not (tmp_path / "data").exists() and not (tmp_path / f"x{ending}").exists()
    assert (tmp_path / "kept.txt").exists()


def test_refusals(serve, dataset, tmp_path, monkeypatch):
    serve(b"")
    with pytest.raises(NotImplementedError, match=r"x\.rar"):
        dataset.download_data("address", str(tmp_path / "x.rar"))
    with pytest.raises(NotImplementedError, match="Google Drive"):
        dataset.download_data("address", str(tmp_path / "x.zip"), from_gdrive=False)
    monkeypatch.setitem(sys.modules, "gdown", None)
    with pytest.raises(ModuleNotFoundError, match="pip install gdown"):
        dataset.download_data("address", str(tmp_path / "x.zip"))
