"""The facts of published data sets as `datasets/lists` holds them, without importing a loader."""

import json
import re
import unicodedata
from pathlib import Path
from typing import Any

LISTS = Path(__file__).resolve().parents[1] / "datasets" / "lists"


def name_key(name: str) -> str:
    """Form in which two spellings of one name are equal: "Real World", "real_world" and "REAL-WORLD" agree."""
    return re.sub(r"[\s_-]+", "", unicodedata.normalize("NFC", name).casefold())


def entries() -> list[str]:
    """Names of the files in `lists/`, without their ending."""
    return sorted(path.stem for path in LISTS.glob("*.json"))


def read_entry(file: str) -> dict[str, Any]:
    """One entry of `lists/` as it is, with the class names of another entry where it says `classes_of`."""
    data: dict[str, Any] = json.loads((LISTS / f"{file}.json").read_text(encoding="utf-8"))
    if "classes_of" in data:
        other = read_entry(data["classes_of"])
        names = dict(zip(other["class_spellings"], other["classes"]))
        data.setdefault("class_spellings", other["class_spellings"])
        data["classes"] = [names[folder] for folder in data["class_spellings"]]
    return data


def published_images(entry: dict[str, Any]) -> dict[str, int]:
    """Published number of images of each domain, or part, of an entry."""
    domains = entry.get("domains", {})
    images: dict[str, int] = entry.get("images") or {
        name: facts["images"] for name, facts in domains.items() if "images" in facts
    }
    return images
