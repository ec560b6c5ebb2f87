"""Classifiers on the Hugging Face hub: what is uploaded, what comes back from the local cache, and no network.

The library's own client is replaced where it would ask the network; a local cache in its layout stands for the hub.
"""

import os
import shutil
import subprocess
import sys

import huggingface_hub
import numpy as np
import pytest

from dassl_clip import InMaPClassifier


@pytest.fixture(scope="module")
def fitted(icons):
    paths = [path for found in icons.values() for path in found]
    return InMaPClassifier(list(icons), backbone="IconsCLIP").fit(paths), paths


def test_what_is_uploaded_comes_back(fitted, tmp_path, monkeypatch):
    clf, paths = fitted
    snapshot = tmp_path / "hub" / "models--user--icons" / "snapshots" / ("0" * 40)

    class Client:
        def __init__(self, token=None):
            assert token == "secret"

        def create_repo(self, repo, exist_ok, private):
            assert exist_ok and private
            return f"https://hub/{repo}"

        def upload_folder(self, repo_id, folder_path, commit_message):
            assert repo_id == "user/icons"
            shutil.copytree(folder_path, snapshot)

    monkeypatch.setattr(huggingface_hub, "HfApi", Client)
    assert clf.push_to_hub("user/icons", private=True, token="secret") == "https://hub/user/icons"
    text = (snapshot / "README.md").read_text()
    facts = (
        "library_name: dassl-clip",
        "| method | InMaP |",
        clf.record_["backbone"]["weights_hash"],
        "key, star, fish",
    )
    assert all(
        fact in text
        for fact in (*facts, "key, star, fish", "| accuracy | not measured (no labels) |", 'load("user/icons")')
    )
    refs = snapshot.parents[1] / "refs"
    refs.mkdir()
    (refs / "main").write_text("0" * 40)
    np.save(tmp_path / "expected.npy", clf.predict_proba(paths))
    program = (
        "import sys, numpy; from dassl_clip import load\n"
        "found = load('user/icons').predict_proba(sys.argv[2:])\n"
        "numpy.testing.assert_array_equal(found, numpy.load(sys.argv[1]))\n"
        "try: load('user/none')\nexcept ValueError as error: print(error)"
    )
    place = {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "hub")}
    command = [sys.executable, "-c", program, str(tmp_path / "expected.npy"), *paths]
    done = subprocess.run(command, env={**os.environ, **place}, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    line = done.stdout.strip()
    assert line.startswith("there is no file or folder user/none, and the Hugging Face hub") and "\n" not in line


def test_a_refusal_of_the_hub_is_a_line(fitted, monkeypatch):
    def refuse(self, *args, **kwargs):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", refuse)
    with pytest.raises(ValueError, match="user/icons cannot be written on the Hugging Face hub: no route to host"):
        fitted[0].push_to_hub("user/icons")
