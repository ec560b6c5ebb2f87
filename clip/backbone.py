"""The frozen CLIP that every method shares: any open_clip model, read only.

Sources: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021 (towers,
logit scale, the quickgelu activation of OpenAI's weights); open_clip for architectures and the evaluation transform.

Shapes: `B` images, `L` vision blocks, `T` tokens of a block (positions of a ResNet stage), `W` vision width, `E` joint
embedding.
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from open_clip.transform import PreprocessCfg, image_transform_v2
from torch import Tensor, nn
from torchvision.transforms import Compose, InterpolationMode, Normalize

from dassl_clip.results.errors import UserError

from .building import build_model, require_activation
from .config_files import adopt, describe_folder
from .layouts import is_transformers, load_into, load_numpy, text_positions
from .names import OPENAI_NAMES
from .sharing import shareable
from .sources import RANDOM, Source, Tokenizer, resolve
from .text_tower import TextTower
from .vision_tower import Projection, VisionBlocks, use_fused_attention
from .weights import ARCHIVE, NUMPY, hash_state, read_weights

logger = logging.getLogger(__name__)

PRECISIONS = {"fp32": torch.float32, "amp": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
RANDOM_SEED = 0


class FrozenCLIP(nn.Module):
    """An open_clip model that is only read: evaluation mode, no gradients into its parameters.

    Args:
        model: The open_clip model with its weights.
        tokenizer: The tokenizer of its text tower.
        source: Where it comes from.
        preprocess: open_clip's preprocessing of its images.
        weights_hash: sha256 of its weights in float32.
        precision: How its weights are held.

    Attributes:
        name: The name it was asked for by.
        architecture: open_clip's architecture (the name itself for folders and repositories).
        weights_hash: sha256, in hex, over the sorted state dict (name, shape, dtype, bytes).
        embed_dim: `E`.
        text_width: Width of the text tower.
        context_length: Tokens that the text tower reads.
        image_size: Height and width of its images.
        pixel_mean: Mean of its pixels, per channel.
        pixel_std: Standard deviation of its pixels, per channel.
        interpolation: Name of the resampling, as torchvision's `InterpolationMode` knows it.
        logit_scale: The factor on cosines, already exponentiated; float32 scalar.
        text: The text tower.
    """

    logit_scale: Tensor
    _pixels: Tensor

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Tokenizer,
        source: Source,
        preprocess: PreprocessCfg,
        weights_hash: str,
        precision: str,
    ):
        super().__init__()
        self.model = model
        self.text = TextTower(model, tokenizer)
        self.name, self.architecture, self.tag = source.name, source.architecture, source.tag
        self.weights_hash, self.precision = weights_hash, precision
        self.embed_dim, self.text_width = self.text.embed_dim, self.text.width
        self.context_length = self.text.context_length
        size = preprocess.size
        self.image_size: tuple[int, int] = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
        self.pixel_mean, self.pixel_std = tuple(preprocess.mean), tuple(preprocess.std)
        # open_clip resamples with bicubic unless the weights ask for bilinear.
        mode = InterpolationMode.BILINEAR if preprocess.interpolation == "bilinear" else InterpolationMode.BICUBIC
        self.interpolation = mode.value
        self._preprocess = preprocess
        self._blocks = VisionBlocks(self._visual, self.image_size)
        self._layout = torch.channels_last if hasattr(self._visual, "layer4") else torch.contiguous_format
        if self._layout is torch.channels_last:  # ResNets are faster so, ViTs are not
            self._visual.to(memory_format=torch.channels_last)
        use_fused_attention(self._visual)
        self._compiled: Callable[[Tensor], Any] | None = None
        log_scale = model.get_parameter("logit_scale").detach()
        self.register_buffer("logit_scale", log_scale.float().exp().reshape(()), persistent=False)
        pixels = torch.tensor([self.pixel_mean, self.pixel_std], dtype=torch.float32).view(2, 3, 1, 1)
        self.register_buffer("_pixels", pixels, persistent=False)
        self.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> "FrozenCLIP":
        """Stay in evaluation mode, whatever a trainer sets around it."""
        return super().train(False)

    @property
    def _visual(self) -> nn.Module:
        """The image tower."""
        return self.model.get_submodule("visual")

    @property
    def vision_widths(self) -> tuple[int, ...]:
        """Width of each block output, length `L`: `W` repeated for a ViT, one per stage for a ResNet.

        Raises:
            UserError: The image tower is of a kind whose blocks are not known.
        """
        return self._blocks.widths

    @property
    def quick_gelu(self) -> bool:
        """Whether open_clip's own towers in this model use the quickgelu activation."""
        return any(isinstance(module, open_clip.transformer.QuickGELU) for module in self.model.modules())

    def preprocess(self) -> Compose:
        """The evaluation transform, from a PIL image to a normalised tensor `[3, H, W]`: open_clip's own."""
        return image_transform_v2(deepcopy(self._preprocess), is_train=False)

    def normalize(self) -> Normalize:
        """The last step of `preprocess`: pixels in [0, 1] to the model's mean and standard deviation."""
        return Normalize(self.pixel_mean, self.pixel_std)

    def normalised(self, images: Tensor) -> Tensor:
        """Images `[B, 3, H, W]` of bytes, as `preprocess` gives them: to the bit what its last two steps compute."""
        mean, std = self._pixels
        return images.to(torch.float32).div_(255).sub_(mean).div_(std)

    @torch.no_grad()
    def encode_image(self, images: Tensor, normalize: bool = True) -> Tensor:
        """Image features `[B, E]`, float32 and (by default) L2-normalised, of images `[B, 3, H, W]`.

        Args:
            images: Preprocessed images.
            normalize: False for the features as the tower gives them, which CLAP's head reads.

        Raises:
            UserError: The images have another shape or size than the model reads.
        """
        return self._features((self._compiled or self._visual)(self._images(images)), normalize)

    @torch.no_grad()
    def compile_images(self) -> bool:
        """Let `encode_image` run a version of the image tower that `torch.compile` made, for any number of images.

        Returns:
            Whether it does; if the tower cannot be compiled here, a warning says why, and all stays as it was.
        """
        compiled = torch.compile(self._visual.forward)
        trial = self._images(torch.zeros(2, 3, *self.image_size, device=self.logit_scale.device))
        torch._dynamo.mark_dynamic(trial, 0)
        try:
            compiled(trial)
        except Exception as error:  # of whatever kind: compilers, their tools and the tower's code all may fail
            reason = str(error).strip().partition("\n")[0]
            logger.warning("the image tower is not compiled: %s (%s)", type(error).__name__, reason)
            return False
        self._compiled = compiled
        return True

    def embed_image(self, images: Tensor, normalize: bool = True, prompts: Sequence[Tensor] = ()) -> Tensor:
        """The same as `encode_image`, with gradients to the images, for attacks on them, and to learned tokens.

        Args:
            images: Preprocessed images.
            normalize: See `encode_image`.
            prompts: Learned tokens for the first blocks, `[M, W]` each: see `VisionBlocks.prompting`.
        """
        with self._blocks.prompting(prompts) if len(prompts) else nullcontext():
            return self._features(self._visual(self._images(images)), normalize)

    @property
    def prompt_width(self) -> int:
        """`W` of the tokens that `embed_image` takes; a UserError for an image tower that takes none."""
        return self._blocks.prompt_width

    @torch.no_grad()
    def encode_image_with_blocks(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Image features, and what each block of the image tower puts out.

        Args:
            images: Normalised images, `[B, 3, H, W]`.

        Returns:
            The features `[B, E]` as from `encode_image`, and `L` block outputs `[B, T, W]`, float32 and detached. ViT:
            the residual stream after the block, before the final norm, all tokens. ResNet: the map of each stage, with
            its positions as tokens.

        Raises:
            UserError: Images of another shape or size, or an image tower of a kind whose blocks are not known.
        """
        images = self._images(images)
        with self._blocks.recording() as outputs:
            features = self._features(self._visual(images))
        return features, outputs()

    def projection(self) -> Projection:
        """The linear map at the end of the image tower, apart from it.

        Raises:
            UserError: The tower ends in another way.
        """
        return Projection(self._visual)

    @torch.no_grad()
    def encode_unprojected(self, images: Tensor, projection: Projection) -> Tensor:
        """What the last projection maps to features, `[B, W]`, float32, of images `[B, 3, H, W]`."""
        return self._features(projection.inputs(self._images(images)), normalize=False)

    def describe(self) -> dict[str, Any]:
        """JSON-able facts for a run's record."""
        return {key: getattr(self, key) for key in ("name", "architecture", "tag", "weights_hash", "precision")} | {
            "compiled": self._compiled is not None,
            "activation": "quickgelu" if self.quick_gelu else "gelu",
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "embed_dim": self.embed_dim,
            "vision_widths": list(self._blocks.widths) if self._blocks.known else None,
            "text_width": self.text_width,
            "context_length": self.context_length,
            "image_size": list(self.image_size),
            "pixel_mean": list(self.pixel_mean),
            "pixel_std": list(self.pixel_std),
            "interpolation": self.interpolation,
            "resize_mode": self._preprocess.resize_mode,
            "logit_scale": float(self.logit_scale),
            "open_clip": open_clip.__version__,
        }

    def _images(self, images: Tensor) -> Tensor:
        """The images in the tower's dtype, once their shape is right."""
        if images.dim() != 4 or images.shape[1] != 3 or tuple(images.shape[2:]) != self.image_size:
            height, width = self.image_size
            raise UserError(f"{self.name} reads images [B, 3, {height}, {width}], got {list(images.shape)}")
        parameters = self._visual.parameters
        weight = next((parameter for parameter in parameters() if parameter.dim() == 4), next(parameters()))
        return images.to(weight.dtype).contiguous(memory_format=self._layout)

    def _features(self, out: Tensor | tuple[Tensor, ...], normalize: bool = True) -> Tensor:
        """Features, in float32 or wider, of what the image tower gives."""
        out = out[0] if isinstance(out, tuple) else out
        out = out.to(torch.promote_types(out.dtype, torch.float32))
        return F.normalize(out, dim=-1) if normalize else out


@shareable
def load_backbone(
    name: str,
    weights: str = "",
    device: str | torch.device = "cpu",
    precision: str = "fp32",
    compiled: bool = False,
    tokenizer: str = "",
) -> FrozenCLIP:
    """Load a frozen CLIP.

    Args:
        name: OpenAI's name (`ViT-B/16`), open_clip's pair `ARCH:TAG`, `ARCH:random`, a bare `ARCH` with `weights`,
            `hf-hub:ORGANISATION/NAME`, `local-dir:FOLDER`, or `IconsCLIP`.
        weights: A local file: safetensors, a state dict, OpenAI's JIT archive, an index of shards, or big_vision's
            numpy archive. With it no weights are downloaded. The configuration beside it says how it was trained.
        device: Where the model goes.
        precision: "fp32", "amp" (weights in float32; the trainer switches autocast on), "bf16" or "fp16" (weights of
            linear layers and convolutions in half precision, norms in float32; "fp16" on a GPU only).
        compiled: Whether to compile the image tower (`FrozenCLIP.compile_images`).
        tokenizer: A folder with a Hugging Face tokenizer (and, for a text tower of theirs, its `config.json`), in place
            of the one that the name stands for.

    Returns:
        The model. Neither loading nor random weights touch the global random state.

    Raises:
        UserError: Unknown names, weights that do not fit, an impossible precision.
        MissingFileError: Weights that are not at hand and cannot be downloaded.
    """
    device = torch.device(device)
    if precision not in PRECISIONS:
        raise UserError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    if precision == "fp16" and device.type == "cpu":
        raise UserError("precision 'fp16' needs a GPU; on the CPU take 'fp32', 'amp' or 'bf16'")
    source = replace(resolve(name, has_file=bool(weights)), tokenizer_folder=tokenizer)
    reader = source.tokenizer()
    state, form = None, ""
    if source.tag != RANDOM or weights:
        path = Path(weights).expanduser() if weights else source.weights()
        state, form = read_weights(path)
        named, source = source, _as_trained(source, path, state, form, given=bool(weights))
        if source.context_length != named.context_length:
            reader = source.tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_SEED)
        model = build_model(source, torch.float32)
        if state is None:
            logger.warning("backbone %s has RANDOM weights (seed %d): for tests and benchmarks only", name, RANDOM_SEED)
        elif form == NUMPY:
            load_numpy(model, path, name)
        else:
            load_into(model, state, str(path), name)
        weights_hash = hash_state(model.state_dict())
        if PRECISIONS[precision] != torch.float32:
            full, model = model, build_model(source, PRECISIONS[precision])
            model.load_state_dict(full.state_dict())
    require_activation(model, source)
    size = getattr(model.get_submodule("visual"), "image_size")  # noqa: B009 - no attribute that nn.Module declares
    try:
        preprocess = PreprocessCfg(**{"size": size, **source.preprocess})
        image_transform_v2(deepcopy(preprocess), is_train=False)
        frozen = FrozenCLIP(model, reader, source, preprocess, weights_hash, precision).to(device)
    except (TypeError, AssertionError, KeyError, IndexError, AttributeError) as error:
        raise UserError(f"{name}: its preprocessing {source.preprocess} cannot be built ({error!r})") from error
    if compiled:
        frozen.compile_images()
    logger.info("backbone %s (%s), weights %s, on %s", name, source.architecture, weights_hash[:12], device)
    return frozen


def _as_trained(source: Source, path: Path, state: dict[str, Tensor], form: str, given: bool) -> Source:
    """The source with the activation, preprocessing and text positions that its weights were trained with.

    `given`: the user named the file, so that the backbone's name alone says little of it.
    """
    if form == ARCHIVE:
        if not source.quick_gelu:
            logger.warning("%s is an archive of OpenAI's: %s has their quickgelu activation", path, source.name)
            source = replace(source, quick_gelu=True)
    elif given or source.folder is not None:
        described = describe_folder(path.parent, is_transformers(state))
        if described is not None:
            source = adopt(source, described, path)
        elif source.name in OPENAI_NAMES or (
            not source.tag and open_clip.get_pretrained_cfg(source.architecture, "openai")
        ):  # there are two models of this architecture, and the name alone tells which
            own, other, name = "quickgelu", "gelu", source.architecture
            if not source.quick_gelu:
                own, other, name = other, own, f"{source.architecture}:openai"
            logger.warning(
                "%s is no archive of OpenAI's, and no configuration lies beside it: it is read with the activation %s "
                "and the preprocessing that the name %s stands for; if it was trained with %s, name it %s",
                path, own, source.name, other, name,
            )  # fmt: skip
    text = source.config["text_cfg"]
    positions, tokens = text_positions(state), int(bool(text.get("embed_cls")))
    if positions is not None and "hf_model_name" not in text and positions - tokens != source.context_length:
        logger.warning(
            "%s has %d text positions: %s reads texts of that many tokens, not %d",
            path, positions - tokens, source.name, source.context_length,
        )  # fmt: skip
        source = replace(source, config={**source.config, "text_cfg": {**text, "context_length": positions - tokens}})
    return source
