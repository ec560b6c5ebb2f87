"""The text tower against the plain program: full-length prompts, one pass an image, no sharing.

Two claims: (1) prompts of all classes, forward and backward to the context; (2) a zero-shot classifier from template
ensembles. Ours and the plain rewriting run in turns in one process on the same random weights; the table has the median
of the repeats, the ratio of times, the ratio of arithmetic (matrix products: what the ratio of times could be), that of
peak memory (each side alone in a fresh process), and the largest difference of features and gradients.

Usage: python benchmarks/text_tower.py [--classes 100] [--images 1] [--repeats 5] [--threads 2] [--write]
"""

import argparse
import json
import logging
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import open_clip
import torch
import torch.nn.functional as F
from tabulate import tabulate
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from dassl_clip.modeling.backbone import FrozenCLIP, load_backbone
from dassl_clip.modeling.templates import resolve_templates
from dassl_clip.modeling.zeroshot import zeroshot_weights

RESULTS = Path(__file__).parent / "results"
WORDS = "a photo of a"


class Prompts:
    """Features of the prompts of all classes, and the gradient to the context."""

    title = "prompts, forward + backward"

    def __init__(self, clip: FrozenCLIP, options: argparse.Namespace):
        self.clip = clip
        names = open_clip.IMAGENET_CLASSNAMES[: options.classes]
        ids = clip.text.tokenize([WORDS])[0]
        start = clip.text.embed(ids[1 : 1 + len(WORDS.split())]).float()
        shift = 0.01 * torch.randn(options.images, 1, clip.text_width, generator=torch.Generator().manual_seed(0))
        self.context = (start + shift.to(start.device)).requires_grad_()  # [B, M, D]
        self.classes = clip.text.class_tokens(names, n_ctx=len(start))
        self.ids = clip.text.tokenize([f"{'X ' * len(start)}{name}." for name in self.classes.classnames])
        self.chunk = options.chunk

    def ours(self) -> tuple[Tensor, Tensor]:
        """Through the text tower."""
        return self._backward(self.clip.text.encode_prompts(self.context, self.classes, chunk=self.chunk))

    def plain(self) -> tuple[Tensor, Tensor]:
        """As the papers' programs do: rows of the full context length, one pass for each image."""
        model, m = self.clip.model, self.context.shape[1]
        table = model.token_embedding(self.ids)
        features = []
        for context in self.context:
            rows = torch.cat([table[:, :1], context.expand(len(table), -1, -1), table[:, 1 + m :]], dim=1)
            x = model.transformer(rows + model.positional_embedding, attn_mask=model.attn_mask)
            ends = torch.arange(len(x), device=x.device), self.ids.argmax(-1)
            features.append(model.ln_final(x)[ends] @ model.text_projection)
        return self._backward(torch.stack(features))

    def _backward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        weights = torch.linspace(-1, 1, features.numel(), device=features.device).view_as(features)
        (gradient,) = torch.autograd.grad((F.normalize(features, dim=-1) * weights).sum(), self.context)
        return features.detach(), gradient


class ZeroshotHead:
    """A zero-shot classifier with InMaP's seven templates."""

    title = "zero-shot head, 7 templates"

    def __init__(self, clip: FrozenCLIP, options: argparse.Namespace):
        self.clip, self.names = clip, open_clip.IMAGENET_CLASSNAMES[: options.classes]
        self.templates = resolve_templates("inmap7")
        clip.text.tokenize([t.replace("{}", name) for name in self.names for t in self.templates])

    def ours(self) -> tuple[Tensor]:
        """All texts at once."""
        return (zeroshot_weights(self.clip.text, self.names, self.templates),)

    @torch.no_grad()
    def plain(self) -> tuple[Tensor]:
        """As CLIP's notebook does: one class at a time, full length."""
        columns = []
        for name in self.names:
            ids = self.clip.text.tokenize([template.replace("{}", name) for template in self.templates])
            features = F.normalize(self.clip.model.encode_text(ids), dim=-1)
            columns.append(F.normalize(features.mean(0), dim=-1))
        return (torch.stack(columns, dim=1),)


WORKS = {"prompts": Prompts, "zeroshot": ZeroshotHead}


def main() -> None:
    """Measure, print the table, and write it when asked."""
    options = parse_arguments()
    torch.set_num_threads(options.threads)
    if options.alone:
        print(peak_memory(options))
        return
    clip = load_backbone(options.architecture, device=options.device)
    results = {}
    for name in options.works:
        work = WORKS[name](clip, options)
        memory = {side: measure_alone(name, side) for side in ("ours", "plain")}
        results[name] = compare(work, options) | {
            "memory_mb": {side: round(value / 2**20, 1) for side, value in memory.items()},
            "memory_ratio": memory["plain"] / max(memory["ours"], 1),
        }
    print_table(results, options)
    if options.write:
        print(f"written to {write(results, options)}")


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--architecture", default="ViT-B/16:random", help="a causal CLIP backbone with random weights")
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--images", type=int, default=1, help="contexts in a batch; 1 is a shared context")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--chunk", type=lambda text: text if text == "auto" else int(text), default="auto")
    parser.add_argument("--works", nargs="+", choices=list(WORKS), default=list(WORKS))
    parser.add_argument("--write", action="store_true", help="write the figures into benchmarks/results/<device>.json")
    parser.add_argument("--alone", nargs=2, metavar=("WORK", "SIDE"), help=argparse.SUPPRESS)
    logging.getLogger("dassl_clip").setLevel(logging.ERROR)
    return parser.parse_args()


def compare(work: Prompts | ZeroshotHead, options: argparse.Namespace) -> dict[str, object]:
    """Times of both sides in turns, their arithmetic, and the difference of their results."""
    (ours, ours_flops), (plain, plain_flops) = counted(work.ours), counted(work.plain)
    seconds: dict[str, list[float]] = {"ours": [], "plain": []}
    for _ in range(options.repeats):
        for side, times in seconds.items():
            synchronise(options.device)
            start = time.perf_counter()
            getattr(work, side)()
            synchronise(options.device)
            times.append(time.perf_counter() - start)
    return {
        "title": work.title,
        "seconds": seconds,
        "time_ratio": statistics.median(seconds["plain"]) / statistics.median(seconds["ours"]),
        "flop_ratio": plain_flops / ours_flops,
        "difference": [float((a - b).abs().max() / b.abs().max()) for a, b in zip(ours, plain)],
    }


def counted(run: Callable[[], tuple[Tensor, ...]]) -> tuple[tuple[Tensor, ...], int]:
    """Results of a run and the floating-point operations of its matrix products."""
    with FlopCounterMode(display=False) as counter:
        results = run()
    return results, counter.get_total_flops()


def synchronise(device: str) -> None:
    """Wait for a GPU."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def measure_alone(work: str, side: str) -> int:
    """Bytes that one run of one side needs above what the loaded model takes, measured in a fresh process."""
    command = [sys.executable, __file__, *sys.argv[1:], "--alone", work, side]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return int(out.split()[-1])


def peak_memory(options: argparse.Namespace) -> int:
    """The bytes that `measure_alone` asks for."""
    name, side = options.alone
    work = WORKS[name](load_backbone(options.architecture, device=options.device), options)
    if options.device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        getattr(work, side)()
        return torch.cuda.max_memory_allocated() - before
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of loading
    before = resident("VmRSS")
    getattr(work, side)()
    return resident("VmHWM") - before


def resident(field: str) -> int:
    """A field of this process's memory, in bytes."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(rf"^{field}:\s+(\d+) kB", status, re.MULTILINE).group(1))


def print_table(results: dict[str, dict], options: argparse.Namespace) -> None:
    """The figures as a table."""
    rows = []
    for result in results.values():
        ours, plain = (statistics.median(result["seconds"][side]) for side in ("ours", "plain"))
        times = f"{result['time_ratio']:.1f} x", f"{result['flop_ratio']:.1f} x"
        memory = f"{result['memory_mb']['ours']:.0f} / {result['memory_mb']['plain']:.0f}"
        difference = f"{max(result['difference']):.1e}"
        rows.append(
            [
                result["title"],
                f"{ours:.3f}",
                f"{plain:.3f}",
                *times,
                memory,
                f"{result['memory_ratio']:.1f} x",
                difference,
            ]
        )
    headers = ["work", "ours s", "plain s", "time", "arithmetic", "MB ours / plain", "memory", "relative difference"]
    print(
        f"{options.architecture}, {options.classes} classes, {options.images} images, {options.device}, "
        f"{options.threads} threads, median of {options.repeats}; load {os.getloadavg()[0]:.1f}"
    )
    print(tabulate(rows, headers=headers, disable_numparse=True))


def write(results: dict[str, dict], options: argparse.Namespace) -> Path:
    """Put the figures into the device's file, beside those of other benchmarks."""
    cuda = options.device.startswith("cuda")
    device = torch.cuda.get_device_name(options.device) if cuda else f"cpu-{options.threads}-threads"
    path = RESULTS / f"{re.sub(r'[^a-z0-9]+', '-', device.lower()).strip('-')}.json"
    path.parent.mkdir(exist_ok=True)
    content = json.loads(path.read_text()) if path.is_file() else {}
    setting = {
        key: getattr(options, key) for key in ("architecture", "classes", "images", "repeats", "threads", "chunk")
    }
    facts = {"torch": torch.__version__, "open_clip": open_clip.__version__, "processor": platform.processor()}
    entry = {"setting": setting | facts, "load": os.getloadavg()[0], "works": results}
    content.setdefault("text_tower", {})[f"{options.classes} classes, {options.images} images"] = entry
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        json.dump(content, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(file.name, path)
    return path


if __name__ == "__main__":
    main()
