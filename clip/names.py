"""Names of backbones, without loading any, nor the libraries that could."""

import importlib.util
import re
from collections.abc import Iterable
from pathlib import Path

from dassl_clip.results.errors import MissingFileError, UserError, closest, suggest

OPENAI_NAMES = ("RN50", "RN101", "RN50x4", "RN50x16", "RN50x64", "ViT-B/32", "ViT-B/16", "ViT-L/14", "ViT-L/14@336px")
ICONS = "IconsCLIP"  # this project's model
HUB, FOLDER = "hf-hub:", "local-dir:"
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
# Repositories in which OpenAI's models have transformers' form.
_OPENAI_REPOSITORY = re.compile(r"(?:openai/)?clip-vit-(base|large)-patch(\d+)(-336)?", re.IGNORECASE)


def architecture_of(name: str) -> str:
    """open_clip's spelling of an architecture."""
    return name.replace("/", "-").replace("@336px", "-336")


def check_name(name: str) -> None:
    """Refuse a name that stands for no backbone, as far as the names of open_clip's files tell.

    Raises:
        UserError: No such architecture; a repository's name without its prefix is left to `sources.resolve`.
        MissingFileError: No such folder.
    """
    if name == ICONS or name.startswith(FOLDER):
        model_folder(name)
    elif not name.startswith(HUB) and not REPOSITORY.fullmatch(name):
        spec = importlib.util.find_spec("open_clip")
        homes = (spec and spec.submodule_search_locations) or ()
        known = sorted(path.stem for home in homes for path in Path(home, "model_configs").glob("*.json"))
        if known and architecture_of(name.partition(":")[0]) not in known:
            raise UserError(unknown_name(name, known))


def model_folder(name: str) -> Path:
    """The folder of a model that has one: `IconsCLIP`, or `local-dir:FOLDER`.

    Raises:
        MissingFileError: There is none.
    """
    folder = embedded_folder() if name == ICONS else Path(name.removeprefix(FOLDER)).expanduser()
    if not folder.is_dir():
        hint = f"check the path after {FOLDER}"
        hint = "this installation lacks the embedded model; install it anew" if name == ICONS else hint
        raise MissingFileError(f"backbone {name!r}: there is no folder {folder}; {hint}")
    return folder


def embedded_folder() -> Path:
    """The folder of the small CLIP that ships with this project."""
    spec = importlib.util.find_spec("dassl_clip.embedded")
    if spec is None or not spec.submodule_search_locations:
        raise MissingFileError(
            f"{ICONS} ships in the package dassl_clip.embedded, which is not installed; install anew"
        )
    return Path(next(iter(spec.submodule_search_locations))) / "clip"


def unknown_name(name: str, architectures: Iterable[str], pairs_there: Iterable[str] = ()) -> str:
    """A sentence on a name that nobody knows.

    Args:
        name: As given.
        architectures: open_clip's.
        pairs_there: open_clip's pairs `ARCH:TAG` whose weights lie in the repository of that name.
    """
    known = [*OPENAI_NAMES, ICONS, *architectures]
    near = [*openai_names(name), *pairs_there][:2]
    near = [*near, f"{HUB}{name}"] if near and "/" in name else near
    near = near or closest(name, known, most=3)
    if not near and REPOSITORY.fullmatch(name):
        near = [f"{HUB}{name}"]
    near = near or closest(architecture_of(name.partition(":")[0]), known, cutoff=0.4, most=3)
    missing = "no backbone is named: set MODEL.BACKBONE.NAME, or name a config file."
    if name and Path(name).expanduser().is_dir():
        near = [f"{FOLDER}{name}"]
    elif name and Path(name).expanduser().is_file():
        missing = f"backbone {name!r} is a file: name its architecture, and give the file with MODEL.BACKBONE.WEIGHTS."
        name, near = "", []
    return (
        (f"unknown backbone {name!r}." if name else missing)
        + suggest(near)
        + f" Known are OpenAI's names ({', '.join(OPENAI_NAMES)}), {ICONS}, open_clip's pairs ARCH:TAG (such as "
        f"ViT-B-16:laion2b_s34b_b88k), {HUB}ORGANISATION/NAME and {FOLDER}FOLDER"
    )


def openai_names(repository: str) -> list[str]:
    """OpenAI's name of the model in a repository, given without its prefix; [] for another."""
    found = _OPENAI_REPOSITORY.fullmatch(repository)
    return [f"ViT-{found[1][0].upper()}/{found[2]}{'@336px' if found[3] else ''}"] if found else []
