"""All trainer classes under one module name, with what the original's module of that name imports.

Trainers of others take `MetricMeter`, `build_optimizer`, `SummaryWriter`, ... from here.
"""
# ruff: noqa: F401 (offered from here)

import datetime
import os.path as osp
import time
from collections import OrderedDict

import numpy as np
import torch
import torch.nn as nn
from tqdm import tqdm

from dassl.data import DataManager
from dassl.evaluation import build_evaluator
from dassl.modeling import build_backbone, build_head
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import (
    AverageMeter,
    MetricMeter,
    count_num_param,
    load_checkpoint,
    load_pretrained_weights,
    mkdir_if_missing,
    resume_from_checkpoint,
    save_checkpoint,
    tolist_if_not,
)
from dassl.utils.on_demand import import_on_demand

from .loops import TrainerX, TrainerXU
from .simple_net import SimpleNet
from .simple_trainer import SimpleTrainer
from .trainer_base import TrainerBase

__getattr__ = import_on_demand(__name__, SummaryWriter="torch.utils.tensorboard:SummaryWriter")
__all__ = [*(name for name in globals() if not name.startswith("_")), "SummaryWriter"]  # noqa: F822
