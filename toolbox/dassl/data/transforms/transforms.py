"""The pipelines of training and testing, in a fixed order whatever the order of the names.

INPUT.INTERPOLATION does not reach `random_translation` (always bilinear); `random_crop` is not preceded by a resize.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from yacs.config import CfgNode

from dassl.utils import get_most_similar_str_to_a_from_b
from dassl.utils.errors import CheckError
from dassl.utils.on_demand import import_on_demand

from .classes import Cutout, GaussianNoise, InstanceNormalization, Random2DTranslation
from .randaugment import RandAugment, RandAugment2, RandAugmentFixMatch

AVAI_CHOICES = [
    "random_flip",
    "random_resized_crop",
    "normalize",
    "instance_norm",
    "random_crop",
    "random_translation",
    "center_crop",  # part of testing anyway
    "cutout",
    "imagenet_policy",
    "cifar10_policy",
    "svhn_policy",
    "randaugment",
    "randaugment_fixmatch",
    "randaugment2",
    "gaussian_noise",
    "colorjitter",
    "randomgrayscale",
    "gaussian_blur",
]


__getattr__ = import_on_demand(
    __name__,
    CIFAR10Policy=".autoaugment:CIFAR10Policy",
    CenterCrop="torchvision.transforms:CenterCrop",
    ColorJitter="torchvision.transforms:ColorJitter",
    Compose="torchvision.transforms:Compose",
    F="torchvision.transforms.functional",
    GaussianBlur="torchvision.transforms:GaussianBlur",
    INTERPOLATION_MODES=".interpolation:INTERPOLATION_MODES",
    ImageNetPolicy=".autoaugment:ImageNetPolicy",
    InterpolationMode="torchvision.transforms:InterpolationMode",
    Normalize="torchvision.transforms:Normalize",
    RandomApply="torchvision.transforms:RandomApply",
    RandomCrop="torchvision.transforms:RandomCrop",
    RandomGrayscale="torchvision.transforms:RandomGrayscale",
    RandomHorizontalFlip="torchvision.transforms:RandomHorizontalFlip",
    RandomResizedCrop="torchvision.transforms:RandomResizedCrop",
    Resize="torchvision.transforms:Resize",
    SVHNPolicy=".autoaugment:SVHNPolicy",
    ToTensor="torchvision.transforms:ToTensor",
    np="numpy",
    random="random",
    torch="torch",
)


def build_transform(cfg: CfgNode, is_train: bool = True, choices: Sequence[str] | None = None) -> Callable | None:
    """Makes the pipeline of training or testing and prints its steps.

    Args:
        cfg: The configuration; reads INPUT.
        is_train: Training or testing.
        choices: Names of transforms in place of INPUT.TRANSFORMS.

    Returns:
        A torchvision `Compose` from a PIL image to a tensor; None with INPUT.NO_TRANSFORM.

    Raises:
        AssertionError: A name is unknown.
        KeyError: INPUT.INTERPOLATION is unknown.
    """
    if cfg.INPUT.NO_TRANSFORM:
        print("Note: no transform is applied!")
        return None
    choices = cfg.INPUT.TRANSFORMS if choices is None else choices
    for choice in choices:
        if choice not in AVAI_CHOICES:
            closest = get_most_similar_str_to_a_from_b(choice, AVAI_CHOICES)
            raise CheckError(f'Unknown transform "{choice}" (do you mean "{closest}"?); available: {AVAI_CHOICES}')
    target_size = f"{cfg.INPUT.SIZE[0]}x{cfg.INPUT.SIZE[1]}"
    build = _build_transform_train if is_train else _build_transform_test
    return build(cfg, choices, target_size, _normalize(cfg))


def _normalize(cfg: CfgNode) -> Callable:
    from torchvision.transforms import Normalize

    return Normalize(mean=cfg.INPUT.PIXEL_MEAN, std=cfg.INPUT.PIXEL_STD)


def _build_transform_train(cfg: CfgNode, choices: Sequence[str], target_size: str, normalize: Callable) -> Callable:
    """The training pipeline; `target_size` is "HxW", for the printed lines."""
    from torchvision import transforms

    from .autoaugment import CIFAR10Policy, ImageNetPolicy, SVHNPolicy
    from .interpolation import INTERPOLATION_MODES

    print("Building transform_train")
    inputs, size = cfg.INPUT, cfg.INPUT.SIZE
    interpolation = INTERPOLATION_MODES[inputs.INTERPOLATION]
    steps: list[Callable] = []

    def add(present: bool, line: str, make: Callable[[], Callable]) -> None:
        if present:
            print(f"+ {line}")
            steps.append(make())

    add(
        "random_crop" not in choices and "random_resized_crop" not in choices,
        f"resize to {target_size}",
        lambda: transforms.Resize(size, interpolation=interpolation),
    )
    add("random_translation" in choices, "random translation", lambda: Random2DTranslation(size[0], size[1]))
    add(
        "random_crop" in choices,
        f"random crop (padding={inputs.CROP_PADDING})",
        lambda: transforms.RandomCrop(size, padding=inputs.CROP_PADDING),
    )
    add(
        "random_resized_crop" in choices,
        f"random resized crop (size={size}, scale={inputs.RRCROP_SCALE})",
        lambda: transforms.RandomResizedCrop(size, scale=inputs.RRCROP_SCALE, interpolation=interpolation),
    )
    add("random_flip" in choices, "random flip", transforms.RandomHorizontalFlip)
    add("imagenet_policy" in choices, "imagenet policy", ImageNetPolicy)
    add("cifar10_policy" in choices, "cifar10 policy", CIFAR10Policy)
    add("svhn_policy" in choices, "svhn policy", SVHNPolicy)
    number, magnitude = inputs.RANDAUGMENT_N, inputs.RANDAUGMENT_M
    add("randaugment" in choices, f"randaugment (n={number}, m={magnitude})", lambda: RandAugment(number, magnitude))
    add("randaugment_fixmatch" in choices, f"randaugment_fixmatch (n={number})", lambda: RandAugmentFixMatch(number))
    add("randaugment2" in choices, f"randaugment2 (n={number})", lambda: RandAugment2(number))
    jitter = {
        "brightness": inputs.COLORJITTER_B,
        "contrast": inputs.COLORJITTER_C,
        "saturation": inputs.COLORJITTER_S,
        "hue": inputs.COLORJITTER_H,
    }
    add(
        "colorjitter" in choices,
        f"color jitter ({', '.join(f'{name}={value}' for name, value in jitter.items())})",
        lambda: transforms.ColorJitter(**jitter),
    )
    add("randomgrayscale" in choices, "random gray scale", lambda: transforms.RandomGrayscale(p=inputs.RGS_P))
    add(
        "gaussian_blur" in choices,
        f"gaussian blur (kernel={inputs.GB_K})",
        lambda: transforms.RandomApply([transforms.GaussianBlur(inputs.GB_K)], p=inputs.GB_P),
    )
    add(True, "to torch tensor of range [0, 1]", transforms.ToTensor)
    holes, side = inputs.CUTOUT_N, inputs.CUTOUT_LEN
    add("cutout" in choices, f"cutout (n_holes={holes}, length={side})", lambda: Cutout(holes, side))
    add("normalize" in choices, _normalization_line(cfg), lambda: normalize)
    mean, std = inputs.GN_MEAN, inputs.GN_STD
    add("gaussian_noise" in choices, f"gaussian noise (mean={mean}, std={std})", lambda: GaussianNoise(mean, std))
    add("instance_norm" in choices, "instance normalization", InstanceNormalization)
    return transforms.Compose(steps)


def _build_transform_test(cfg: CfgNode, choices: Sequence[str], target_size: str, normalize: Callable) -> Callable:
    """The test pipeline: resize of the shorter side, centre crop, tensor; normalisations if listed."""
    from torchvision import transforms

    from .interpolation import INTERPOLATION_MODES

    print("Building transform_test")
    size = cfg.INPUT.SIZE
    print(f"+ resize the smaller edge to {max(size)}")
    print(f"+ {target_size} center crop")
    print("+ to torch tensor of range [0, 1]")
    steps: list[Callable] = [
        transforms.Resize(max(size), interpolation=INTERPOLATION_MODES[cfg.INPUT.INTERPOLATION]),
        transforms.CenterCrop(size),
        transforms.ToTensor(),
    ]
    if "normalize" in choices:
        print(f"+ {_normalization_line(cfg)}")
        steps.append(normalize)
    if "instance_norm" in choices:
        print("+ instance normalization")
        steps.append(InstanceNormalization())
    return transforms.Compose(steps)


def _normalization_line(cfg: CfgNode) -> str:
    return f"normalization (mean={cfg.INPUT.PIXEL_MEAN}, std={cfg.INPUT.PIXEL_STD})"
