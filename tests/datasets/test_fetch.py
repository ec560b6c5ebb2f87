"""Fetching and unpacking, from a server on this machine.

Covers: a whole file, one that was begun (with and without a server that can go on), one that is there already,
checksums, web pages in place of files, errors of the server, archives (zip, tar, tgz) and members that would leave the
folder, links and devices, of which nothing is written, damaged archives, which addresses are files; versions that
change between two tries, answers to ranges that are none, files without a length, servers that drip (row 8.6).
"""

import hashlib
import io
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from dassl_clip.datasets import download as fetching
from dassl_clip.datasets.download import fetch, is_file, unpack

CONTENT = bytes(range(256)) * 5000
MD5 = hashlib.md5(CONTENT).hexdigest()


class Scripted(BaseHTTPRequestHandler):
    """Answers each request by the next of some functions of the handler, and keeps what was asked."""

    answers: list = []
    asked: list = []

    def do_GET(self):
        self.asked.append((self.headers.get("Range"), self.headers.get("If-Range")))
        self.answers.pop(0)(self)

    def give(self, status, body, **headers):
        self.send_response(status)
        for key, value in {"Content_Length": len(body), **headers}.items():
            if value is not None:
                self.send_header(key.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = True

    def log_message(self, *words):
        pass


@pytest.fixture
def scripted():
    """`scripted(answer, ...)` gives an address whose answers are these, one after the other."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Scripted) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()

        def script(*answers):
            Scripted.answers, Scripted.asked = list(answers), []
            return f"http://127.0.0.1:{running.server_port}/a.zip"

        yield script
        running.shutdown()


def whole(version, content=CONTENT):
    return lambda self: self.give(200, content, ETag=version)


def cut(version, size=1000, content=CONTENT):
    return lambda self: self.give(200, content[:size], Content_Length=len(content), ETag=version)


def rest(start, version, content=CONTENT, said=None):
    said = said or f"bytes {start}-{len(content) - 1}/{len(content)}"
    return lambda self: self.give(206, content[start:], Content_Range=said, ETag=version)


GONE = lambda self: self.give(416, b"", Content_Range=f"bytes */{len(CONTENT)}")  # noqa: E731


def test_a_whole_file_and_one_that_is_there(scripted, tmp_path):
    told, url = [], scripted(whole(None))
    path = fetch(f"{url}?x=1", tmp_path / "new", MD5, lambda there, total: told.append((there, total)))
    assert path == tmp_path / "new/a.zip" and path.read_bytes() == CONTENT
    assert told[-1] == (len(CONTENT), len(CONTENT)) and [p.name for p in path.parent.iterdir()] == ["a.zip"]
    assert fetch(url, tmp_path / "new", MD5) == path and len(Scripted.asked) == 1
    path.write_bytes(b"other")
    with pytest.raises(ValueError, match=r"a.zip has the md5 .*, published is .*: it is damaged or another file"):
        fetch(url, tmp_path / "new", MD5)


@pytest.mark.parametrize(
    ("size", "answer"),
    [(1000, rest(1000, None)), (1000, whole(None)), (len(CONTENT), GONE), (len(CONTENT), whole(None))],
)
def test_a_file_that_was_begun(size, answer, scripted, tmp_path):
    (tmp_path / "a.zip.part").write_bytes(CONTENT[:size])
    assert fetch(scripted(answer), tmp_path, MD5).read_bytes() == CONTENT
    assert Scripted.asked == [(f"bytes={size}-", None)]


@pytest.mark.parametrize(
    ("answer", "md5", "message", "left"),
    [
        (lambda self: self.send_error(404), "", r"a.zip could not be fetched \(HTTP Error 404", None),
        (
            lambda self: self.give(200, b"<!DOCTYPE html><html>quota</html>"),
            "",
            "gave a web page in place of the",
            None,
        ),
        (whole(None), "0" * 32, r"a.zip.part has the md5", None),
        (
            lambda self: self.give(200, CONTENT, Content_Length=len(CONTENT) + 99),
            "",
            r"a.zip could not be fetched .* the same command resumes from .*part",
            CONTENT,
        ),
    ],
)
def test_what_servers_do(answer, md5, message, left, scripted, tmp_path):
    with pytest.raises(ValueError, match=message):
        fetch(scripted(answer), tmp_path, md5)
    assert [path.read_bytes() for path in tmp_path.glob("*.part")] == ([] if left is None else [left])
    assert left or list(tmp_path.iterdir()) == []


def cut_then(scripted, folder, *answers, **options):
    """Fetch twice: the first answer is cut after 1000 bytes, the others follow."""
    url = scripted(cut('"1"'), *answers)
    with pytest.raises(ValueError, match=r"ended after 1,000 of 1,280,000 bytes.*; the same command resumes from"):
        fetch(url, folder, **options)
    assert not (folder / "a.zip").exists()
    return fetch(url, folder, **options)


def test_8_6_a_cut_file_is_resumed_if_it_is_the_same(scripted, tmp_path):
    assert cut_then(scripted, tmp_path, rest(1000, '"1"')).read_bytes() == CONTENT
    assert Scripted.asked == [(None, None), ("bytes=1000-", '"1"')]
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]


def test_8_6_a_file_that_changed_is_fetched_anew(scripted, tmp_path):
    other = CONTENT[::-1]
    assert cut_then(scripted, tmp_path, whole('"2"', other)).read_bytes() == other


@pytest.mark.parametrize(
    "answer",
    [
        rest(0, '"1"'),  # all of it, where the rest was asked for
        rest(1000, '"1"', said="bytes 0-1278999/1280000"),
        rest(1000, '"1"', said="bytes 1000-1279999/1300000"),  # of a file of another length
        rest(1000, '"1"', said="garbage"),
        lambda self: self.give(206, CONTENT[1000:], ETag='"1"'),
        lambda self: self.give(416, b"", Content_Range="bytes */1280000"),  # of half a file
        lambda self: self.give(416, b""),
    ],
)
def test_8_6_answers_that_do_not_continue_are_not_appended(answer, scripted, tmp_path):
    assert cut_then(scripted, tmp_path, answer, whole('"1"')).read_bytes() == CONTENT
    assert Scripted.asked == [(None, None), ("bytes=1000-", '"1"'), (None, None)]


def test_8_6_without_a_mark_of_the_version_nothing_is_resumed(scripted, tmp_path):
    (tmp_path / "a.zip.part").write_bytes(b"x" * 1000)
    assert fetch(scripted(whole(None)), tmp_path).read_bytes() == CONTENT
    assert Scripted.asked == [(None, None)]
    (tmp_path / "a.zip").unlink()
    (tmp_path / "a.zip.part").write_bytes(CONTENT[:1000])
    (tmp_path / "a.zip.part.json").write_text('{"version": "", "total": 5}')
    assert fetch(scripted(rest(1000, None), whole(None)), tmp_path, MD5).read_bytes() == CONTENT


@pytest.mark.parametrize("date", ["Mon, 02 Jan 2023 10:00:00 GMT", None])
def test_8_6_a_weak_mark_does_not_say_that_the_bytes_are_the_same(date, scripted, tmp_path):
    """Row 8.6: the date of the file counts in its place; without one the file is fetched anew."""
    marks = {"ETag": 'W/"1"', "Last_Modified": date}
    url = scripted(
        lambda self: self.give(200, CONTENT[:1000], **{"Content_Length": len(CONTENT), **marks}),
        rest(1000, 'W/"1"') if date else whole('W/"1"'),
    )
    with pytest.raises(ValueError, match=r"ended after 1,000"):
        fetch(url, tmp_path)
    assert fetch(url, tmp_path).read_bytes() == CONTENT
    assert Scripted.asked == [(None, None), ("bytes=1000-", date) if date else (None, None)]


def test_8_6_a_whole_part_is_recognised_by_its_size(scripted, tmp_path):
    (tmp_path / "a.zip.part").write_bytes(CONTENT)
    (tmp_path / "a.zip.part.json").write_text('{"version": "x", "total": 1280000}')
    url = scripted(lambda self: self.give(416, b"", Content_Range="bytes */1280000"))
    assert fetch(url, tmp_path).read_bytes() == CONTENT


def test_8_6_a_file_of_unknown_length_shows_its_end(scripted, tmp_path):
    archive = make(tmp_path / "made.zip", [("a/1.jpg", b"one")]).read_bytes()
    endless = {"Content_Length": None}
    path = fetch(scripted(lambda self: self.give(200, archive, **endless)), tmp_path)
    assert path.read_bytes() == archive
    for name in ("a.zip", "a.tar", "a.tgz", "a.json", "a.mat"):
        content = b'{"a": [1, 2]}' * 1 if name == "a.json" else b"x" * 99
        if name in ("a.zip", "a.tar", "a.tgz"):
            content = make(tmp_path / f"made-{name}", [("a/1.jpg", bytes(range(256)) * 9)]).read_bytes()
        url = scripted(lambda self, content=content: self.give(200, content[:-8], **endless)).replace("a.zip", name)
        with pytest.raises(ValueError, match=rf"{name}.part is not whole \(.*\): get {name} by hand"):
            fetch(url, tmp_path / "cut")
        assert list((tmp_path / "cut").iterdir()) == []


def test_8_6_a_server_that_drips_is_left(scripted, tmp_path, monkeypatch):
    monkeypatch.setattr(fetching, "PATIENCE", 0.3)
    gone = threading.Event()

    def drip(self):
        self.give(200, b"", Content_Length=len(CONTENT), ETag='"1"')
        while not gone.wait(0.05):
            try:
                self.wfile.write(b"x")
            except OSError:
                return

    with pytest.raises(ValueError, match=r"the server sent \d+ bytes in 0.3 seconds"):
        fetch(scripted(drip), tmp_path)
    gone.set()
    assert not (tmp_path / "a.zip").exists()


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


@pytest.mark.parametrize("name", ["a.zip", "a.tar"])
def test_8_6_of_a_damaged_archive_nothing_stays(name, tmp_path):
    """Row 8.6: half of a data set would be read as all of it; what else lies in the folder is kept."""
    files = [(f"a/{number}.jpg", bytes([number]) * 2000) for number in range(4)]
    archive = make(tmp_path / name, [*files, ("a/b/4.jpg", b"x" * 2000)])
    content = archive.read_bytes()
    place = content.index(b"x" * 2000) if name == "a.zip" else 0
    archive.write_bytes(content[:place] + b"y" + content[place + 1 :] if place else content[: content.index(b"x" * 9)])
    (tmp_path / "out/a").mkdir(parents=True)
    (tmp_path / "out/a/mine.jpg").touch()
    with pytest.raises(ValueError, match=r"cannot be unpacked"):
        unpack(archive, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").rglob("*")] == ["a", "mine.jpg"]


def test_addresses():
    assert is_file("https://host/a/images.tar.gz") and is_file("https://host/a.zip?raw=1")
    assert (
        not is_file("https://drive.google.com/file/d/1abc/view")
        and not is_file("https://host/page")
        and not is_file("")
    )
