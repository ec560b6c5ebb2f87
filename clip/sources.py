"""From a backbone's name to a model description, its tokenizer and the file of its weights.

Names: OpenAI's (`ViT-B/16`), open_clip's pairs `ARCH:TAG`, `ARCH:random` (for tests and benchmarks), a bare `ARCH`
together with a file of weights, `hf-hub:ORGANISATION/NAME`, `local-dir:FOLDER`, and this project's model, `IconsCLIP`.
"""

import functools
import gzip
import logging
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import open_clip
from open_clip.hf_configs import arch_dict
from torch import Tensor

from dassl_clip.results.errors import MissingFileError, UserError, did_you_mean, listed

from .config_files import CONFIG_FILE, PREPROCESS_KEYS, TRANSFORMERS_FILE, describe_folder, model_type
from .names import FOLDER, HUB, ICONS, OPENAI_NAMES, architecture_of, model_folder, unknown_name
from .tokens import DEFAULT_LENGTH
from .weight_files import Locations, first_line, weight_locations, weights_in

logger = logging.getLogger(__name__)

RANDOM = "random"
MERGES_FILE = "bpe_merges.txt.gz"
HF_EXTRA = "pip install 'dassl-clip[hf]'"
CODE = "trust_remote_code"  # an option of transformers that runs a repository's own code
MOST_MERGES = 64 << 20  # bytes of a tokenizer's merges when unpacked

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
        for folder in (self.tokenizer_folder, self.folder):
            path = Path(folder or "").expanduser() / TRANSFORMERS_FILE
            if folder and path.is_file() and model_type(path) in arch_dict:
                return str(path.parent)
        return str(self.config["text_cfg"]["hf_model_name"])

    def weights(self) -> Path:
        """The file of weights: in the folder, in a cache, or downloaded.

        Raises:
            MissingFileError: It is in no place, and the network does not have it either.
        """
        if self.folder is not None and not self.repository:
            return weights_in(self.folder)
        tag = f" (open_clip architecture {self.architecture!r}, tag {self.tag!r})" if self.tag else ""
        return weight_locations(self.repository, self.published).fetch(f"{self.name!r}{tag}")

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
            try:
                with gzip.open(merges) as file:
                    if len(file.read(MOST_MERGES + 1)) > MOST_MERGES:
                        raise UserError(f"it unpacks to more than {MOST_MERGES:,} bytes")
                tokenizer = open_clip.SimpleTokenizer(bpe_path=str(merges), context_length=length, **options)
            except (OSError, EOFError, zlib.error, ValueError, TypeError, IndexError, KeyError) as error:
                raise UserError(f"{merges} is no list of a tokenizer's merges: {first_line(error)}") from error
            return tokenizer
        by_name = self.folder is None and "siglip" in self.architecture.lower()  # open_clip tells these by their name
        if not folder and not hub_name and not by_name:
            tokenizer = (
                open_clip.SimpleTokenizer(context_length=length, **options) if options else clip_tokenizer(length)
            )
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
            needs = f"needs the package {error.name!r}" if error.name else f"cannot be read ({first_line(error)})"
            raise UserError(f"the tokenizer of {self.name} {needs}; install it: {HF_EXTRA}") from error
        except Exception as error:  # files of a tokenizer that are not whole make its reader raise almost anything
            if place and Path(place).is_dir():
                raise UserError(f"{place} holds no tokenizer that can be read: {first_line(error)}") from error
            raise MissingFileError(
                f"the tokenizer {hub_name!r} of {self.name} is neither in a cache nor could it be fetched "
                f"({first_line(error)}); give a folder with its files as MODEL.BACKBONE.TOKENIZER, or fill the cache "
                f"on a machine with network (HF_HOME) and copy it here"
            ) from error
        return tokenizer


@functools.cache
def clip_tokenizer(length: int) -> Tokenizer:
    """CLIP's own tokenizer for rows of `length` ids; its list of merges is read once in a process."""
    tokenizer: Tokenizer = open_clip.SimpleTokenizer(context_length=length)
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
    if name == ICONS or name.startswith(FOLDER):
        return _described_source(name, model_folder(name))
    if name.startswith(HUB):
        repository = name.removeprefix(HUB)
        if repository.count("/") != 1:
            raise UserError(f"backbone {name!r}: a repository is written {HUB}ORGANISATION/NAME")
        return _described_source(name, _hub_config(repository).fetch(repr(name)).parent, repository)
    if name in OPENAI_NAMES:
        return _pair_source(name, architecture_of(name), "openai")
    given, _, tag = name.partition(":")
    architecture = architecture_of(given)
    if open_clip.get_model_config(architecture) is None:
        raise UserError(unknown_name(name, open_clip.list_models(), _pairs_in(name)))
    known = open_clip.list_pretrained_tags_by_model(architecture)
    if not tag and not has_file:
        tags = listed(f"{architecture}:{tag}" for tag in known)
        choices = tags or "a file of weights, since open_clip has no tag for it"
        raise UserError(f"backbone {name!r} does not say which weights to take; choose {choices}")
    if tag == RANDOM:
        return _pair_source(name, architecture, tag, quick_gelu=given in OPENAI_NAMES)
    if tag and not open_clip.get_pretrained_cfg(architecture, tag):
        raise UserError(
            f"open_clip has no weights {tag!r} for {architecture}."
            + did_you_mean(tag, known, cutoff=0.3, most=3)
            + f" Known tags: {listed(known) or 'none'}; {RANDOM!r} gives random weights"
        )
    return _pair_source(name, architecture, tag)


def _pair_source(name: str, architecture: str, tag: str, quick_gelu: bool = False) -> Source:
    """The source of an architecture that open_clip has, with a tag, "random" or nothing."""
    config = open_clip.get_model_config(architecture)
    published = open_clip.get_pretrained_cfg(architecture, tag) if tag not in ("", RANDOM) else {}
    preprocess = {key: published[key] for key in PREPROCESS_KEYS if published.get(key) is not None}
    quick_gelu = quick_gelu or bool(config.get("quick_gelu") or published.get("quick_gelu"))
    return Source(name, architecture, config, tag, preprocess, quick_gelu, published=published)


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
    if repository and text.get("hf_tokenizer_name") == TRANSFORMERS_FILE:  # the repository's own
        text["hf_tokenizer_name"] = repository
    return Source(name, name, found.config, "", found.preprocess, quick_gelu, folder=folder, repository=repository)


def _hub_config(repository: str) -> Locations:
    """Where a repository's model configuration may be."""
    return Locations([(repository, CONFIG_FILE), (repository, TRANSFORMERS_FILE)], [])


def cached_weights(name: str) -> Path | None:
    """The file of a backbone's weights if it is on this disk; asks no network.

    Raises:
        UserError: An unknown name or tag.
        MissingFileError: A folder without a configuration or weights.
    """
    if name.startswith(HUB) and _hub_config(name.removeprefix(HUB)).cached() is None:
        return None
    source = resolve(name)
    if source.folder is not None and not source.repository:
        return source.weights()
    return weight_locations(source.repository, source.published).cached()


def _pairs_in(repository: str) -> list[str]:
    """open_clip's pairs `ARCH:TAG` whose weights lie in a hub's repository, given without its prefix."""
    return [
        f"{model}:{tag}"
        for model, tag in open_clip.list_pretrained()
        if (open_clip.get_pretrained_cfg(model, tag).get("hf_hub") or "").lower().startswith(f"{repository.lower()}/")
    ]
