"""All benchmarks, one after the other; their figures go to benchmarks/results/<device>.json and docs/performance.md.

On two CPU cores it takes up to 25 minutes, `--quick` about ten; on a GPU `--quick` stays below ten. A script that fails
is named at the end, and the others run all the same.

example: python benchmarks/run_all.py --threads 2
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

import page
import torch
from reporting import RESULTS

HERE = Path(__file__).parent
LARGE = "ViT-L-14-336:random"


def plan(options: argparse.Namespace) -> list[list[str]]:
    """The scripts with their own arguments, in order."""
    gpu = options.device.startswith("cuda")
    quick = options.quick
    scripts = {
        "text_tower.py": ["--budget", "25"],
        "gopro_step.py": ["--budget", "45"],
        "gopro_eval.py": ["--budget", "30"],
        "clap_training.py": ["--repeats", "2", "--budget", "60"],
        "inmap.py": ["--full"] if gpu else ["--authors-steps", "3" if quick else "10"],
        "cache.py": ["--budget", "40"],
        "transduction.py": ["--many", "100"] if quick else [],
        "precision.py": [],
        "datapath.py": ["--repeats", "2"],
        "scaling.py": ["--repeats", "2"],
    }
    if gpu:
        scripts["clap_training.py"] += ["--encode-classes", "16", "--plain-steps", "4"]
        scripts["scaling.py"] += ["--disk-images", "1000000" if quick else "10000000"]
        scripts["cache.py"] += ["--workers", "8"]
    if quick:
        scripts["gopro_step.py"] += ["--only", "65 classes", "1000 classes" if gpu else "7 classes"]
    if quick and not gpu:
        scripts["inmap.py"] += ["--images", "5000"]
    chosen = {name: words for name, words in scripts.items() if not options.scripts or name in options.scripts}
    lines = [[name, *words] for name, words in chosen.items()]
    if gpu:
        only = {"text_tower.py": ["--only", "prompts"], "gopro_step.py": ["--only", "1000 classes"], "datapath.py": []}
        lines += [[name, *chosen[name], "--architecture", LARGE, *only[name]] for name in chosen if name in only]
    return lines


def shared(options: argparse.Namespace) -> list[str]:
    """The arguments that all scripts get."""
    words = [
        "--device",
        options.device,
        "--threads",
        str(options.threads),
        "--write",
        "--results",
        str(options.results),
    ]
    return words + ["--quick"] * options.quick + ["--profile"] * options.profile


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu, or cuda")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--quick", action="store_true", help="smaller sizes, fewer repeats")
    parser.add_argument("--profile", action="store_true", help="also the operators that ours spends its time in")
    parser.add_argument("--scripts", nargs="+", metavar="NAME.py", help="some of them")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the result files")
    parser.add_argument("--page", type=Path, default=page.PAGE, help="the page whose tables are renewed")
    return parser.parse_args(argv)


def main() -> int:
    """Run all; the exit code is the number of scripts that failed."""
    options = parse()
    failed = []
    for line in plan(options):
        begin = time.monotonic()
        print(f"\n$ python benchmarks/{' '.join(line)}", flush=True)
        done = subprocess.run([sys.executable, str(HERE / line[0]), *line[1:], *shared(options)])
        print(f"({time.monotonic() - begin:.0f} s)", flush=True)
        failed += [" ".join(line)] * (done.returncode != 0)
    for line in failed:
        print(f"failed: {line}", file=sys.stderr)
    page.update(options.page, options.results)
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
