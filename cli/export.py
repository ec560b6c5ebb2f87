"""A finished run as one small file: `dassl-clip export RUN`; a look into such a file; and a run folder of one again."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dassl_clip.cli.arguments import Parser
from dassl_clip.engine.config import make_folder
from dassl_clip.engine.errors import guarded
from dassl_clip.results.errors import UserError
from dassl_clip.results.records import check_record

ENDING = ".safetensors"


def build_parser() -> argparse.ArgumentParser:
    """The arguments of this command."""
    parser = Parser(
        prog="dassl-clip export",
        description="Write what a finished run learned into one safetensors file, with its settings, class names, the "
        "hash of its backbone and its record; where scores are linear in image features, a plain classifier too.",
        epilog="examples: dassl-clip export output/fewshot/icons/METHOD/icons/shots16/line/seed1 --out head.safetensors"
        "    dassl-clip export head.safetensors    dassl-clip export head.safetensors --unpack my_run",
    )
    parser.add_argument(
        "run", metavar="RUN", help="folder of a finished run; or an exported file, to see what it holds"
    )
    parser.add_argument("--out", metavar="FILE", help="the file (default: named after method, data, target and seed)")
    parser.add_argument("--half", action="store_true", help="learned parts in float16; what it changes is measured")
    parser.add_argument("--unpack", metavar="FOLDER", help="make a run folder of an exported file")
    parser.add_argument("--import", dest="imports", action="append", default=[], metavar="MODULE_OR_FILE",
                        help="load a module or .py file that registers the run's trainer; repeatable")  # fmt: skip
    parser.add_argument("--debug", action="store_true", help="tracebacks for every error")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Write, show or unpack; 2 with one sentence for a user's error."""
    return guarded(lambda words: run(build_parser().parse_args(words)), argv)


def run(args: argparse.Namespace) -> int:
    """Do what the arguments ask for."""
    from dassl_clip.engine.export import load_export, save_export
    from dassl_clip.engine.open_run import unpack_export

    place = Path(args.run).expanduser()
    if place.is_file():
        if args.out or args.half:
            raise UserError(
                f"{'--out' if args.out else '--half'} goes with a run's folder, and {place} is a file; --unpack FOLDER "
                "makes a folder of it"
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
    made = export_run(place, args.imports, args.half)
    path = Path(args.out or default_name(made.record)).expanduser()
    if path.suffix != ENDING:
        raise UserError(f"--out {path}: the file is a safetensors file, so its name ends in {ENDING}")
    save_export(made, path)
    print(describe(load_export(path), path))
    return 0


def export_run(place: Path, imports: Sequence[str] = (), half: bool = False) -> Any:
    """The export of the finished run in a folder; its data need not be there."""
    from dassl_clip.engine.export import make_export
    from dassl_clip.engine.open_run import open_run, quiet, read_run

    record, tree = read_run(place)
    trainer, _ = open_run(place, imports=imports)
    with quiet():
        return make_export(trainer, tree, record, half)


def default_name(record: dict[str, Any]) -> str:
    """`METHOD-Icons-line-seed1.safetensors`."""
    subset = record["class_subset"] if record["class_subset"] != "all" else ""
    parts = [record["method"], record["dataset"], *record["target_domains"], subset, f"seed{record['seed']}"]
    return "-".join(filter(None, parts)) + ENDING


def describe(export: Any, path: Path) -> str:
    """What a file holds, a line each."""
    record, backbone, names = export.record, export.backbone, export.classnames
    parts = [
        f"{name} ({sum(value.numel() for value in state.values()):,} numbers)" for name, state in export.learned.items()
    ]
    measured = ", ".join(f"{name} {found['accuracy']:.1f} %" for name, found in record["metrics"].items())
    lines = [
        f"{path}: {path.stat().st_size / 1024:,.1f} kB, sha256 of the tensors {export.sha256[:12]}",
        f"method: {record['method']} ({record['config']}), {record['dataset']}, seed {record['seed']}",
        f"protocol: {record['protocol']}",
        f"classes: {len(names)} ({', '.join(names[:4])}{', ...' * (len(names) > 4)})",
        f"backbone: {backbone['name']} (weights {backbone['weights_hash'][:12]})",
        f"learned parts: {', '.join(parts) or 'none'}",
        *storage_lines(export.storage),
        f"plain classifier: {export.note}",
        f"accuracy in its record: {measured}",
    ]
    if export.base is not None:
        lines.append(f"refines: {export.base.record['method']} ({export.base.record['config']}), which it carries")
    return "\n".join(lines)


def storage_lines(storage: Any) -> list[str]:
    """What a file does not hold as it was learned, a line each."""
    lines = [f"stored in {storage.precision}: {storage.note}"] if storage.note else []
    names = [f"{model}.{key}" for model, keys in storage.left_out.items() for key in keys]
    return lines + ([f"left out, since no score passes through: {', '.join(names)}"] if names else [])
