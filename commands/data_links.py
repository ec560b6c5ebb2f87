"""`dassl-clip data links`: where data sets are published, with sizes, checksums and terms; nothing is downloaded."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from dassl_clip.commands.data_names import config_names, loaders
from dassl_clip.commands.errors import UserError, suggestion


def run(args: argparse.Namespace, pairs: Sequence[str]) -> int:
    """Print the links of the data sets that are named, or of all."""
    from dassl_clip.datasets.spec import name_key, read_entry
    from dassl_clip.datasets.verify import entries

    if pairs:
        raise UserError(f"dassl-clip data links takes no KEY VALUE pairs, but {' '.join(pairs)} was given")
    configs, known = config_names(), {}
    for entry in map(read_entry, entries()):
        for text in (entry["name"], configs.get(entry["name"], entry["name"])):
            known[name_key(text)] = entry
    chosen = {}
    for name in args.names or sorted(known):
        entry = known.get(name_key(name))
        if entry is None:
            names = [other for other in loaders() if name_key(other) in known]
            raise UserError(f"no links are known for '{name}'.{suggestion(name, names)} Known: {', '.join(names)}.")
        chosen[entry["name"]] = entry
    print("\n\n".join(text_of(entry) for entry in chosen.values()))
    return 0


def text_of(entry: dict) -> str:
    """The lines on one data set."""
    lines = [entry["name"], f"  {entry['reference']}", f"  terms: {entry.get('terms', 'none found')}"]
    for link in entry.get("links", ()):
        facts = [link[key] if key != "md5" else f"md5 {link[key]}" for key in ("size", "md5") if key in link]
        lines.append(f"  - {link['what']}" + (f" ({', '.join(facts)})" if facts else ""))
        if "url" in link:
            lines.append(f"    {link['url']}")
    return "\n".join(lines)
