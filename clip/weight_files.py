"""Where a file of weights is: in a folder, in a cache, or on the network.

Caches are asked before the network, and the network is tried for seconds only.
"""

import os
import threading
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
from open_clip import pretrained as tags

from dassl_clip.results.errors import MissingFileError, listed

WEIGHT_FILES = (
    "open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth", "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin",
    "pytorch_model.bin.index.json", "pytorch_model.pth", "model.pth",
)  # fmt: skip
HUB_FILES = (*WEIGHT_FILES[:3], "model.safetensors", "pytorch_model.bin")
PATIENCE = 6.0  # seconds that the first sign of a network may take


def weights_in(folder: Path) -> Path:
    """The file of weights in a folder."""
    for name in WEIGHT_FILES:
        if (folder / name).is_file():
            return folder / name
    others = sorted(p for p in folder.iterdir() if p.suffix in (".safetensors", ".bin", ".pt", ".pth"))
    if len(others) == 1:
        return others[0]
    content = f"several files that could be ({listed(p.name for p in others)})" if others else "no such file"
    raise MissingFileError(
        f"{folder} should hold one file of weights, named {WEIGHT_FILES[0]} or alike, and holds {content}; "
        f"point MODEL.BACKBONE.WEIGHTS at the file"
    )


@dataclass
class Locations:
    """Where a file may be: in repositories of the hub, or at addresses that are cached under their last part."""

    hub: list[tuple[str, str]]
    urls: list[str]

    def cached(self) -> Path | None:
        """The file in a cache, if it is there; asks no network."""
        for repository, name in self.hub:
            path = try_to_load_from_cache(repository, name, cache_dir=constants.HF_HUB_CACHE)
            if isinstance(path, str):
                return Path(path)
        return next((path for path in map(_url_cached, self.urls) if path.is_file()), None)

    def fetch(self, backbone: str) -> Path:
        """The file in a cache, otherwise downloaded.

        Args:
            backbone: What the error calls the model.

        Raises:
            MissingFileError: It is in no cache and could not be downloaded; the message has the locations and the ways
                out.
        """
        path = self.cached()
        if path is not None:
            return path
        reasons = []
        try:
            if self.hub and constants.HF_HUB_OFFLINE:
                raise ConnectionError("HF_HUB_OFFLINE is set")
            if self.hub:
                _require_network(constants.ENDPOINT)
            for repository, name in self.hub:
                try:
                    return Path(hf_hub_download(repository, name))
                except Exception as error:
                    reasons.append(f"{repository}/{name}: {first_line(error)}")
        except ConnectionError as error:
            reasons.append(f"Hugging Face hub: {first_line(error)}")
        for url in self.urls:
            try:
                _require_network(url)
                return Path(tags.download_pretrained_from_url(url))
            except Exception as error:
                reasons.append(f"{url}: {first_line(error)}")
        looked = [f"{constants.HF_HUB_CACHE} (repository {repository}, {name})" for repository, name in self.hub]
        looked += [str(_url_cached(url)) for url in self.urls]
        raise MissingFileError(
            f"no weights at hand for backbone {backbone}, and they cannot be downloaded "
            f"({'; '.join(dict.fromkeys(reasons))}). Looked in: {'; '.join(looked)}. Three ways to provide them: (1) "
            f"MODEL.BACKBONE.WEIGHTS FILE with safetensors, a state dict or OpenAI's JIT archive; (2) a cache filled "
            f"on a machine with network, copied to one of these places or named by HF_HOME; (3) MODEL.BACKBONE.NAME "
            f"local-dir:FOLDER, a folder with open_clip_config.json and the weights"
        )


def weight_locations(repository: str, published: dict[str, Any]) -> Locations:
    """The locations of a repository's weights or of a published tag."""
    if repository:
        return Locations([(repository, name) for name in HUB_FILES], [])
    hub = published.get("hf_hub", "")
    organisation, _, name = hub.rpartition("/")
    names = [name.rsplit(".", 1)[0] + ".safetensors", name] if name else [WEIGHT_FILES[0], WEIGHT_FILES[2]]
    urls = [published["url"]] if published.get("url") else []
    return Locations([(organisation, n) for n in dict.fromkeys(names)] if hub else [], urls)


def _url_cached(url: str) -> Path:
    """Where open_clip and OpenAI's program keep a download."""
    return Path(os.path.expanduser("~/.cache/clip")) / url.rsplit("/", 1)[-1]


def _require_network(url: str) -> None:
    """Raise a ConnectionError unless the host of `url` answers within seconds."""
    answer: list[object] = []

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=PATIENCE).close()
            answer.append(True)
        except urllib.error.HTTPError:
            answer.append(True)  # somebody answered
        except Exception as error:
            answer.append(first_line(error))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    if answer != [True]:
        raise ConnectionError(f"no network ({answer[0] if answer else f'no answer in {PATIENCE:.0f} s'})")


def first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
