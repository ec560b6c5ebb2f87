"""Fetching and unpacking, from a server on this machine.

Covers: a whole file, one that was begun (with and without a server that can go on), one that is there already,
checksums, web pages in place of files, errors of the server, archives (zip, tar, tgz) and members that would leave the
folder, links and devices, of which nothing is written, damaged archives, which addresses are files.
"""

import hashlib
import io
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from dassl_clip.datasets.fetch import fetch, is_file, unpack

CONTENT = bytes(range(256)) * 5000
MD5 = hashlib.md5(CONTENT).hexdigest()


@pytest.fixture(scope="module")
def server():
    class Handler(BaseHTTPRequestHandler):
        asked: list = []

        def do_GET(self):
            start = int((self.headers.get("Range") or "bytes=0-")[6:-1])
            self.asked.append((self.path, start))
            if "none" in self.path:
                return self.send_error(404)
            body = b"<!DOCTYPE html><html>quota</html>" if "page" in self.path else CONTENT
            partial = start and "whole" not in self.path
            if partial and start >= len(body):
                return self.send_error(416)
            body = body[start:] if partial else body
            self.send_response(206 if partial else 200)
            self.send_header("Content-Length", str(len(body) + (99 if "short" in self.path else 0)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *words):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        running.asked, running.address = Handler.asked, f"http://127.0.0.1:{running.server_port}"
        yield running
        running.shutdown()


def test_a_whole_file_and_one_that_is_there(server, tmp_path):
    told = []
    path = fetch(f"{server.address}/a.zip?x=1", tmp_path / "new", MD5, lambda there, total: told.append((there, total)))
    assert path == tmp_path / "new/a.zip" and path.read_bytes() == CONTENT
    assert told[-1] == (len(CONTENT), len(CONTENT)) and [p.name for p in path.parent.iterdir()] == ["a.zip"]
    server.asked.clear()
    assert fetch(f"{server.address}/a.zip", tmp_path / "new", MD5) == path and server.asked == []
    path.write_bytes(b"other")
    with pytest.raises(ValueError, match=r"a.zip has the md5 .*, published is .*: it is damaged or another file"):
        fetch(f"{server.address}/a.zip", tmp_path / "new", MD5)


@pytest.mark.parametrize("name", ["b.zip", "whole.zip"])
@pytest.mark.parametrize("size", [1000, len(CONTENT)])
def test_a_file_that_was_begun(name, size, server, tmp_path):
    (tmp_path / f"{name}.part").write_bytes(CONTENT[:size])
    server.asked.clear()
    assert fetch(f"{server.address}/{name}", tmp_path, MD5).read_bytes() == CONTENT
    assert server.asked == [(f"/{name}", size)]


def test_what_servers_do(server, tmp_path):
    with pytest.raises(ValueError, match=r"none.zip could not be fetched \(HTTP Error 404"):
        fetch(f"{server.address}/none.zip", tmp_path)
    with pytest.raises(ValueError, match=r"page.zip gave a web page in place of the file; open it in a browser"):
        fetch(f"{server.address}/page.zip", tmp_path)
    with pytest.raises(ValueError, match=r"c.zip.part has the md5"):
        fetch(f"{server.address}/c.zip", tmp_path, "0" * 32)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match=r"short.zip could not be fetched .* the same command goes on from .*part"):
        fetch(f"{server.address}/short.zip", tmp_path)
    assert (tmp_path / "short.zip.part").read_bytes() == CONTENT


def make(path, entries):
    """An archive of names with their content; None is a symbolic link, a number another type of tar's."""
    if path.name.endswith(".zip"):
        with zipfile.ZipFile(path, "w") as file:
            for name, content in entries:
                info = zipfile.ZipInfo(name)
                if content is None:
                    info.external_attr, content = 0o120777 << 16, b"/etc/passwd"
                file.writestr(info, content)
        return path
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as file:
        for name, content in entries:
            info = tarfile.TarInfo(name)
            if content is None:
                info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            elif isinstance(content, int):
                info.type, info.linkname, content = str(content).encode(), "a/1.jpg", None
            else:
                info.size = len(content)
            file.addfile(info, io.BytesIO(content) if content else None)
    return path


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tgz", "a.tar.gz"])
def test_unpacking(name, tmp_path):
    unpack(make(tmp_path / name, [("a/1.jpg", b"one"), ("a/ü/2 b.jpg", b"two")]), tmp_path / "out")
    assert (tmp_path / "out/a/1.jpg").read_bytes() == b"one" and (tmp_path / "out/a/ü/2 b.jpg").read_bytes() == b"two"


@pytest.mark.parametrize("name", ["a.zip", "a.tar.gz"])
@pytest.mark.parametrize("member", ["../out.txt", "/tmp/out.txt", "a/../../out.txt", "C:/out.txt", "..\\out.txt"])
def test_members_that_would_leave_the_folder(member, name, tmp_path):
    archive = make(tmp_path / name, [("a/1.jpg", b"one"), (member, b"two")])
    with pytest.raises(ValueError, match=r"is refused: its member .* would leave the folder"):
        unpack(archive, tmp_path / "out/in")
    assert list(tmp_path.rglob("*.txt")) == [] and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.zip", None), ("a.tar", None), ("a.tar", int(tarfile.LNKTYPE)), ("a.tar", int(tarfile.FIFOTYPE))],
)
def test_members_that_are_no_files(name, content, tmp_path):
    archive = make(tmp_path / name, [("a/1.jpg", b"one"), ("a/link", content)])
    with pytest.raises(ValueError, match=r"its member 'a/link' is no plain file or folder"):
        unpack(archive, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["a.zip", "a.tar.gz"])
def test_damaged_archives(name, tmp_path):
    (tmp_path / name).write_bytes(b"nonsense")
    with pytest.raises(ValueError, match=r"cannot be unpacked"):
        unpack(tmp_path / name, tmp_path / "out")


def test_addresses():
    assert is_file("https://host/a/images.tar.gz") and is_file("https://host/a.zip?raw=1")
    assert (
        not is_file("https://drive.google.com/file/d/1abc/view")
        and not is_file("https://host/page")
        and not is_file("")
    )
