"""Is what is shipped what the builder makes?

`check_shipped` compares the shipped files with the recipe in the code and measures the weights anew;
`compare_builds` holds a fresh build against the shipped one. Both return sentences, none if all is well.
"""

import json
from pathlib import Path

from .model import MERGES_NAME, RECORD_NAME, WEIGHTS_NAME, read_model
from .packs import packs_for
from .recipe import Recipe
from .record import RECIPE_FILES, measure_folder
from .selection import read_curated
from .store import (
    MANIFEST_NAME,
    SPLIT_NAME,
    damaged_files,
    file_digest,
    picture_path,
    pixel_digest,
    read_png,
    read_split,
)

ROUNDING = 0.15


def read_record(folder: Path) -> dict:
    """`build.json` of a model's folder.

    Raises:
        FileNotFoundError: if it is missing.
    """
    path = folder / RECORD_NAME
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; `python -m tools.build_icons` writes it.")
    return json.loads(path.read_text(encoding="utf-8"))


def check_data(icons: Path) -> list[str]:
    """Problems of the data set: hashes, curated list, licences, groups on both sides."""
    problems = [f"{name} is missing, changed or not in the manifest" for name in damaged_files(icons)]
    rows, curated = read_split(icons), read_curated()
    if [row["path"] for row in rows] != [picture_path(picture) for picture in curated]:
        problems.append(f"{SPLIT_NAME} does not list the pictures of the curated list")
    sides: dict[str, set[str]] = {}
    for row in rows:
        sides.setdefault(row["group"], set()).add(row["split"])
    problems += [
        f"group {group} is in {' and '.join(sorted(parts))}" for group, parts in sides.items() if len(parts) > 1
    ]
    manifest = json.loads((icons / MANIFEST_NAME).read_text(encoding="utf-8"))
    paths = [row["path"] for row in rows]
    if not problems and pixel_digest(paths, (read_png(icons / path) for path in paths)) != manifest["pixels_sha256"]:
        problems.append("the pictures' pixels are not those of the manifest")
    problems += [
        f"pack {pack.pack} has no licence" for pack in packs_for("data") if not (pack.spdx and pack.licence_url)
    ]
    return problems


def check_model(clip: Path, icons: Path) -> list[str]:
    """Problems of the model: recipe, hashes, and zero-shot accuracies that differ from the recorded ones."""
    record = read_record(clip)
    problems = []
    if record["recipe_sha256"] != Recipe().sha256(*RECIPE_FILES):
        problems.append("the weights were made by another recipe than the one in the code")
    for name in (WEIGHTS_NAME, MERGES_NAME):
        if file_digest(clip / name) != record["files"][name]:
            problems.append(f"{name} is not the file that build.json records")
    return problems + accuracy_problems(record["zero_shot"], measure_folder(*read_model(clip), icons))


def accuracy_problems(recorded: dict, measured: dict) -> list[str]:
    """Accuracies (by part, prompt and domain) that differ by more than machines may."""
    return [
        f'zero-shot "{prompt}", {domain}, {part}: {measured[part][prompt][domain]:.2f}, recorded {value:.2f}'
        for part, table in recorded.items()
        for prompt, row in table.items()
        for domain, value in row.items()
        if abs(measured[part][prompt][domain] - value) > ROUNDING
    ]


def compare_builds(fresh: Path, shipped: Path) -> list[str]:
    """How a fresh build (folders `icons` and `clip`) differs from the shipped one, beyond the stated spread."""
    problems = []
    manifests = [
        json.loads((folder / "icons" / MANIFEST_NAME).read_text(encoding="utf-8")) for folder in (fresh, shipped)
    ]
    for key in ("pixels_sha256", "classes", "domains", "split"):
        if manifests[0][key] != manifests[1][key]:
            problems.append(f"data set: {key} differs")
    if not (fresh / "clip" / RECORD_NAME).is_file():
        return problems
    new, old = (read_record(folder / "clip") for folder in (fresh, shipped))
    if new["recipe_sha256"] != old["recipe_sha256"]:
        problems.append("model: another recipe")
    for prompt, row in old["zero_shot"]["all"].items():
        difference = new["zero_shot"]["all"][prompt]["mean"] - row["mean"]
        if abs(difference) > old["spread"]:
            problems.append(
                f'model: zero-shot "{prompt}" differs by {difference:+.1f} points, the stated spread is {old["spread"]}'
            )
    return problems
