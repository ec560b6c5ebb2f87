"""One training step of GOPro against a plain program: every prompt at full length, one loss term after another.

The plain program runs copies of the same frozen model in the way the method is written down: forward hooks on the
vision blocks, one prompt of all tokens for each (view, image, class), open_clip's own transformer with its mask. It
shares the learned parts' weights with the trainer, and nothing else.
"""

import copy

import pytest
import torch
import torch.nn.functional as F

from dassl.engine import build_trainer
from dassl_clip import datasets, trainers
from dassl_clip.cli.train import parse
from dassl_clip.engine.overrides import resolve_config


def build(backbone, domain_tree, tmp_path, *pairs):
    data = tmp_path / "data.yaml"
    data.write_text("DATASET:\n  NAME: FolderDomains\n")
    words = ["--trainer", "GOPro", "--dataset-config-file", str(data), "--root", str(domain_tree), "--seed", "1"]
    words += ["--source-domains", "art", "--target-domains", "sketch", "--output-dir", str(tmp_path / "run")]
    words += ["MODEL.BACKBONE.NAME", backbone, "DATALOADER.NUM_WORKERS", "0", "OPTIM.NAME", "sgd"]
    words += ["USE_CUDA", "False", *pairs]  # the plain program runs on the CPU
    assert datasets and trainers  # imported for their registrations
    overrides, _ = parse(words)
    return build_trainer(resolve_config(overrides))


def plain_step(trainer, batch, dtype=torch.float64):
    """Loss terms and the gradients of their weighted sum, from the images of a batch."""
    model = copy.deepcopy(trainer.backbone.model).to(dtype)
    learner = copy.deepcopy(trainer.model).to(dtype).train()
    generator, tokenizer = learner.generator, trainer.backbone.text
    rows = tokenizer.tokenize([f"X X X X {name.replace('_', ' ')}." for name in trainer.classnames])
    views = [batch["img"], batch["img2"], batch["img3"]]
    images, text = [], []
    for number, view in enumerate(views):
        kept = []
        hooks = [
            block.register_forward_hook(lambda m, i, out, kept=kept: kept.append(out.detach()))
            for block in model.visual.transformer.resblocks
        ]
        with torch.no_grad():
            images.append(F.normalize(model.encode_image(view.to(dtype)), dim=-1))
        for hook in hooks:
            hook.remove()
        shift = 0.0
        rho = generator.rho[number if len(generator.rho) > 1 else 0]
        for index, block in enumerate(kept):
            mu = block.mean(1)
            sigma = (((block - mu[:, None]) ** 2).sum(1) + 2.3e-8).div(block.shape[1]).sqrt()
            fused = (generator.style[index]((mu + sigma) / 2) + generator.content[index](mu)) / 2
            shift = shift + rho.weight[0, index] * fused
        shift = shift + rho.bias
        of_view = []
        for image in range(len(view)):
            of_image = []
            for row in rows:
                prompt = model.token_embedding(row)
                prompt = torch.cat([prompt[:1], generator.ctx + shift[image], prompt[5:]])[None]
                hidden = model.transformer(prompt + model.positional_embedding, attn_mask=model.attn_mask)
                of_image.append(model.ln_final(hidden)[0, row.argmax()] @ model.text_projection)
            of_view.append(torch.stack(of_image))
        text.append(torch.stack(of_view))
    projected = [learner.image_projector(f) for f in images[:2]]
    if learner.text_projector is not None:
        text = [learner.text_projector(t) for t in text]
    scored = projected[0] if learner.text_projector is not None else images[0]
    text = [F.normalize(t, dim=-1) for t in text]
    logits = model.logit_scale.exp() * torch.stack([F.normalize(f, dim=0) @ t.T for f, t in zip(scored, text[0])])
    both = F.normalize(torch.cat(projected), dim=-1)
    scores = (both @ both.T / 0.1).fill_diagonal_(float("-inf"))
    partner = torch.cat([torch.arange(len(logits)) + len(logits), torch.arange(len(logits))])
    terms = {
        "ce": F.cross_entropy(logits, batch["label"]),
        "consistency": ((text[0] - text[1]) ** 2).mean() + ((text[0] - text[2]) ** 2).mean(),
        "contrastive": F.cross_entropy(scores, partner),
    }
    loss = terms["ce"] + terms["consistency"] + 0.1 * terms["contrastive"]
    names = [name for name, _ in learner.named_parameters()]
    gradients = torch.autograd.grad(loss, list(learner.parameters()))
    return {name: value.item() for name, value in terms.items()}, dict(zip(names, gradients))


@pytest.mark.parametrize(("size", "variant"), [("tiny", "released"), ("tiny", "paper"), ("deep", "released")])
def test_a_step_equals_the_plain_program(request, domain_tree, tmp_path, size, variant):
    backbone = f"local-dir:{request.getfixturevalue(f'{size}_clip')}"
    words = ("DATALOADER.TRAIN_X.BATCH_SIZE", "6", "TRAINER.GOPRO.VARIANT", variant)
    trainer = build(backbone, domain_tree, tmp_path, *words)
    trainer.fixed_view, batch = None, next(iter(trainer.dm.train_loader_x))  # all views are encoded
    terms, gradients = plain_step(trainer, batch)
    trainer.epoch, trainer.batch_idx, trainer.num_batches = 0, 0, 9
    trainer.set_model_mode("train")
    summary = trainer.forward_backward(batch)
    for name, value in terms.items():
        assert summary[name] == pytest.approx(value, rel=2e-4), name
    largest = max(g.abs().max() for g in gradients.values())
    for name, parameter in trainer.model.named_parameters():
        torch.testing.assert_close(
            parameter.grad.to(gradients[name].dtype), gradients[name], rtol=2e-2, atol=float(largest) * 2e-4, msg=name
        )
