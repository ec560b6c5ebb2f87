"""InMaP's solvers on a synthetic problem of ImageNet's size: 50,000 images, 768 dimensions, 1000 classes.

Features have CLIP's traits: a gap between images and texts, classes in groups, a decaying spectrum, noise. Labels are
Sinkhorn's, hardened, formed in row blocks. Both solvers start from the text proxies. The authors' 2000 steps take long
on a CPU: by default a stated number of them is timed and the rest is reckoned from it, which the table and the file
say; `--full` takes them all. The peak memory is that of the whole process.

Usage: python benchmarks/inmap.py [--images 50000] [--threads 2] [--device cuda] [--full] [--write]
"""

import argparse
import json
import os
import platform
import re
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from tabulate import tabulate
from torch import Tensor

from dassl_clip.modeling.inmap import Cosines, PseudoLabels, sinkhorn_potentials, solve_vision_proxy

RESULTS = Path(__file__).parent / "results"
AUTHORS_STEPS = 2000


def main() -> None:
    """Measure, print the table, and write it when asked."""
    options = parse_arguments()
    torch.set_num_threads(options.threads)
    features, text_proxy, truth = (x.to(options.device) for x in clip_like(options))
    result = measure(features, text_proxy, truth, options)
    print_table(result, options)
    if options.write:
        print(f"written to {write(result, options)}")


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--dimensions", type=int, default=768)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--scale", type=float, default=100.0, help="logit scale; labels at 1, proxies at 4 over it")
    parser.add_argument("--noise", type=float, default=1.6, help="spread of images around their class")
    parser.add_argument("--text-error", type=float, default=0.9, help="distance of texts from their class")
    parser.add_argument("--gamma", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--block-rows", type=lambda text: text if text == "auto" else int(text), default="auto")
    parser.add_argument("--lazy", action="store_true", help="form scores and labels anew in each step, and keep none")
    steps = parser.add_mutually_exclusive_group()
    steps.add_argument("--authors-steps", type=int, default=10, help="of the authors' 2000 steps, those that are taken")
    steps.add_argument("--full", action="store_true", help="take all 2000 of the authors' steps")
    parser.add_argument("--write", action="store_true", help="write the figures into benchmarks/results/<device>.json")
    return parser.parse_args()


def clip_like(options: argparse.Namespace) -> tuple[Tensor, Tensor, Tensor]:
    """Image features `[N, E]`, text proxies `[E, C]` and true classes `[N]`."""
    n, e, c = options.images, options.dimensions, options.classes
    generator = torch.Generator().manual_seed(options.seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    spectrum = F.normalize((1 + torch.arange(e).float()) ** -0.4, dim=0)
    groups = normal(max(1, c // 10), e)[torch.arange(c) % max(1, c // 10)]
    centres = 0.7 * (groups + normal(c, e)) * spectrum  # [C, E]
    image_cone, text_cone = F.normalize(normal(2, e), dim=1)
    truth = torch.randint(c, (n,), generator=generator)
    features = normal(n, e).mul_(options.noise * spectrum).add_(centres[truth]).mul_(0.7).add_(0.8 * image_cone)
    texts = 0.8 * text_cone + 0.5 * (centres + options.text_error * normal(c, e) * spectrum)
    return F.normalize(features, dim=1), F.normalize(texts, dim=1).T.contiguous(), truth


def measure(features: Tensor, text_proxy: Tensor, truth: Tensor, options: argparse.Namespace) -> dict[str, object]:
    """Seconds, objectives and top-1 of the parts."""
    scores, temperature = Cosines(features, text_proxy), 1 / options.scale
    if not options.lazy:
        scores = scores[:]
    potentials, sinkhorn_seconds = timed(
        lambda: sinkhorn_potentials(scores, temperature, options.gamma, block_rows=options.block_rows), options.device
    )
    labels = PseudoLabels(scores, temperature, potentials)
    if not options.lazy:
        labels, scores = labels[:], None

    def solve(solver: str, steps: int | None) -> dict[str, object]:
        solution, seconds = timed(
            lambda: solve_vision_proxy(
                features, text_proxy, labels, 4 * temperature, solver, steps, block_rows=options.block_rows
            ),
            options.device,
        )
        figures = solution._asdict()
        return {"seconds": seconds, "top1": top1(features, figures.pop("proxy"), truth)} | figures

    taken = AUTHORS_STEPS if options.full else options.authors_steps
    fast, authors = solve("fast", None), solve("authors", taken)
    whole = authors["seconds"] * AUTHORS_STEPS / taken
    return {
        "sinkhorn_seconds": sinkhorn_seconds,
        "text_top1": top1(features, text_proxy, truth),
        "fast": fast,
        "authors": authors | {"seconds_of_2000": whole, "extrapolated": taken != AUTHORS_STEPS},
        "time_ratio": whole / fast["seconds"],
        "peak_memory_mb": peak_memory(options.device) / 2**20,
    }


def timed(run: Callable[[], object], device: str) -> tuple[object, float]:
    """A result and the seconds it took."""
    synchronise(device)
    start = time.perf_counter()
    result = run()
    synchronise(device)
    return result, time.perf_counter() - start


def synchronise(device: str) -> None:
    """Wait for a GPU."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def top1(features: Tensor, proxy: Tensor, truth: Tensor) -> float:
    """Per cent of images whose largest score is that of their class."""
    pairs = zip(features.split(4096), truth.split(4096))
    return 100 * sum(int(((x @ proxy).argmax(1) == y).sum()) for x, y in pairs) / len(truth)


def peak_memory(device: str) -> int:
    """Bytes: of the GPU's allocator, or resident in this process."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated()
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def print_table(result: dict, options: argparse.Namespace) -> None:
    """The figures as a table."""
    fast, authors = result["fast"], result["authors"]
    rows = [
        [name, f"{x['steps']}", f"{x['seconds']:.1f}", f"{x['objective']:.7f}", f"{x['lower_bound']:.7f}", x["top1"]]
        for name, x in (("fast", fast), ("authors", authors))
    ]
    print(
        f"{options.images} x {options.dimensions} x {options.classes}, {options.device}, {options.threads} threads; "
        f"load {os.getloadavg()[0]:.1f}; text top-1 {result['text_top1']:.2f}; "
        f"Sinkhorn {result['sinkhorn_seconds']:.1f} s; peak memory {result['peak_memory_mb']:.0f} MB"
    )
    print(tabulate(rows, headers=["solver", "steps", "seconds", "objective", "lower bound", "top-1"]))
    how = f"reckoned from {authors['steps']}" if authors["extrapolated"] else "measured"
    print(
        f"authors' 2000 steps: {authors['seconds_of_2000']:.1f} s ({how}); fast is {result['time_ratio']:.1f} x faster"
    )


def write(result: dict, options: argparse.Namespace) -> Path:
    """Put the figures into the device's file, beside those of other benchmarks."""
    cuda = options.device.startswith("cuda")
    device = torch.cuda.get_device_name(options.device) if cuda else f"cpu-{options.threads}-threads"
    path = RESULTS / f"{re.sub(r'[^a-z0-9]+', '-', device.lower()).strip('-')}.json"
    path.parent.mkdir(exist_ok=True)
    content = json.loads(path.read_text()) if path.is_file() else {}
    setting = {key: value for key, value in vars(options).items() if key != "write"}
    facts = {"torch": torch.__version__, "processor": platform.processor()}
    entry = {"setting": setting | facts, "load": os.getloadavg()[0], "result": result}
    content.setdefault("inmap", {})[f"{options.images} x {options.dimensions} x {options.classes}"] = entry
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        json.dump(content, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(file.name, path)
    return path


if __name__ == "__main__":
    main()
