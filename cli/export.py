"""A finished run as one small file: `dassl-clip export RUN`; a look into such a file; and a run folder of one again."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from dassl_clip.cli.arguments import Parser, add_import, command
from dassl_clip.engine.config import make_folder
from dassl_clip.results.errors import UserError
from dassl_clip.results.records import check_record

ENDING = ".safetensors"


def build_parser() -> Parser:
    parser = Parser(
        prog="dassl-clip export",
        description="Write what a finished run learned into one safetensors file, with its settings, class names, the "
        "hash of its backbone and its record; where scores are linear in image features, a plain classifier too.",
        epilog="examples:\n"
        "  dassl-clip export output/fewshot/icons/METHOD/icons/shots16/line/seed1 --out head.safetensors\n"
        "  dassl-clip export head.safetensors\n"
        "  dassl-clip export head.safetensors --unpack my_run",
    )
    parser.add_argument("run", metavar="RUN", help="folder of a finished run; or an exported file, to see its content")
    parser.add_argument("--out", metavar="FILE", help="the file (default: named after method, data, target and seed)")
    parser.add_argument("--half", action="store_true", help="learned parts in float16; what it changes is measured")
    parser.add_argument("--unpack", metavar="FOLDER", help="make a run folder of an exported file")
    add_import(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    from dassl_clip.engine.export import load_export, make_export, save_export
    from dassl_clip.engine.open_run import open_run, quiet, read_run, unpack_export

    place = Path(args.run).expanduser()
    if place.is_file():
        if args.out or args.half:
            flag = "--out" if args.out else "--half"
            raise UserError(
                f"{flag} goes with a run's folder, and {place} is a file; --unpack FOLDER makes a folder of it"
            )
        found = load_export(place)
        check_record(found.record)
        if args.unpack:
            print(f"unpacked to {unpack_export(found, Path(args.unpack).expanduser())}")
        else:
            print(describe(found, place))
        return 0
    if args.unpack:
        raise UserError(f"--unpack takes an exported file, and {place} is none")
    if args.out:
        make_folder(Path(args.out).expanduser().parent, "--out")
    record, tree = read_run(place)
    trainer, _ = open_run(place, imports=args.imports)
    with quiet():
        made = make_export(trainer, tree, record, args.half)
    subset = record["class_subset"] if record["class_subset"] != "all" else ""
    parts = [record["method"], record["dataset"], *record["target_domains"], subset, f"seed{record['seed']}"]
    path = Path(args.out or "-".join(filter(None, parts)) + ENDING).expanduser()
    if path.suffix != ENDING:
        raise UserError(f"--out {path}: the file is a safetensors file, so its name ends in {ENDING}")
    save_export(made, path)
    print(describe(load_export(path), path))
    return 0


def describe(export: Any, path: Path) -> str:
    """What a file holds, a line each."""
    record, backbone, names, storage = export.record, export.backbone, export.classnames, export.storage
    sizes = {name: sum(value.numel() for value in state.values()) for name, state in export.learned.items()}
    parts = [f"{name} ({size:,} numbers)" for name, size in sizes.items()]
    left_out = [f"{model}.{key}" for model, keys in storage.left_out.items() for key in keys]
    measured = ", ".join(f"{name} {found['accuracy']:.1f} %" for name, found in record["metrics"].items())
    lines = [
        f"{path}: {path.stat().st_size / 1024:,.1f} kB, sha256 of the tensors {export.sha256[:12]}",
        f"method: {record['method']} ({record['config']}), {record['dataset']}, seed {record['seed']}",
        f"protocol: {record['protocol']}",
        f"classes: {len(names)} ({', '.join(names[:4])}{', ...' * (len(names) > 4)})",
        f"backbone: {backbone['name']} (weights {backbone['weights_hash'][:12]})",
        f"learned parts: {', '.join(parts) or 'none'}",
        *([f"stored in {storage.precision}: {storage.note}"] if storage.note else []),
        *([f"left out, since no score passes through: {', '.join(left_out)}"] if left_out else []),
        f"plain classifier: {export.note}",
        f"accuracy in its record: {measured}",
    ]
    if export.base is not None:
        lines.append(f"refines: {export.base.record['method']} ({export.base.record['config']}), which it carries")
    return "\n".join(lines)


main = command(build_parser, run)
