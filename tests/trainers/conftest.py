"""Runs of the real command line on the small tree with the small CLIP, and a plain program's reading of both."""

import json
from pathlib import Path

import open_clip
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from dassl_clip.cli import train
from dassl_clip.results.records import read_record


@pytest.fixture
def run(tmp_path, tiny_clip, domain_tree, capsys):
    """`run(trainer, *KEY VALUE, name=..., flags=..., root=..., code=0)` gives `(folder, record, output)`."""

    def go(trainer, *pairs, name="run", flags=(), root=domain_tree, source="art photo", target="sketch", code=0):
        data = tmp_path / "data.yaml"
        data.write_text(yaml.safe_dump({"DATASET": {"NAME": "FolderDomains"}}))
        folder = tmp_path / name
        argv = [
            "--trainer",
            trainer,
            "--dataset-config-file",
            str(data),
            "--root",
            str(root),
            "--output-dir",
            str(folder),
        ]
        argv += ["--seed", "1", "--source-domains", *source.split(), "--target-domains", *target.split(), *flags]
        argv += ["MODEL.BACKBONE.NAME", f"local-dir:{tiny_clip}", "DATALOADER.NUM_WORKERS", "0"]
        argv += [
            "DATALOADER.TRAIN_X.BATCH_SIZE",
            "6",
            "DATASET.NUM_SHOTS",
            "4",
            "OPTIM.MAX_EPOCH",
            "2",
            "OPTIM.NAME",
            "sgd",
        ]
        argv += ["OPTIM.LR_SCHEDULER", "cosine", "OPTIM.LR", "0.01"]
        given = train.main([*argv, *map(str, pairs)])
        output = capsys.readouterr()
        assert given == code, output.err + output.out[-3000:]
        return folder, read_record(folder), output

    return go


class PlainCLIP:
    """The small CLIP as open_clip itself reads it: its own model, transform and tokenizer, one picture at a time."""

    def __init__(self, folder: Path):
        config = json.loads((folder / "open_clip_config.json").read_text())
        self.model = open_clip.CLIP(**config["model_cfg"]).eval()
        self.model.load_state_dict(load_file(folder / "open_clip_model.safetensors"))
        self.scale = self.model.logit_scale.exp().item()
        pixels = config["preprocess_cfg"]
        self.mean, self.std = (torch.tensor(pixels[key]).view(3, 1, 1) for key in ("mean", "std"))
        self.transform = open_clip.image_transform(32, is_train=False, mean=pixels["mean"], std=pixels["std"])

    def picture(self, path) -> torch.Tensor:
        """One normalised picture, `[1, 3, H, W]`."""
        return self.transform(Image.open(path).convert("RGB"))[None]

    @torch.no_grad()
    def images(self, paths) -> torch.Tensor:
        """Features `[N, E]`, not normalised."""
        return torch.cat([self.model.encode_image(self.picture(path)) for path in paths])

    @torch.no_grad()
    def texts(self, texts) -> torch.Tensor:
        """Features `[K, E]`, not normalised."""
        return torch.cat([self.model.encode_text(open_clip.tokenize([text])) for text in texts])

    @torch.no_grad()
    def noisy_names(self, names, noise) -> torch.Tensor:
        """Features `[C, E]` of noise embeddings `[M, D]` between the start and the name, at full length."""
        model, rows = self.model, []
        for name in names:
            ids = open_clip.tokenize([name])[0]
            tokens = model.token_embedding(ids)
            tokens = torch.cat([tokens[:1], noise, tokens[1 : len(tokens) - len(noise)]])
            x = model.transformer((tokens + model.positional_embedding)[None], attn_mask=model.attn_mask)
            rows.append(model.ln_final(x)[0, int(ids.argmax()) + len(noise)] @ model.text_projection)
        return torch.stack(rows)


def pictures(folder: Path) -> tuple[list[Path], torch.Tensor, list[str]]:
    """Files, labels and class names of a folder with one folder a class, in their order."""
    names = sorted(path.name for path in folder.iterdir())
    found = [(path, label) for label, name in enumerate(names) for path in sorted((folder / name).iterdir())]
    labels = torch.tensor([label for _, label in found])
    return [path for path, _ in found], labels, [name.replace("_", " ") for name in names]


@pytest.fixture(scope="session")
def plain(tiny_clip):
    """The small CLIP in open_clip's hands."""
    return PlainCLIP(tiny_clip)


@pytest.fixture(scope="session")
def sketch(domain_tree, plain):
    """The target domain: files, labels, class names, and plain features `[N, E]`."""
    paths, labels, names = pictures(domain_tree / "sketch")
    return paths, labels, names, plain.images(paths)
