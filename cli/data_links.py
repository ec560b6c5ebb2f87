"""`dassl-clip data links`: where data sets are published, with sizes, checksums and terms.

Nothing is downloaded without `--download`; with it, what lies at a plain address is fetched into the folder of the data
set below `--root` and unpacked, and the rest is named.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from dassl_clip.cli.data_names import config_names, loaders
from dassl_clip.results.errors import UserError, did_you_mean


def run(args: argparse.Namespace, pairs: Sequence[str]) -> int:
    """Print the links of the data sets that are named, or of all; fetch them if asked; 1 if something is left to do."""
    if pairs:
        raise UserError(f"dassl-clip data links takes no KEY VALUE pairs, but {' '.join(pairs)} was given")
    chosen = entries_of(args.names)
    print("\n\n".join(text_of(entry) for entry in chosen))
    if not args.download:
        return 0
    if not args.names or not args.root:
        raise UserError("--download needs the names of data sets, and --root DIR to put them in")
    left = [line for entry in chosen for line in fetch_all(entry, Path(args.root).expanduser())]
    print("\n".join(["", "still to be fetched:", *left]) if left else "\nAll is there.")
    return 1 if left else 0


def entries_of(names: Sequence[str]) -> list[dict]:
    """The entries of data sets, by registry or config name; of all if none is named.

    Raises:
        UserError: one is not known.
    """
    from dassl_clip.datasets.spec import name_key, read_entry
    from dassl_clip.datasets.verify import entries

    configs, known = config_names(), {}
    for entry in map(read_entry, entries()):
        for text in (entry["name"], configs.get(entry["name"], entry["name"])):
            known[name_key(text)] = entry
    chosen = {}
    for name in names or sorted(known):
        entry = known.get(name_key(name))
        if entry is None:
            there = [other for other in loaders() if name_key(other) in known]
            raise UserError(f"no links are known for '{name}'.{did_you_mean(name, there)} Known: {', '.join(there)}.")
        chosen[entry["name"]] = entry
    return list(chosen.values())


def text_of(entry: dict) -> str:
    """The lines on one data set."""
    lines = [entry["name"], f"  {entry['reference']}", f"  terms: {entry.get('terms', 'none found')}"]
    for link in entry.get("links", ()):
        facts = [link[key] if key != "md5" else f"md5 {link[key]}" for key in ("size", "md5") if key in link]
        lines.append(f"  - {link['what']}" + (f" ({', '.join(facts)})" if facts else ""))
        if "url" in link:
            lines.append(f"    {link['url']}")
    return "\n".join(lines)


def fetch_all(entry: dict, root: Path) -> list[str]:
    """Fetch and unpack what can be; a line for each thing that is still to be fetched."""
    from dassl_clip.datasets.fetch import ARCHIVE_ENDINGS, is_file, unpack

    folder, left = root / entry["folders"][0], []
    for link in entry["links"]:
        url = link.get("url", "")
        if not is_file(url):
            left.append(f"  {entry['name']}: {link['what']}{f' at {url}' if url else ''}, into {folder}")
            continue
        try:
            path = _fetch(link, folder)
            archive = path.name.endswith(ARCHIVE_ENDINGS)
            if archive:
                unpack(path, folder)
        except ValueError as error:  # the others may be had all the same
            left.append(f"  {entry['name']}: {link['what']}, into {folder}: {error}")
        else:
            print(f"{path} is there" + (", unpacked" if archive else ""))
    return left


def _fetch(link: dict, folder: Path) -> Path:
    """Fetch the file of a link under a progress bar."""
    from dassl_clip.datasets.fetch import fetch

    with tqdm(desc=link["what"][:30], unit="B", unit_scale=True, disable=not sys.stderr.isatty()) as bar:

        def advance(there: int, total: int) -> None:
            bar.total = total or None
            bar.update(there - bar.n)

        return fetch(link["url"], folder, link.get("md5", ""), advance)
