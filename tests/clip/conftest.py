"""What the tests of files of weights share: no network, and small architectures under open_clip's registry."""

import json

import open_clip
import pytest


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    """Every connection is refused, and all caches are empty."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setattr("urllib.request._opener", None)  # it keeps the proxies it was first made with, for later tests
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.fixture(scope="module")
def register_architectures(request, tmp_path_factory):
    """The module's `ARCHITECTURES` under open_clip's registry."""
    folder = tmp_path_factory.mktemp("configs")
    for name, config in request.module.ARCHITECTURES.items():
        (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)
