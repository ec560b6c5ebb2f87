"""Trainers over the small CLIP of the authors' outputs (fixtures/goldens), built and stepped as a run does it.

Class names and templates go through a tokenizer that knows the words of a golden file; images come as tensors. Where
the files are from: each method's authors' modules, run on the CPU in float32 with this model.
"""

import hashlib
import re
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from open_clip.transform import PreprocessCfg

import dassl_clip.trainers  # noqa: F401 - registers them
from dassl.engine import TRAINER_REGISTRY
from dassl_clip.clip.backbone import FrozenCLIP
from dassl_clip.clip.sources import Source
from dassl_clip.engine.checkpoints import Checkpoints, Run
from dassl_clip.engine.config import default_config
from dassl_clip.engine.features import FeatureStore
from dassl_clip.engine.loop import EpochLoop
from dassl_clip.engine.precision import Precision

FIXTURES = Path(__file__).parents[1] / "fixtures" / "goldens"
CLOSE, CLOSE_CHANGE = 1e-4, 5e-4  # of the largest entry
UNKNOWN = 1  # words that no golden file has


def golden(name):
    """The arrays of a file: numbers as tensors, the rest as NumPy has it."""
    with np.load(FIXTURES / f"{name}.npz") as file:
        return {key: torch.from_numpy(file[key]) if file[key].dtype.kind in "fiu" else file[key] for key in file}


def part(arrays, prefix):
    """The entries below a prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}


class WordTokenizer:
    """Words, full stops, commas and plain ids (`#12`) to ids; start, end and padding as the small CLIP has them."""

    def __init__(self, vocab, context_length):
        self.start, self.end, self.context_length, self.ids = vocab - 2, vocab - 1, context_length, {}

    def learn(self, texts, rows):
        """Take the ids of words from texts and their token rows."""
        for text, row in zip(texts, rows.tolist()):
            words = self.words(text)
            own = row[1 : row.index(self.end)]
            assert len(words) == len(own), (text, own)
            for word, number in zip(words, own):
                assert self.ids.setdefault(word, number) == number, (word, number)

    @staticmethod
    def words(text):
        return re.findall(r"#\d+|\w+|[.,]", text.replace("_", " ").lower())

    def __call__(self, texts, context_length=None):
        rows = torch.zeros(len(texts), context_length or self.context_length, dtype=torch.long)
        for row, text in zip(rows, [texts] if isinstance(texts, str) else texts):
            ids = [int(word[1:]) if word[0] == "#" else self.ids.get(word, UNKNOWN) for word in self.words(text)]
            ids = [self.start, *ids, self.end][: len(row)]
            row[: len(ids)] = torch.tensor(ids)
        return rows


def small_clip(arrays):
    """The frozen small CLIP, whose tokenizer knows the words of a golden file."""
    state = golden("tiny_clip")
    c = {key: int(value) for key, value in part(state, "config/").items()}
    vision = CLIPVisionCfg(
        layers=c["vision_layers"], width=c["W"], head_width=c["W"] // c["vision_heads"], patch_size=c["patch"],
        image_size=c["image"],
    )  # fmt: skip
    text = CLIPTextCfg(
        context_length=c["ctx"], vocab_size=c["vocab"], width=c["D"], heads=c["text_heads"], layers=c["text_layers"]
    )
    model = CLIP(c["E"], vision, text, quick_gelu=True)
    weights = {key: value.float() for key, value in state.items() if not key.startswith("config/")}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected and all("mask" in key for key in missing), (missing, unexpected)
    tokenizer = WordTokenizer(c["vocab"], c["ctx"])
    template = str(arrays.get("template", f"{arrays.get('CTX_INIT', 'a photo of a')} {{}}."))
    if "tokens" not in arrays:  # a file with templates alone
        arrays = arrays | {"tokens": arrays["template_tokens"][0]}
        template = str(arrays["templates"][0])
    for text, rows in zip(arrays.get("templates", ()), arrays.get("template_tokens", ())):
        tokenizer.learn([str(text).format(name) for name in arrays["classnames"]], rows)
    rows = arrays["tokens"]
    spare = (
        int((rows[0] == tokenizer.end).nonzero()[0])
        - 1
        - len(tokenizer.words(template.format(arrays["classnames"][0])))
    )
    placeholders = "X " * spare
    if "hand_tokens" in arrays:
        tokenizer.learn([template.format(name) for name in arrays["classnames"]], arrays["hand_tokens"])
    tokenizer.learn([placeholders + template.format(name) for name in arrays["classnames"]], rows)
    tokenizer.ids.setdefault("x", UNKNOWN)
    source = Source("golden", "golden", {"text_cfg": {"context_length": c["ctx"]}}, quick_gelu=True)
    name = hashlib.sha256(arrays["tokens"].numpy().tobytes()).hexdigest()  # cached texts go by it
    return FrozenCLIP(model.eval(), tokenizer, source, PreprocessCfg(size=c["image"]), name, "fp32")


def golden_trainer(name, arrays, folder, settings=(), optim=(), epochs=3, prepare=None):
    """A trainer that `build_model` has built and that stands before its first step.

    Args:
        name: Of its class.
        arrays: The golden file.
        folder: For its files; the published checkpoint is `folder / "published.pth"`.
        settings: Keys of its node.
        optim: Keys of `OPTIM`.
        epochs: In all.
        prepare: Gets the trainer before its model is built.
    """
    kind = TRAINER_REGISTRY.get(name)
    trainer = kind.__new__(kind)
    trainer.cfg = cfg = default_config()
    cfg.DATASET.NAME = "golden"
    cfg.TRAINER.NAME = name
    for key, value in dict(settings).items():
        assert key in cfg.TRAINER[name.upper()], key
        cfg.TRAINER[name.upper()][key] = value
    for key, value in {"NAME": "sgd", "WEIGHT_DECAY": 5e-4, "MAX_EPOCH": epochs, **dict(optim)}.items():
        cfg.OPTIM[key] = value
    cfg.TRAIN.PRINT_FREQ = 0
    trainer.check_cfg(cfg)
    trainer.run_cfg, trainer.device, trainer.output_dir = cfg, torch.device("cpu"), str(folder)
    trainer.precision = Precision("fp32", trainer.device)
    trainer.backbone = small_clip(arrays)
    trainer.logit_scale = trainer.backbone.logit_scale
    trainer.classnames = [str(text) for text in arrays["classnames"]]
    trainer.num_classes = len(trainer.classnames)
    trainer.features = FeatureStore(trainer.backbone, trainer.precision, trainer.device, None, batch_size=8)
    trainer.fixed_view = None
    trainer._models, trainer._optims, trainer._scheds = OrderedDict(), OrderedDict(), OrderedDict()
    facts = name, cfg, trainer.backbone.describe(), trainer.classnames, lambda: None
    run = Run(*facts, trainer.class_specific, trainer.unread_parts, trainer.published_state)
    parts = trainer._models, trainer._optims, trainer._scheds, trainer.precision.scaler
    trainer.checkpoints = Checkpoints(Path(folder), run, *parts, lambda: {})
    trainer.epoch = trainer.start_epoch = 0
    trainer.max_epoch = epochs
    trainer.history, trainer.losses = [], {}
    trainer.loop = EpochLoop(trainer)
    trainer.batch_idx, trainer.num_batches = 0, 10**6
    published = Path(folder) / "published.pth"
    cfg.MODEL.INIT_WEIGHTS = str(published) if published.is_file() else ""
    torch.manual_seed(0)
    if prepare is not None:
        prepare(trainer)
    trainer.build_model()
    trainer.set_model_mode("train")
    return trainer


def publish(arrays, folder, **others):
    """Write the golden's `start/` as a checkpoint of the authors' program, with what else such files hold."""
    state = part(arrays, "start/") | others
    torch.save({"state_dict": state, "epoch": 3}, Path(folder) / "published.pth")


def batch_of(arrays):
    """The batch of a golden file as a loader gives it."""
    names = [f"image{number}" for number in range(len(arrays["labels"]))]
    return {"img": arrays["images"], "label": arrays["labels"].long(), "impath": names}


def close(found, expected, tolerance, what=""):
    """Assert that the largest difference is small beside the largest expected entry."""
    found, expected = torch.as_tensor(found).double(), torch.as_tensor(expected).double()
    assert found.shape == expected.shape, (what, found.shape, expected.shape)
    worst = (found - expected).abs().max() / expected.abs().max()
    assert worst <= tolerance, f"{what}: {worst:.3g}"


def same_change(found, start, expected, what=""):
    """The same of changes from a start: a missing weight decay or epsilon hides in the weights themselves."""
    close(found.detach().double() - start.double(), expected.double() - start.double(), CLOSE_CHANGE, what)


def far(found, expected, least):
    """Assert that a mistake shows."""
    worst = (found.double() - expected.double()).abs().max() / expected.double().abs().max()
    assert worst >= least, f"{worst:.3g}"
