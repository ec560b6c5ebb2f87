"""Trainers of whole towers over a small tower of a golden file, in place of CLIP's, stepped as a run does it."""

import torch
from torch import nn

from tests.trainers.golden_runs import batch_of, golden, golden_trainer, part


def toy_tower(arrays, prefix, activation):
    """Linear, LayerNorm, an activation, Linear: at the start of a golden file."""
    state = part(arrays, prefix)
    width, inputs = state["0.weight"].shape
    last = nn.Linear(width, len(state["3.weight"]), bias="3.bias" in state)
    tower = nn.Sequential(nn.Linear(inputs, width), nn.LayerNorm(width), activation, last)
    tower.load_state_dict(state)
    return tower.eval()


def toy_trainer(name, folder, tower, text, scale, steps, settings, optim):
    """A trainer that learns this tower, before its first step.

    Args:
        name: Of its class.
        folder: For its files.
        tower: Any module, inputs to features `[B, E]`.
        text: `[C, E]`, of length 1.
        scale: On the scores.
        steps: In all.
        settings: Keys of its node.
        optim: Keys of `OPTIM`.
    """

    def prepare(trainer):
        trainer.image_tower, trainer.text_features = lambda: tower, lambda: text
        trainer.logit_scale = torch.tensor(float(scale))
        trainer.steps, trainer.lengths = steps, [steps]

    return golden_trainer(name, golden("clip_lora"), folder, settings, optim, epochs=1, prepare=prepare)


def take_step(trainer, number, images, labels):
    """A step of a run; returns its loss."""
    trainer.batch_idx = number
    trainer.set_model_mode("train")
    return trainer.forward_backward(batch_of({"images": images, "labels": labels}))["loss"]
