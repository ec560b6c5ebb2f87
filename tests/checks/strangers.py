"""Two trainers as people write them for Dassl, which know nothing of this project.

`PromptTuner` has the shape of CoOp: a CLIP of open_clip, a learned context between fixed token embeddings, its own
`load_model` that drops these. `TwoHeads` has the shape of domain generalisation: a small CNN, a classifier of domains
beside that of classes, two registered models with their own optimisers.
"""

import json
import os.path as osp
from pathlib import Path

import open_clip
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F
from yacs.config import CfgNode as CN

import dassl_clip.embedded as embedded
from dassl.data.transforms import build_transform  # noqa: F401 - such files import what they do not use
from dassl.engine import TRAINER_REGISTRY, TrainerX
from dassl.metrics import compute_accuracy
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import load_checkpoint


def extend_cfg(cfg):
    cfg.TRAINER.PROMPTTUNER = CN()
    cfg.TRAINER.PROMPTTUNER.N_CTX = 4
    cfg.TRAINER.PROMPTTUNER.PREC = "fp32"
    cfg.TRAINER.TWOHEADS = CN()
    cfg.TRAINER.TWOHEADS.WEIGHT = 0.1


def load_clip():
    folder = Path(embedded.CLIP_FOLDER)
    config = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]
    config["vision_cfg"]["layers"], config["text_cfg"]["layers"] = [1, 1, 1, 1], 1
    model = open_clip.CLIP(**config).eval()
    state = load_file(next(folder.glob("*.safetensors")))
    model.load_state_dict({name: value.float() for name, value in state.items()}, strict=False)
    return model


def tokenizer():
    merges = Path(embedded.CLIP_FOLDER) / "bpe_merges.txt.gz"
    return open_clip.tokenizer.SimpleTokenizer(bpe_path=str(merges), context_length=24)


class PromptLearner(nn.Module):
    def __init__(self, cfg, classnames, clip_model):
        super().__init__()
        n_ctx = cfg.TRAINER.PROMPTTUNER.N_CTX
        width = clip_model.token_embedding.weight.shape[1]
        self.ctx = nn.Parameter(torch.randn(n_ctx, width) * 0.02)
        prompts = [" ".join(["X"] * n_ctx) + " " + name + "." for name in classnames]
        self.tokenized_prompts = tokenizer()(prompts)
        with torch.no_grad():
            embedding = clip_model.token_embedding(self.tokenized_prompts)
        self.register_buffer("token_prefix", embedding[:, :1, :])
        self.register_buffer("token_suffix", embedding[:, 1 + n_ctx :, :])

    def forward(self):
        ctx = self.ctx.unsqueeze(0).expand(len(self.token_prefix), -1, -1)
        return torch.cat([self.token_prefix, ctx, self.token_suffix], dim=1)


class CustomCLIP(nn.Module):
    def __init__(self, cfg, classnames, clip_model):
        super().__init__()
        self.prompt_learner = PromptLearner(cfg, classnames, clip_model)
        self.clip = clip_model

    def forward(self, image):
        tokens = self.prompt_learner.tokenized_prompts
        x = self.prompt_learner() + self.clip.positional_embedding
        x = self.clip.transformer(x, attn_mask=self.clip.attn_mask)
        x = self.clip.ln_final(x)[torch.arange(len(x)), tokens.argmax(dim=-1)] @ self.clip.text_projection
        text, image = F.normalize(x, dim=-1), F.normalize(self.clip.encode_image(image), dim=-1)
        return self.clip.logit_scale.exp() * image @ text.t()


@TRAINER_REGISTRY.register()
class PromptTuner(TrainerX):
    def check_cfg(self, cfg):
        assert cfg.TRAINER.PROMPTTUNER.PREC in ["fp16", "fp32", "amp"]

    def build_model(self):
        cfg = self.cfg
        self.model = CustomCLIP(cfg, self.dm.dataset.classnames, load_clip())
        for name, param in self.model.named_parameters():
            param.requires_grad_("prompt_learner" in name)
        self.model.to(self.device)
        self.optim = build_optimizer(self.model.prompt_learner, cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, cfg.OPTIM)
        self.register_model("prompt_learner", self.model.prompt_learner, self.optim, self.sched)

    def forward_backward(self, batch):
        image, label = self.parse_batch_train(batch)
        output = self.model(image)
        loss = F.cross_entropy(output, label)
        self.model_backward_and_update(loss)
        if (self.batch_idx + 1) == self.num_batches:
            self.update_lr()
        return {"loss": loss.item(), "acc": compute_accuracy(output, label)[0].item()}

    def parse_batch_train(self, batch):
        return batch["img"].to(self.device), batch["label"].to(self.device)

    def load_model(self, directory, epoch=None):
        if not directory:
            return
        for name in self.get_model_names():
            file = "model-best.pth.tar" if epoch is None else "model.pth.tar-" + str(epoch)
            path = osp.join(directory, name, file)
            if not osp.exists(path):
                raise FileNotFoundError(f'Model not found at "{path}"')
            state_dict = load_checkpoint(path)["state_dict"]
            for key in ("token_prefix", "token_suffix"):
                state_dict.pop(key, None)
            self._models[name].load_state_dict(state_dict, strict=False)


class ConvNet(nn.Sequential):
    def __init__(self, width=16):
        super().__init__(
            nn.Conv2d(3, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        )  # fmt: skip


@TRAINER_REGISTRY.register()
class TwoHeads(TrainerX):
    def build_model(self):
        self.net, self.label_head = ConvNet(), nn.Linear(64, self.num_classes)
        self.F = nn.Sequential(self.net, self.label_head).to(self.device)
        self.D = nn.Linear(64, self.num_source_domains).to(self.device)
        for name, model in (("F", self.F), ("D", self.D)):
            optim = build_optimizer(model, self.cfg.OPTIM)
            self.register_model(name, model, optim, build_lr_scheduler(optim, self.cfg.OPTIM))

    def forward_backward(self, batch):
        image, label, domain = self.parse_batch_train(batch)
        features = self.net(image)
        loss_f = F.cross_entropy(self.label_head(features), label)
        loss_d = F.cross_entropy(self.D(features), domain)
        self.model_backward_and_update(loss_f + self.cfg.TRAINER.TWOHEADS.WEIGHT * loss_d)
        if (self.batch_idx + 1) == self.num_batches:
            self.update_lr()
        return {"loss_f": loss_f.item(), "loss_d": loss_d.item()}

    def model_inference(self, input):
        return self.F(input)
