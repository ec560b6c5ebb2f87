"""The data sets on the disk: `dassl-clip data list | verify | inspect | links`.

`list` shows the data sets that are known, and which of them a folder seems to hold; `verify` says whether a folder
holds a data set, in which layout, and what is missing; `inspect` draws a sheet of images with the prompts they will
get; `links` prints where data sets are published, with sizes, checksums and terms. Nothing is downloaded without
`--download`; with it, what lies at a plain address is fetched into the folder of the data set below `--root` and
unpacked, and the rest is named.
"""

from __future__ import annotations

import argparse
import io
import logging
import os
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate
from tqdm import tqdm

from dassl_clip import configs
from dassl_clip.cli.arguments import Parser, add_data, command, refuse_among_images
from dassl_clip.engine import declared
from dassl_clip.engine.catalogue import dataset_file
from dassl_clip.engine.config import declared_config, decode, merge_file, set_key
from dassl_clip.engine.overrides import Pairs
from dassl_clip.results.data_sets import entries, name_key, published_images, read_entry
from dassl_clip.results.errors import MissingFileError, UserError, did_you_mean, listed
from dassl_clip.results.files import kind_of, write_bytes_atomically

NO_ADDRESS = "no address was found that its authors name; see the paper"
VERDICTS = ("fits", "can be used, with warnings", "cannot be used as it is")


def build_parser() -> Parser:
    """The arguments of all actions; KEY VALUE pairs are taken off before."""
    parser = Parser(
        prog="dassl-clip data",
        description="List, verify and look at data sets, and print where they are published.",
        epilog="example: dassl-clip data verify pacs --root ~/data",
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION", parser_class=Parser)
    shared = argparse.ArgumentParser(add_help=False)
    add_data(shared, "folder above the data sets, or the data set's own", "root")
    actions.add_parser("list", parents=[shared], help="the data sets that are known, and which are there",
                       epilog="example: dassl-clip data list --root ~/data")  # fmt: skip

    named = argparse.ArgumentParser(add_help=False, parents=[shared])
    named.add_argument("name", metavar="NAME", help="data set, such as pacs")
    verify = actions.add_parser(
        "verify",
        parents=[named],
        help="compare a folder with what is published",
        usage="%(prog)s NAME --root DIR [options] [KEY VALUE ...]",
        description="Exit code 0: the folder fits; 1: it can be used, with warnings; 2: it cannot be used as it is.",
        epilog="example: dassl-clip data verify pacs --root ~/data --decode",
    )
    verify.add_argument("--classes", action="store_true", help="the number of images of every class")
    verify.add_argument("--decode", action="store_true", help="decode every image")
    verify.add_argument("--duplicates", action="store_true", help="look for files that are copies of each other")
    verify.add_argument("--jobs", type=int, default=os.cpu_count() or 1, metavar="N", help="threads that decode")
    verify.add_argument("--make-split", nargs="?", const="", metavar="FILE",
                        help="write a split of your own where the published file is missing")  # fmt: skip
    verify.add_argument("--seed", type=int, default=1, metavar="N", help="of --make-split (default: 1)")

    inspect = actions.add_parser(
        "inspect",
        parents=[named],
        help="a sheet of images with the prompts they will get, and the order of the classes",
        usage="%(prog)s NAME --root DIR [options] [KEY VALUE ...]",
        epilog="example: dassl-clip data inspect icons --out icons.png",
    )
    inspect.add_argument("--out", default="", metavar="FILE", help="the sheet (default: NAME.png)")
    inspect.add_argument("--images", type=int, default=6, metavar="N", help="images a domain or part (default: 6)")
    inspect.add_argument("--seed", type=int, default=1, metavar="N", help="which images (default: 1)")
    inspect.add_argument("--templates", default="single", metavar="NAME",
                         help="set of templates, or one with {} (default: single; also coop, clip, ...)")  # fmt: skip

    links = actions.add_parser("links", parents=[shared], help="where data sets are published, sizes, terms",
                               epilog="example: dassl-clip data links pacs vlcs")  # fmt: skip
    links.add_argument("names", nargs="*", metavar="NAME", help="data sets (default: all)")
    links.add_argument("--download", action="store_true",
                       help="fetch what lies at a plain address into --root, check its sum, and unpack it")  # fmt: skip
    return parser


def run(args: argparse.Namespace, pairs: Pairs) -> int:
    root = Path(args.root).expanduser()
    if args.root and not root.is_dir() and not getattr(args, "download", False):
        kind = kind_of(root)
        fault = f"there is no folder {root}" if kind == "nothing" else f"{root} is {kind}, not a folder"
        raise MissingFileError(f"--root: {fault}")
    if args.action in ("verify", "inspect"):
        return run_verify(args, pairs) if args.action == "verify" else run_inspect(args, pairs)
    if pairs:
        raise UserError(f"dassl-clip data {args.action} takes no KEY VALUE pairs, but {' '.join(pairs[0])} was given")
    return run_list(args) if args.action == "list" else run_links(args)


def run_list(args: argparse.Namespace) -> int:
    """Print the data sets that are known, and which of them a folder seems to hold."""
    there = {name_key(name): name for name in (next(os.walk(Path(args.root).expanduser()))[1] if args.root else ())}
    files, known, rows = config_names(), {entry["name"]: entry for entry in map(read_entry, entries())}, []
    for name in sorted(declared.dataset_names(), key=str.casefold):
        facts, folders = ["ships with the package" if name == "Icons" else "yours", "", "", ""], []
        if entry := known.get(name):
            counts = len(entry["classes"]) or entry.get("num_classes", 0), sum(published_images(entry).values())
            folders = entry["folders"]
            facts = [
                listed(entry.get("domains", ()), 6) or "none",
                *(f"{n:,}" if n else "" for n in counts),
                folders[0],
            ]
        found = dict.fromkeys(there[name_key(folder)] for folder in folders if name_key(folder) in there)
        rows.append([name, files.get(name, ""), *facts, *([", ".join(found)] if args.root else [])])
    columns = ["data set", "config", "domains", "classes", "images", "folder"]
    columns += ["seen in the root"] if args.root else []
    print(tabulate(rows, columns, colalign=("left",) * len(columns), disable_numparse=True))
    print("\n`dassl-clip data verify NAME --root DIR` looks at one, `dassl-clip data links NAME` says where to get it.")
    return 0


def run_verify(args: argparse.Namespace, pairs: Pairs) -> int:
    """Print what was found; 0 fits, 1 warns, 2 unusable."""
    if args.jobs < 1:
        raise UserError(f"--jobs {args.jobs}: at least 1 thread must decode")
    config_of(args.name, args.root, pairs, declared_config())
    from dassl_clip.datasets.make_split import make_split
    from dassl_clip.datasets.verify import verify
    from dassl_clip.engine.images import inspect_image

    loader, cfg = open_config(args.name, args.root, pairs)
    if args.make_split is not None:
        path = make_split(loader, cfg, args.seed, args.make_split)
        print(f"Wrote {path}, to be used by DATASET.SPLIT_FILE {path}; results on it are not comparable")
        cfg.DATASET.SPLIT_FILE = str(path)
    inspect = inspect_image if args.decode else None
    report = verify(loader, cfg, inspect, args.duplicates, args.jobs, progress)
    print(f"{report.dataset} in {report.root or ('the package' if report.images else 'no folder')}")
    for text in report.layouts:
        print(f"layout: {text}")
    if report.counts:
        print(f"\n{counts_table(report)}\n")
    if args.classes and report.counts:
        rows = [
            [str(label), name, *(f"{count.images.get(label, 0):,}" for count in report.counts)]
            for label, name in enumerate(report.classes)
        ]
        columns = ["label", "class", *(count.name for count in report.counts)]
        align = ("right", "left", *["right"] * len(report.counts))
        print(f"{tabulate(rows, columns, colalign=align, disable_numparse=True)}\n")
    for finding in report.findings:
        print(f"{finding.level}: {finding.text}")
    print(f"{report.dataset} {VERDICTS[report.verdict]}.")
    return report.verdict


def progress(items: Iterable, total: int, what: str) -> Iterable:
    """A bar on stderr, if that is a terminal."""
    return tqdm(items, total=total, desc=what, unit=" files", disable=not sys.stderr.isatty())


def counts_table(report: Any) -> str:
    """Domains or parts by classes and images, beside the published numbers."""
    parts = list(dict.fromkeys(part for count in report.counts for part in count.parts))
    numbers = [
        [sum(count.images.values()), count.published, *map(count.parts.get, parts)] for count in report.counts
    ]  # of each line; None where there is none
    present = [sum(number > 0 for number in count.images.values()) for count in report.counts]
    heads = [[count.name, f"{n} of {len(report.classes)}"] for count, n in zip(report.counts, present)]
    if len(heads) > 1:
        heads.append(["all", ""])
        images, published, *sums = zip(*numbers)
        known = None if None in published else sum(published)
        numbers.append([sum(images), known, *(sum(filter(None, column)) for column in sums)])
    rows = [[*head, *("" if n is None else f"{n:,}" for n in line)] for head, line in zip(heads, numbers)]
    rows += [[name, "not read"] for name in report.unread]
    columns = ["domain" if parts else "part", "classes", "images", "published", *parts]
    return tabulate(rows, columns, colalign=("left", *["right"] * (len(columns) - 1)), disable_numparse=True)


def run_inspect(args: argparse.Namespace, pairs: Pairs) -> int:
    """Print classes and prompts, and draw the sheet."""
    if args.images < 1:
        raise UserError(f"--images {args.images}: at least one image a domain is needed")
    out = Path(args.out or f"{args.name}.png").expanduser()
    if not out.parent.is_dir():
        raise UserError(f"--out: there is no folder {out.parent}")
    config_of(args.name, args.root, pairs, declared_config())
    from dassl_clip.cli.data_sheet import captioned, choose, draw_sheet, prompt
    from dassl_clip.clip.templates import resolve_templates
    from dassl_clip.datasets.verify import verify

    loader, cfg = open_config(args.name, args.root, pairs)
    templates = resolve_templates(args.templates, cfg.DATASET.NAME)
    report = verify(loader, cfg)
    for finding in report.findings:
        print(f"{finding.level}: {finding.text}")
    if not report.images:
        return report.verdict
    refuse_among_images(out, "--out", {os.path.dirname(image.path) for image in report.images})
    more = f" (and {len(templates) - 1} more templates)" if len(templates) > 1 else ""
    print(f"{report.dataset}: {len(report.classes)} classes in label order, with their prompts{more}")
    for label, name in enumerate(report.classes):
        print(f"{label:>5}  {name}: {prompt(templates[0], name)}")
    rows = choose(report, args.images, args.seed)
    picture = io.BytesIO()
    draw_sheet(captioned(rows, report.classes, templates[0])).save(picture, "PNG")
    write_bytes_atomically(out, picture.getvalue())
    print(f"Drew {sum(map(len, rows.values()))} images on {out}")
    return report.verdict


def run_links(args: argparse.Namespace) -> int:
    """Print the links of the data sets that are named, or of all; fetch them if asked; 1 if something is left to do."""
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
    files, known = config_names(), {}
    for entry in map(read_entry, entries()):
        for text in (entry["name"], files.get(entry["name"], entry["name"])):
            known[name_key(text)] = entry
    chosen = {}
    for name in names or sorted(known):
        entry = known.get(name_key(name))
        if entry is None:
            there = [other for other in declared.dataset_names() if name_key(other) in known]
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
    for mirror in entry.get("mirrors", ()):
        lines += [f"  - mirror: {mirror['what']}", f"    {mirror['url']}"]
    if not entry["links"]:
        lines.append(f"  - {NO_ADDRESS}")
    return "\n".join(lines)


def fetch_all(entry: dict, root: Path) -> list[str]:
    """Fetch and unpack what can be; a line for each thing that is still to be fetched."""
    from dassl_clip.datasets.download import ARCHIVE_ENDINGS, fetch, is_file, unpack

    folder, left = root / entry["folders"][0], []
    if not entry["links"]:
        left.append(f"  {entry['name']}: {NO_ADDRESS}, into {folder}")
    for link in entry["links"]:
        url = link.get("url", "")
        if not is_file(url):
            left.append(f"  {entry['name']}: {link['what']}{f' at {url}' if url else ''}, into {folder}")
            continue
        bar = tqdm(desc=link["what"][:30], unit="B", unit_scale=True, disable=not sys.stderr.isatty())

        def advance(there: int, total: int, bar: tqdm = bar) -> None:
            bar.total = total or None
            bar.update(there - bar.n)

        try:
            with bar:
                path = fetch(url, folder, link.get("md5", ""), advance)
            archive = path.name.endswith(ARCHIVE_ENDINGS)
            if archive:
                unpack(path, folder)
        except ValueError as error:  # the others may be had all the same
            left.append(f"  {entry['name']}: {link['what']}, into {folder}: {error}")
        else:
            print(f"{path} is there" + (", unpacked" if archive else ""))
    return left


def config_names() -> dict[str, str]:
    """Registry name -> stem of the data set's file in `configs/datasets`."""
    names = {}
    for path in sorted((Path(configs.__file__).resolve().parent / "datasets").glob("*.yaml")):
        match = re.search(r"NAME:\s*['\"]?(\w+)", path.read_text(encoding="utf-8"))
        if match:
            names.setdefault(match[1], path.stem)
    return names


def open_config(name: str, root: str, pairs: Pairs) -> tuple[type, Any]:
    """The loader that a name stands for, and its configuration.

    Raises:
        UserError: there is no such data set, or a key does not fit.
    """
    from dassl.config import get_cfg_default
    from dassl.data.datasets import DATASET_REGISTRY
    from dassl_clip.datasets import add_config

    logging.disable(logging.NOTSET)  # importing upstream Dassl silences every logger of the process
    cfg = get_cfg_default()
    add_config(cfg)
    config_of(name, root, pairs, cfg)
    return DATASET_REGISTRY.get(cfg.DATASET.NAME), cfg


def config_of(name: str, root: str, pairs: Pairs, cfg: Any) -> None:
    """Write what is asked for into a tree of defaults.

    Args:
        name: registry name, name of a config or of the data set's folder, or path of a yaml file.
        root: folder above the data sets, or the data set's own.
        pairs: KEY VALUE pairs.
        cfg: the tree.

    Raises:
        UserError: there is no such data set, or a key does not fit.
    """
    known, files = declared.dataset_names(), config_names()
    meant = {name_key(text): key for key in known for text in (key, files.get(key, key))}
    for entry in map(read_entry, entries()):
        for folder in entry["folders"]:
            meant.setdefault(name_key(folder), entry["name"])
    if name.endswith((".yaml", ".yml")):
        merge_file(cfg, str(dataset_file(name)))
        if cfg.DATASET.NAME not in known:
            raise UserError(f"{name} names the data set '{cfg.DATASET.NAME}'. Known: {', '.join(known)}.")
    elif name_key(name) in meant:
        cfg.DATASET.NAME = meant[name_key(name)]
        if cfg.DATASET.NAME in files:
            merge_file(cfg, str(dataset_file(files[cfg.DATASET.NAME])))
    else:
        raise UserError(f"there is no data set '{name}'.{did_you_mean(name, known)} Known: {', '.join(known)}.")
    for key, text in pairs:
        set_key(cfg, key, decode(text), "the command line")
    if root:
        cfg.DATASET.ROOT = root


main = command(build_parser, run)
