"""From a backbone's name to a model description and the file of its weights.

Names: OpenAI's (`ViT-B/16`), open_clip's pairs `ARCH:TAG`, `ARCH:random` (for tests and benchmarks), a bare `ARCH`
together with a file of weights, `hf-hub:ORGANISATION/NAME`, `local-dir:FOLDER`, and this project's model, `IconsCLIP`.
Caches are asked before the network, and the network is tried for seconds only.
"""

import difflib
import gzip
import importlib.util
import json
import logging
import os
import threading
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import open_clip
from open_clip import pretrained as tags
from torch import Tensor

from .model_config import check_model_config

logger = logging.getLogger(__name__)

OPENAI_NAMES = ("RN50", "RN101", "RN50x4", "RN50x16", "RN50x64", "ViT-B/32", "ViT-B/16", "ViT-L/14", "ViT-L/14@336px")
ICONS = "IconsCLIP"
RANDOM = "random"
HUB, FOLDER = "hf-hub:", "local-dir:"
CONFIG_FILE, MERGES_FILE = "open_clip_config.json", "bpe_merges.txt.gz"
WEIGHT_FILES = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
    "model.safetensors",
    "pytorch_model.bin",
    "model.pth",
)
PREPROCESS_KEYS = ("mean", "std", "interpolation", "resize_mode", "fill_color")
CODE = "trust_remote_code"  # an option of transformers that runs a repository's own code
MOST_CONFIG, MOST_MERGES = 1 << 20, 64 << 20  # bytes of a configuration, and of a tokenizer's merges when unpacked
PATIENCE = 6.0  # seconds that the first sign of a network may take

Tokenizer = Callable[..., Tensor]


@dataclass
class Source:
    """What a name stands for.

    Attributes:
        name: The name as given.
        architecture: open_clip's architecture, or the name itself for folders and repositories.
        config: open_clip's model configuration (`embed_dim`, `vision_cfg`, `text_cfg`, ...).
        tag: The tag of open_clip's pair, "random", or empty.
        preprocess: What the weights want to differ from open_clip's standard preprocessing.
        quick_gelu: Whether the activation is x * sigmoid(1.702 x).
        folder: Folder of configuration, weights and tokenizer, if there is one.
        repository: The Hugging Face repository, if there is one.
        published: open_clip's entry for the tag.
    """

    name: str
    architecture: str
    config: dict[str, Any]
    tag: str = ""
    preprocess: dict[str, Any] = field(default_factory=dict)
    quick_gelu: bool = False
    folder: Path | None = None
    repository: str = ""
    published: dict[str, Any] = field(default_factory=dict)

    def weights(self) -> Path:
        """The file of weights: in the folder, in a cache, or downloaded.

        Raises:
            FileNotFoundError: It is in no place, and the network does not have it either.
        """
        if self.folder is not None and not self.repository:
            return _weights_in(self.folder)
        where = _places(self.repository, self.published)
        return where.cached() or where.download(self)

    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the text tower.

        Raises:
            ValueError: It needs a package that is not installed.
            FileNotFoundError: Its files are not at hand.
        """
        text = self.config["text_cfg"]
        length, options = text.get("context_length", 77), dict(text.get("tokenizer_kwargs") or {})
        if options.pop(CODE, False):
            raise ValueError(f"{self.name}: its configuration asks for {CODE}, which runs code that it names: refused")
        merges = self.folder / MERGES_FILE if self.folder else None
        by_name = self.folder is None and "siglip" in self.architecture.lower()  # open_clip tells these by their name
        hub_name = text.get("hf_tokenizer_name")
        tokenizer: Tokenizer
        if merges is not None and merges.is_file():
            return _merges_tokenizer(merges, length, options)
        if not hub_name and not by_name:
            tokenizer = open_clip.SimpleTokenizer(context_length=length, **options)
            return tokenizer
        try:
            if hub_name:
                name = hub_name if self.folder is None or self.repository else str(self.folder)
                options |= {"tokenizer_mode": text.get("tokenizer_mode"), CODE: False}
                tokenizer = open_clip.tokenizer.HFTokenizer(name, context_length=length, **options)
            else:
                tokenizer = open_clip.get_tokenizer(self.architecture)
        except ImportError as error:
            raise ValueError(
                f"the tokenizer of {self.name} needs the package {error.name!r}; install it (pip install {error.name})"
            ) from error
        except OSError as error:
            raise FileNotFoundError(
                f"the tokenizer {hub_name!r} of {self.name} is neither in a cache nor could it be "
                f"fetched ({_first_line(error)}); fill the cache on a machine with network (HF_HOME) and copy it here"
            ) from error
        return tokenizer


def resolve(name: str, has_file: bool = False) -> Source:
    """The source that a backbone's name stands for.

    Args:
        name: The name.
        has_file: Whether the caller has a file of weights, so that a bare architecture is enough.

    Raises:
        ValueError: An unknown name or tag, with the nearest known ones.
        FileNotFoundError: A folder or repository without a configuration.
    """
    if name == ICONS:
        return _folder_source(name, embedded_folder(), "this installation lacks the embedded model; install it anew")
    if name.startswith(FOLDER):
        return _folder_source(name, Path(name.removeprefix(FOLDER)).expanduser())
    if name.startswith(HUB):
        return _hub_source(name)
    if name in OPENAI_NAMES:
        return _pair_source(name, _architecture(name), "openai")
    given, _, tag = name.partition(":")
    architecture = _architecture(given)
    if open_clip.get_model_config(architecture) is None:
        raise ValueError(_unknown_name(name, architecture))
    known = open_clip.list_pretrained_tags_by_model(architecture)
    if not tag and not has_file:
        choices = (
            ", ".join(f"{architecture}:{tag}" for tag in known)
            or "a file of weights, since open_clip has no tag for it"
        )
        raise ValueError(f"backbone {name!r} does not say which weights to take; choose {choices}")
    if tag == RANDOM:
        return _pair_source(name, architecture, tag, quick_gelu=given in OPENAI_NAMES)
    if tag and not open_clip.get_pretrained_cfg(architecture, tag):
        near = difflib.get_close_matches(tag, known, n=3, cutoff=0.3)
        raise ValueError(
            f"open_clip has no weights {tag!r} for {architecture}."
            + (f" Did you mean {' or '.join(near)}?" if near else "")
            + f" Known tags: {', '.join(known) or 'none'}; {RANDOM!r} gives random weights"
        )
    if not tag and open_clip.get_pretrained_cfg(architecture, "openai"):
        logger.warning(
            "backbone %s names no tag: its file of weights is read with the architecture's own activation (%s) and the "
            "standard preprocessing; name %s:TAG (such as %s:openai) if the weights were trained otherwise",
            name,
            "quickgelu" if open_clip.get_model_config(architecture).get("quick_gelu") else "gelu",
            architecture,
            architecture,
        )
    return _pair_source(name, architecture, tag)


def embedded_folder() -> Path:
    """The folder of the small CLIP that ships with this project."""
    spec = importlib.util.find_spec("dassl_clip.embedded")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(
            f"{ICONS} ships in the package dassl_clip.embedded, which is not installed; install anew"
        )
    return Path(next(iter(spec.submodule_search_locations))) / "clip"


def _architecture(name: str) -> str:
    """open_clip's spelling of an architecture."""
    return name.replace("/", "-").replace("@336px", "-336")


def _pair_source(name: str, architecture: str, tag: str, quick_gelu: bool = False) -> Source:
    """The source of an architecture that open_clip has, with a tag, "random" or nothing."""
    config = open_clip.get_model_config(architecture)
    published = open_clip.get_pretrained_cfg(architecture, tag) if tag not in ("", RANDOM) else {}
    preprocess = {key: published[key] for key in PREPROCESS_KEYS if published.get(key) is not None}
    quick_gelu = quick_gelu or bool(config.get("quick_gelu") or published.get("quick_gelu"))
    return Source(name, architecture, config, tag, preprocess, quick_gelu, published=published)


def _folder_source(name: str, folder: Path, hint: str = "check the path after local-dir:") -> Source:
    """The source in a local folder."""
    if not folder.is_dir():
        raise FileNotFoundError(f"backbone {name!r}: there is no folder {folder}; {hint}")
    return _source_of_config(name, folder, folder / CONFIG_FILE)


def _source_of_config(name: str, folder: Path, path: Path, repository: str = "") -> Source:
    """The source that a configuration file describes."""
    if not path.is_file():
        raise FileNotFoundError(
            f"backbone {name!r}: {folder} has no {CONFIG_FILE}, so size, activation and preprocessing of its model are "
            f"unknown; give the architecture with MODEL.BACKBONE.NAME and the file with MODEL.BACKBONE.WEIGHTS instead"
        )
    try:
        if path.stat().st_size > MOST_CONFIG:
            raise ValueError(f"it has more than {MOST_CONFIG:,} bytes")
        content = json.loads(path.read_text(encoding="utf-8"))
        config = content["model_cfg"]
        preprocess = {key: value for key, value in content.get("preprocess_cfg", {}).items() if key in PREPROCESS_KEYS}
        check_model_config(config, preprocess)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is no open_clip configuration with 'model_cfg': {error!r}") from error
    quick_gelu = bool(config.get("quick_gelu"))
    return Source(name, name, config, "", preprocess, quick_gelu, folder=folder, repository=repository)


def _merges_tokenizer(path: Path, length: int, options: dict[str, Any]) -> Tokenizer:
    """CLIP's tokenizer with the merges of a file."""
    try:
        with gzip.open(path) as file:
            if len(file.read(MOST_MERGES + 1)) > MOST_MERGES:
                raise ValueError(f"it unpacks to more than {MOST_MERGES:,} bytes")
        tokenizer: Tokenizer = open_clip.SimpleTokenizer(bpe_path=str(path), context_length=length, **options)
    except (OSError, EOFError, zlib.error, ValueError, TypeError, IndexError, KeyError) as error:
        raise ValueError(f"{path} is no list of a tokenizer's merges: {_first_line(error)}") from error
    return tokenizer


def _hub_source(name: str) -> Source:
    """The source in a repository of the Hugging Face hub."""
    repository = name.removeprefix(HUB)
    if repository.count("/") != 1:
        raise ValueError(f"backbone {name!r}: a repository is written {HUB}ORGANISATION/NAME")
    place = _Places([(repository, CONFIG_FILE)], [])
    source = Source(name, name, {}, repository=repository)
    path = place.cached() or place.download(source)
    return _source_of_config(name, path.parent, path, repository)


def _unknown_name(name: str, architecture: str) -> str:
    """A sentence on a name that nobody knows."""
    known = [*OPENAI_NAMES, ICONS, *open_clip.list_models()]
    lower = {k.lower(): k for k in known}
    near = [lower[k] for k in difflib.get_close_matches(name.lower(), lower, n=3, cutoff=0.5)]
    near = near or [lower[k] for k in difflib.get_close_matches(architecture.lower(), lower, n=3, cutoff=0.4)]
    missing = "no backbone is named: set MODEL.BACKBONE.NAME, or name a config file."
    return (
        (f"unknown backbone {name!r}." if name else missing)
        + (f" Did you mean {' or '.join(near)}?" if near else "")
        + f" Known are OpenAI's names ({', '.join(OPENAI_NAMES)}), {ICONS}, open_clip's pairs ARCH:TAG (such as "
        f"ViT-B-16:laion2b_s34b_b88k), {HUB}ORGANISATION/NAME and {FOLDER}FOLDER"
    )


def _weights_in(folder: Path) -> Path:
    """The file of weights in a folder."""
    for name in WEIGHT_FILES:
        if (folder / name).is_file():
            return folder / name
    others = sorted(p for p in folder.iterdir() if p.suffix in (".safetensors", ".bin", ".pt", ".pth"))
    if len(others) == 1:
        return others[0]
    found = f"several files that could be ({', '.join(p.name for p in others)})" if others else "no such file"
    raise FileNotFoundError(
        f"{folder} should hold one file of weights, named {WEIGHT_FILES[0]} or alike, and holds {found}; "
        f"point MODEL.BACKBONE.WEIGHTS at the file"
    )


# ------------------------------------------------------------------------------------------- caches and the network


@dataclass
class _Places:
    """Where a file may be: in repositories of the hub, or at addresses that are cached under their last part."""

    hub: list[tuple[str, str]]
    urls: list[str]

    def cached(self) -> Path | None:
        """The file in a cache, if it is there; asks no network."""
        for repository, name in self.hub:
            path = _hub_cached(repository, name)
            if path is not None:
                return path
        return next((path for path in map(_url_cached, self.urls) if path.is_file()), None)

    def download(self, source: Source) -> Path:
        """The file, freshly downloaded.

        Raises:
            FileNotFoundError: It could not be; the message has the places and the ways out.
        """
        reasons = []
        try:
            if self.hub:
                _require_hub()
            for repository, name in self.hub:
                try:
                    return _hub_download(repository, name)
                except Exception as error:
                    reasons.append(f"{repository}/{name}: {_first_line(error)}")
        except (ConnectionError, ImportError) as error:
            reasons.append(f"Hugging Face hub: {_first_line(error)}")
        for url in self.urls:
            try:
                _require_network(url)
                return Path(tags.download_pretrained_from_url(url))
            except Exception as error:
                reasons.append(f"{url}: {_first_line(error)}")
        raise FileNotFoundError(self._missing(source, reasons))

    def _missing(self, source: Source, reasons: list[str]) -> str:
        tag = f" (open_clip architecture {source.architecture!r}, tag {source.tag!r})" if source.tag else ""
        looked = [f"{_hub_cache()} (repository {repository}, {name})" for repository, name in self.hub]
        looked += [str(_url_cached(url)) for url in self.urls]
        return (
            f"no weights at hand for backbone {source.name!r}{tag}, and they cannot be downloaded "
            f"({'; '.join(dict.fromkeys(reasons))}). Looked in: {'; '.join(looked)}. Three ways to provide them: (1) "
            f"MODEL.BACKBONE.WEIGHTS FILE with safetensors, a state dict or OpenAI's JIT archive; (2) a cache filled "
            f"on a machine with network, copied to one of these places or named by HF_HOME; (3) MODEL.BACKBONE.NAME "
            f"{FOLDER}FOLDER, a folder with {CONFIG_FILE} and the weights"
        )


def _places(repository: str, published: dict[str, Any]) -> _Places:
    """The places of a repository's weights or of a published tag."""
    if repository:
        return _Places([(repository, name) for name in WEIGHT_FILES[:3]], [])
    hub = published.get("hf_hub", "")
    organisation, _, name = hub.rpartition("/")
    names = [name.rsplit(".", 1)[0] + ".safetensors", name] if name else [WEIGHT_FILES[0], WEIGHT_FILES[2]]
    urls = [published["url"]] if published.get("url") else []
    return _Places([(organisation, n) for n in dict.fromkeys(names)] if hub else [], urls)


def _hub_cache() -> Path:
    """The folder of Hugging Face's cache."""
    try:
        from huggingface_hub import constants
    except ImportError:
        return Path("~/.cache/huggingface/hub").expanduser()
    return Path(constants.HF_HUB_CACHE)


def _hub_cached(repository: str, name: str) -> Path | None:
    """A repository's file in the Hugging Face cache."""
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        return None
    path = try_to_load_from_cache(repository, name, cache_dir=_hub_cache())
    return Path(path) if isinstance(path, str) else None


def _hub_download(repository: str, name: str) -> Path:
    """A repository's file from the Hugging Face hub."""
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(repository, name))


def _require_hub() -> None:
    """Raise a ConnectionError unless the Hugging Face hub may be asked and answers."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise ConnectionError("HF_HUB_OFFLINE is set")
    _require_network(constants.ENDPOINT)


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
            answer.append(_first_line(error))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    if answer != [True]:
        raise ConnectionError(f"no network ({answer[0] if answer else f'no answer in {PATIENCE:.0f} s'})")


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
