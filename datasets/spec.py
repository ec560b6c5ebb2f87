"""What is known about a data set before its folder is opened: names, label order, published counts.

The facts of the published data sets lie as JSON in `lists/`; a loader for a user's own folders makes a `Spec` at run
time. Names are compared by `name_key`: letter case, blanks, `_` and `-` make no difference. Whether two classes have
one prompt is asked with `prompt_key` of `results/labels.py`.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dassl_clip.results import errors
from dassl_clip.results.data_sets import name_key, published_images, read_entry
from dassl_clip.results.errors import UserError, did_you_mean

PARTS = ("train", "val", "test")


def in_order(names: Iterable[str]) -> list[str]:
    """Sorted names; if all of them begin with a number, by its value."""
    numbers = {name: re.match(r"\d+", name) for name in names}
    return sorted(numbers, key=lambda name: (int(numbers[name][0]), name)) if all(numbers.values()) else sorted(numbers)


def listed(names: Iterable[object], limit: int = 8) -> str:
    """`errors.listed`, with "nothing" for none."""
    return errors.listed(names, limit) or "nothing"


@dataclass(frozen=True)
class Spec:
    """Fixed facts of a data set.

    Args:
        name: registry name.
        classes: class names in label order, as prompts use them (`_` stands for a blank).
        domains: canonical domain name -> other spellings of it.
        folders: names that the data set's own folder may have.
        class_spellings: folder names of the classes in label order, where they differ from `classes`.
        class_folders: class name -> further folder names of that class.
        images: domain, or part of a data set without domains -> published number of images, where one is published.
        names_are_keys: whether a class is known by its name; if not, by its folder alone, since names may be equal.
        skip: `domain/class/file` of images that are known to be bad.
        details: the JSON entry of each domain (counts of parts and classes).
        said: class -> its name in prompts, for classes that are called like folders.
        names_file: a file of class names that lies beside the class folders.
    """

    name: str
    classes: tuple[str, ...]
    domains: Mapping[str, tuple[str, ...]]
    folders: tuple[str, ...] = ()
    class_spellings: tuple[str, ...] = ()
    class_folders: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    images: Mapping[str, int] = field(default_factory=dict)
    names_are_keys: bool = True
    skip: frozenset[str] = frozenset()
    details: Mapping[str, Mapping] = field(default_factory=dict)
    said: Mapping[str, str] = field(default_factory=dict)
    names_file: Path | None = None

    @property
    def folder_names(self) -> tuple[str, ...]:
        """Usual folder name of each class, in label order."""
        return self.class_spellings or self.classes

    @property
    def key_names(self) -> tuple[str, ...]:
        """What stands for each class in the key of an image, in label order."""
        return self.classes if self.names_are_keys else self.folder_names

    def published(self, domain: str) -> int | None:
        """Published number of a domain's images, less those that are always left out; None where none is known."""
        if domain not in self.images:
            return None
        return self.images[domain] - sum(key.startswith(f"{domain}/") for key in self.skip)

    def class_keys(self) -> dict[str, int]:
        """`name_key` of every folder name a class may have -> label."""
        return {
            name_key(spelling): label
            for label, (name, folder) in enumerate(zip(self.key_names, self.folder_names))
            for spelling in (name, folder, *self.class_folders.get(name, ()))
        }

    def domain_keys(self, letters: bool = True) -> dict[str, str]:
        """`name_key` of every spelling -> canonical domain; `letters=False` leaves out one-letter spellings."""
        return {
            name_key(spelling): domain
            for domain, spellings in self.domains.items()
            for spelling in (domain, *spellings)
            if letters or len(spelling) > 1
        }

    def resolve_domains(self, given: Sequence[str], option: str) -> list[str]:
        """Canonical names of the domains that the config asks for, in the order given, each known and named once."""
        if not given:
            raise UserError(f"{option} is empty: name at least one domain of {self.name} ({', '.join(self.domains)})")
        keys, resolved = self.domain_keys(), []
        for name in map(str, [given] if isinstance(given, str | int) else given):  # a yaml file may name a number
            domain = keys.get(name_key(name))
            if domain is None:
                known = list(self.domains)
                hint = did_you_mean(name, known, cutoff=0.5)
                raise UserError(f'{option}: {self.name} has no domain "{name}"; it has {", ".join(known)}.{hint}')
            if domain in resolved:
                raise UserError(f"{option} names the domain {domain} twice: {', '.join(map(str, given))}")
            resolved.append(domain)
        return resolved


def load_spec(file: str) -> Spec:
    """Read one entry of `lists/`, for example `load_spec("pacs")`."""
    data = read_entry(file)
    domains = data.get("domains", {})
    return Spec(
        name=data["name"],
        classes=tuple(data["classes"]),
        domains={name: tuple(entry["spellings"]) for name, entry in domains.items()},
        folders=tuple(data["folders"]),
        class_spellings=tuple(data.get("class_spellings", ())),
        class_folders={name: tuple(folders) for name, folders in data.get("class_folders", {}).items()},
        images=published_images(data),
        names_are_keys=len(set(data["classes"])) == len(data["classes"]) and "classes_of" not in data,
        skip=frozenset(data["skip"]),
        details=domains,
        said={name: data["said"].get(name, name) for name in data["classes"]} if "said" in data else {},
    )
