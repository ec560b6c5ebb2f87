"""From a backbone's name to a model description and the file of its weights.

Names: OpenAI's (`ViT-B/16`), open_clip's pairs `ARCH:TAG`, `ARCH:random` (for tests and benchmarks), a bare `ARCH`
together with a file of weights, `hf-hub:ORGANISATION/NAME`, `local-dir:FOLDER`, and this project's model, `IconsCLIP`.
Caches are asked before the network, and the network is tried for seconds only.
"""

import difflib
import gzip
import importlib.util
import logging
import os
import re
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
from open_clip.hf_configs import arch_dict
from torch import Tensor

from dassl_clip.results.errors import MissingFileError, UserError

from .listing import listed
from .neighbours import CONFIG_FILE, PREPROCESS_KEYS, TRANSFORMERS_FILE, describe_folder, model_type
from .tokens import DEFAULT_LENGTH

logger = logging.getLogger(__name__)

OPENAI_NAMES = ("RN50", "RN101", "RN50x4", "RN50x16", "RN50x64", "ViT-B/32", "ViT-B/16", "ViT-L/14", "ViT-L/14@336px")
ICONS = "IconsCLIP"
RANDOM = "random"
HUB, FOLDER = "hf-hub:", "local-dir:"
MERGES_FILE = "bpe_merges.txt.gz"
WEIGHT_FILES = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "pytorch_model.pth",
    "model.pth",
)
HUB_FILES = (*WEIGHT_FILES[:3], "model.safetensors", "pytorch_model.bin")
HF_EXTRA = "pip install 'dassl-clip[hf]'"
CODE = "trust_remote_code"  # an option of transformers that runs a repository's own code
MOST_MERGES = 64 << 20  # bytes of a tokenizer's merges when unpacked
# Repositories in which OpenAI's models have transformers' form.
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
OPENAI_REPOSITORY = re.compile(r"(?:openai/)?clip-vit-(base|large)-patch(\d+)(-336)?", re.IGNORECASE)
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
        tokenizer_folder: A folder with a tokenizer of Hugging Face's form in place of the one that the name stands for.
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
    tokenizer_folder: str = ""

    @property
    def context_length(self) -> int:
        """Tokens of a text, as open_clip reads them from the configuration; transformers' towers have it too."""
        return int(self.config["text_cfg"].get("context_length", DEFAULT_LENGTH))

    def text_model(self) -> str:
        """The folder (or the hub's name) with the configuration of a text tower of transformers'."""
        folders = [Path(self.tokenizer_folder).expanduser()] if self.tokenizer_folder else []
        for folder in [*folders, *([self.folder] if self.folder is not None else [])]:
            path = folder / TRANSFORMERS_FILE
            if path.is_file() and model_type(path) in arch_dict:
                return str(path.parent)
        return str(self.config["text_cfg"]["hf_model_name"])

    def weights(self) -> Path:
        """The file of weights: in the folder, in a cache, or downloaded.

        Raises:
            MissingFileError: It is in no place, and the network does not have it either.
        """
        if self.folder is not None and not self.repository:
            return _weights_in(self.folder)
        where = _places(self.repository, self.published)
        return where.cached() or where.download(self)

    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the text tower.

        Raises:
            UserError: It needs a package that is not installed, or the folder holds none.
            MissingFileError: Its files are not at hand.
        """
        text = self.config["text_cfg"]
        length, options = self.context_length, dict(text.get("tokenizer_kwargs") or {})
        folder = self.tokenizer_folder and str(Path(self.tokenizer_folder).expanduser())
        if options.pop(CODE, False):
            raise UserError(f"{self.name}: its configuration asks for {CODE}, which runs code that it names: refused")
        merges = self.folder / MERGES_FILE if self.folder else None
        hub_name = text.get("hf_tokenizer_name")
        tokenizer: Tokenizer
        if not folder and merges is not None and merges.is_file():
            return _merges_tokenizer(merges, length, options)
        by_name = self.folder is None and "siglip" in self.architecture.lower()  # open_clip tells these by their name
        if not folder and not hub_name and not by_name:
            tokenizer = open_clip.SimpleTokenizer(context_length=length, **options)
            return tokenizer
        place = folder or (str(self.folder) if self.folder is not None and not self.repository else hub_name)
        if folder and not Path(folder).is_dir():
            raise MissingFileError(f"MODEL.BACKBONE.TOKENIZER: there is no folder {folder}")
        try:
            if place:
                options |= {"tokenizer_mode": text.get("tokenizer_mode"), CODE: False}
                tokenizer = open_clip.tokenizer.HFTokenizer(place, context_length=length, **options)
            else:
                tokenizer = open_clip.get_tokenizer(self.architecture)
        except ImportError as error:
            needs = f"needs the package {error.name!r}" if error.name else f"cannot be read ({_first_line(error)})"
            raise UserError(f"the tokenizer of {self.name} {needs}; install it: {HF_EXTRA}") from error
        except Exception as error:  # files of a tokenizer that are not whole make its reader raise almost anything
            if place and Path(place).is_dir():
                raise UserError(f"{place} holds no tokenizer that can be read: {_first_line(error)}") from error
            raise MissingFileError(
                f"the tokenizer {hub_name!r} of {self.name} is neither in a cache nor could it be fetched "
                f"({_first_line(error)}); give a folder with its files as MODEL.BACKBONE.TOKENIZER, or fill the cache "
                f"on a machine with network (HF_HOME) and copy it here"
            ) from error
        return tokenizer


def resolve(name: str, has_file: bool = False) -> Source:
    """The source that a backbone's name stands for.

    Args:
        name: The name.
        has_file: Whether the caller has a file of weights, so that a bare architecture is enough.

    Raises:
        UserError: An unknown name or tag, with the nearest known ones.
        MissingFileError: A folder or repository without a configuration.
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
        raise UserError(_unknown_name(name, architecture))
    known = open_clip.list_pretrained_tags_by_model(architecture)
    if not tag and not has_file:
        choices = (
            listed(f"{architecture}:{tag}" for tag in known) or "a file of weights, since open_clip has no tag for it"
        )
        raise UserError(f"backbone {name!r} does not say which weights to take; choose {choices}")
    if tag == RANDOM:
        return _pair_source(name, architecture, tag, quick_gelu=given in OPENAI_NAMES)
    if tag and not open_clip.get_pretrained_cfg(architecture, tag):
        near = difflib.get_close_matches(tag, known, n=3, cutoff=0.3)
        raise UserError(
            f"open_clip has no weights {tag!r} for {architecture}."
            + (f" Did you mean {' or '.join(near)}?" if near else "")
            + f" Known tags: {listed(known) or 'none'}; {RANDOM!r} gives random weights"
        )
    return _pair_source(name, architecture, tag)


def embedded_folder() -> Path:
    """The folder of the small CLIP that ships with this project."""
    spec = importlib.util.find_spec("dassl_clip.embedded")
    if spec is None or not spec.submodule_search_locations:
        raise MissingFileError(
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
        raise MissingFileError(f"backbone {name!r}: there is no folder {folder}; {hint}")
    return _described_source(name, folder)


def _described_source(name: str, folder: Path, repository: str = "") -> Source:
    """The source that the configuration in a folder describes."""
    found = describe_folder(folder)
    if found is None:
        raise MissingFileError(
            f"backbone {name!r}: {folder} has no {CONFIG_FILE}, nor the {TRANSFORMERS_FILE} of a CLIPModel, so size, "
            "activation and preprocessing of its model are unknown; give the architecture with MODEL.BACKBONE.NAME "
            "and the file with MODEL.BACKBONE.WEIGHTS instead"
        )
    quick_gelu, text = bool(found.config.get("quick_gelu")), found.config["text_cfg"]
    if repository and text.get("hf_tokenizer_name") == TRANSFORMERS_FILE:  # the place's own
        text["hf_tokenizer_name"] = repository
    return Source(name, name, found.config, "", found.preprocess, quick_gelu, folder=folder, repository=repository)


def _merges_tokenizer(path: Path, length: int, options: dict[str, Any]) -> Tokenizer:
    """CLIP's tokenizer with the merges of a file."""
    try:
        with gzip.open(path) as file:
            if len(file.read(MOST_MERGES + 1)) > MOST_MERGES:
                raise UserError(f"it unpacks to more than {MOST_MERGES:,} bytes")
        tokenizer: Tokenizer = open_clip.SimpleTokenizer(bpe_path=str(path), context_length=length, **options)
    except (OSError, EOFError, zlib.error, ValueError, TypeError, IndexError, KeyError) as error:
        raise UserError(f"{path} is no list of a tokenizer's merges: {_first_line(error)}") from error
    return tokenizer


def _hub_source(name: str) -> Source:
    """The source in a repository of the Hugging Face hub."""
    repository = name.removeprefix(HUB)
    if repository.count("/") != 1:
        raise UserError(f"backbone {name!r}: a repository is written {HUB}ORGANISATION/NAME")
    place = _Places([(repository, CONFIG_FILE), (repository, TRANSFORMERS_FILE)], [])
    source = Source(name, name, {}, repository=repository)
    path = place.cached() or place.download(source)
    return _described_source(name, path.parent, repository)


def _unknown_name(name: str, architecture: str) -> str:
    """A sentence on a name that nobody knows."""
    known = [*OPENAI_NAMES, ICONS, *open_clip.list_models()]
    lower = {k.lower(): k for k in known}
    near = _repository_names(name) or [
        lower[k] for k in difflib.get_close_matches(name.lower(), lower, n=3, cutoff=0.6)
    ]
    if not near and REPOSITORY.fullmatch(name):
        near = [f"{HUB}{name}"]
    near = near or [lower[k] for k in difflib.get_close_matches(architecture.lower(), lower, n=3, cutoff=0.4)]
    missing = "no backbone is named: set MODEL.BACKBONE.NAME, or name a config file."
    if name and Path(name).expanduser().is_dir():
        near = [f"{FOLDER}{name}"]
    elif name and Path(name).expanduser().is_file():
        missing = f"backbone {name!r} is a file: name its architecture, and give the file with MODEL.BACKBONE.WEIGHTS."
        name, near = "", []
    return (
        (f"unknown backbone {name!r}." if name else missing)
        + (f" Did you mean {' or '.join(near)}?" if near else "")
        + f" Known are OpenAI's names ({', '.join(OPENAI_NAMES)}), {ICONS}, open_clip's pairs ARCH:TAG (such as "
        f"ViT-B-16:laion2b_s34b_b88k), {HUB}ORGANISATION/NAME and {FOLDER}FOLDER"
    )


def _repository_names(name: str) -> list[str]:
    """What a hub's repository, given without its prefix, is called here; [] for a name that is none."""
    names = []
    if found := OPENAI_REPOSITORY.fullmatch(name):
        names.append(f"ViT-{found[1][0].upper()}/{found[2]}{'@336px' if found[3] else ''}")
    names += [
        f"{model}:{tag}"
        for model, tag in open_clip.list_pretrained()
        if (open_clip.get_pretrained_cfg(model, tag).get("hf_hub") or "").lower().startswith(f"{name.lower()}/")
    ]
    return [*names[:2], f"{HUB}{name}"] if names and "/" in name else names


def _weights_in(folder: Path) -> Path:
    """The file of weights in a folder."""
    for name in WEIGHT_FILES:
        if (folder / name).is_file():
            return folder / name
    others = sorted(p for p in folder.iterdir() if p.suffix in (".safetensors", ".bin", ".pt", ".pth"))
    if len(others) == 1:
        return others[0]
    found = f"several files that could be ({listed(p.name for p in others)})" if others else "no such file"
    raise MissingFileError(
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
            MissingFileError: It could not be; the message has the places and the ways out.
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
        raise MissingFileError(self._missing(source, reasons))

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
        return _Places([(repository, name) for name in HUB_FILES], [])
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
