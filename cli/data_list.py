"""`dassl-clip data list`: the data sets that are known, and which of them a folder seems to hold."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from tabulate import tabulate

from dassl_clip.cli.data_names import config_names, loaders
from dassl_clip.results.errors import UserError

OWN, SHIPPED = "yours", "ships with the package"


def run(args: argparse.Namespace, pairs: Sequence[str]) -> int:
    """Print the table."""
    from dassl_clip.datasets.folders import list_folder
    from dassl_clip.datasets.spec import load_spec, name_key, read_entry
    from dassl_clip.datasets.verify import entries

    if pairs:
        raise UserError(f"dassl-clip data list takes no KEY VALUE pairs, but {' '.join(pairs)} was given")
    root = Path(args.root).expanduser()
    if args.root and not root.is_dir():
        raise UserError(f"--root: there is no folder {root}")
    there = {name_key(name): name for name in (list_folder(root)[0] if args.root else ())}
    specs = {spec.name: spec for spec in map(load_spec, entries())}
    numbers = {entry["name"]: entry.get("num_classes", 0) for entry in map(read_entry, entries())}
    configs, rows = config_names(), []
    for name in loaders():
        spec = specs.get(name)
        row = [name, configs.get(name, "")]
        if spec is None:
            row += [SHIPPED if name == "Icons" else OWN, "", "", ""]
        else:
            images = sum(spec.images.values())
            classes = len(spec.classes) or numbers[name]
            row += [", ".join(spec.domains) or "none", f"{classes:,}", f"{images:,}" if images else "", spec.folders[0]]
        if args.root:
            found = [there[name_key(folder)] for folder in (spec.folders if spec else ()) if name_key(folder) in there]
            row.append(", ".join(dict.fromkeys(found)))
        rows.append(row)
    columns = ["data set", "config", "domains", "classes", "images", "folder"]
    columns += ["seen in the root"] if args.root else []
    print(tabulate(rows, columns, colalign=("left",) * len(columns), disable_numparse=True))
    print("\n`dassl-clip data verify NAME --root DIR` looks at one, `dassl-clip data links NAME` says where to get it.")
    return 0
