"""Classifiers on the Hugging Face hub: the library's own client against a small server that answers as the hub does."""

import base64
import hashlib
import http.server
import json
import re
import shutil
import threading

import numpy as np
import pytest

from dassl_clip import InMaPClassifier

COMMIT = "0" * 40


class Hub(http.server.BaseHTTPRequestHandler):
    """Repositories in memory: what the client asks for, to make one, commit to it, and read files of it."""

    files: dict[str, dict[str, bytes]] = {}
    made: list[dict] = []
    tokens: set[str] = set()

    def log_message(self, *args):
        pass

    def answer(self, body, status=200, headers=()):
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), "X-Repo-Commit": COMMIT, **dict(headers)}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_POST(self):
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers["Content-Length"]))
        self.tokens.add(self.headers["Authorization"])
        address = f"http://{self.headers['Host']}"
        if self.path == "/api/repos/create":
            made = json.loads(body)
            self.made.append(made)
            name = f"{made['organization']}/{made['name']}"
            self.files.setdefault(name, {})
            self.answer({"url": f"{address}/{name}"})
        elif found := re.fullmatch(r"/api/models/(.+)/preupload/main", self.path.split("?")[0]):
            asked = json.loads(body)["files"]
            self.answer({"files": [{**file, "uploadMode": "regular", "shouldIgnore": False} for file in asked]})
        elif found := re.fullmatch(r"/api/models/(.+)/commit/main", self.path.split("?")[0]):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[found[1]][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.answer({"commitUrl": f"{address}/{found[1]}/commit/{COMMIT}", "commitOid": COMMIT})
        else:
            self.answer({}, 200)  # checks of the card

    def do_GET(self):
        found = re.fullmatch(r"/(.+)/resolve/main/(.+)", self.path)
        content = self.files.get(found[1], {}).get(found[2]) if found else None
        if content is None:
            code = "EntryNotFound" if found and found[1] in self.files else "RepoNotFound"
            self.answer({}, 404, [("X-Error-Code", code)])
        else:
            self.answer(content, headers=[("ETag", f'"{hashlib.sha1(content).hexdigest()}"')])

    do_HEAD = do_GET


@pytest.fixture
def hub():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def fitted(icons, tmp_path_factory):
    paths = [path for found in icons.values() for path in found]
    clf = InMaPClassifier(list(icons), backbone="IconsCLIP").fit(paths)
    return clf.save(tmp_path_factory.mktemp("hub") / "fitted.safetensors"), clf, paths


AFRESH = """
import sys
for name in list(sys.modules):
    if name.partition(".")[0] in ("dassl", "dassl_clip", "huggingface_hub"):
        del sys.modules[name]
"""


@pytest.fixture
def python(helper, tmp_path):
    """Lines that a program prints in a process of its own, which imports the client anew: it reads its variables once.

    Everything else that takes long to import is there.
    """

    def lines(program, *arguments, **environment):
        file = tmp_path / "program.py"
        file.write_text(AFRESH + program)
        settings = {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1", **environment}
        child = helper.start([file, *arguments], tmp_path, **settings)
        out, err = child.communicate()
        assert child.returncode == 0, err
        return out.splitlines()

    return lines


THERE_AND_BACK = """
import sys, numpy
from dassl_clip import InMaPClassifier, load
file, expected, *images = sys.argv[1:]
print(load(file).push_to_hub("user/icons", private=True, token="secret"))
load("user/icons")
again = InMaPClassifier.from_pretrained("user/icons", local_files_only=True)
numpy.testing.assert_array_equal(again.predict_proba(images), numpy.load(expected))
absent = {"cache_dir": "elsewhere", "local_files_only": True}
for ask in (lambda: load("user/none"), lambda: InMaPClassifier.from_pretrained("user/icons", **absent)):
    try: ask()
    except ValueError as error: print(error)
"""


def test_what_is_uploaded_comes_back(hub, fitted, python, tmp_path):
    file, clf, paths = fitted
    np.save(tmp_path / "expected.npy", clf.predict_proba(paths))
    place = {"HF_ENDPOINT": hub, "HF_HUB_CACHE": str(tmp_path / "cache")}
    address, *refusals = python(THERE_AND_BACK, file, tmp_path / "expected.npy", *paths, **place)
    assert address == f"{hub}/user/icons/commit/{COMMIT}"
    for line, repo in zip(refusals, ("none", "icons"), strict=True):
        assert line.startswith(f"there is no file or folder user/{repo}, and the Hugging Face hub gives no head.safe")
    files = Hub.files["user/icons"]
    assert sorted(files) == ["README.md", "config.json", "head.safetensors"]
    made = Hub.made[0]  # older clients say `private`, newer ones `visibility`
    assert (made.get("private") or made["visibility"] == "private") and Hub.tokens == {"Bearer secret"}
    card, facts = files["README.md"].decode(), json.loads(files["config.json"])
    weights = clf.record_["backbone"]["weights_hash"]
    for line in ("library_name: dassl-clip", "| method | InMaP |", weights, "key, star, fish", 'load("user/icons")'):
        assert line in card
    assert "| accuracy | not measured (no labels) |" in card
    assert facts["classes"] == list(clf.classes_)
    assert facts["backbone"]["weights_hash"] == weights


def test_no_network_is_a_line(fitted, python):
    program = (
        "import sys; from dassl_clip import load\n"
        "try: load(sys.argv[1]).push_to_hub('user/icons', token='secret')\nexcept ValueError as error: print(error)"
    )
    (line,) = python(program, fitted[0], HF_ENDPOINT="http://127.0.0.1:9")
    assert line.startswith("user/icons cannot be written on the Hugging Face hub: ")
    assert "refused" in line


def test_a_downloaded_repository_is_one_too(fitted, tmp_path):
    with pytest.raises(ValueError, match=r"there is no head\.safetensors in .*; push_to_hub writes one"):
        InMaPClassifier.from_pretrained(str(tmp_path))
    shutil.copy(fitted[0], tmp_path / "head.safetensors")
    assert InMaPClassifier.from_pretrained(str(tmp_path)).record_ == fitted[1].record_
