"""Frozen image towers: block outputs, the last projection apart, and self-attention fast in every precision.

Block outputs are those of open_clip's ViT and ResNet and of timm's towers. `nn.MultiheadAttention` has a fused kernel
for evaluation in float32 alone. Under autocast, and where gradients go through to the images, it projects transposed
rows, for which torch on the CPU copies the weights once for each token. Here rows are projected as they lie in memory,
by the same weights under the same names.

Shapes: `B` images, `L` blocks, `T` tokens of a block (positions of a ResNet stage), `W` width of a block, `H` heads,
`d = W / H`.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dassl_clip.results.errors import UserError

from .text_blocks import replace_rows


class VisionBlocks:
    """The blocks of an image tower, found once and listened to on request.

    Args:
        visual: The image tower of an open_clip model.
        image_size: Height and width of its images.
    """

    def __init__(self, visual: nn.Module, image_size: tuple[int, int]):
        self._kind = type(visual).__name__
        self._first_is_batch = True
        self._modules: list[nn.Module] = []
        self._widths: tuple[int, ...] = ()
        self._before: nn.Module | None = None  # what learned tokens are put in front of
        # open_clip and timm have no types.
        transformer: Any = getattr(visual, "transformer", None)
        trunk: Any = getattr(visual, "trunk", None)
        if hasattr(transformer, "resblocks"):
            self._modules = list(transformer.resblocks)
            self._first_is_batch = getattr(transformer, "batch_first", False)
            self._widths = tuple(block.ln_1.normalized_shape[-1] for block in transformer.resblocks)
            reads_class_token = getattr(visual, "pool_type", "") == "tok" and getattr(visual, "attn_pool", None) is None
            if self._first_is_batch and reads_class_token:
                self._before = getattr(visual, "ln_pre", None)
        elif hasattr(visual, "layer4"):
            stages: list[Any] = [visual.layer1, visual.layer2, visual.layer3, visual.layer4]
            self._modules = list(stages)
            self._widths = tuple(stage[-1].bn3.num_features for stage in stages)
        elif trunk is not None:
            self._modules = list(getattr(trunk, "blocks", None) or getattr(trunk, "stages", None) or ())
            self._widths = self._measure(visual, image_size)

    @property
    def known(self) -> bool:
        """Whether the tower's blocks are known."""
        return bool(self._widths)

    @property
    def widths(self) -> tuple[int, ...]:
        """Width of each block output, length `L`.

        Raises:
            UserError: The tower is of a kind whose blocks are not known.
        """
        if not self._widths:
            raise UserError(
                f"the image tower ({self._kind}) has no block outputs that are known here; methods that read them, "
                f"such as GOPro, need open_clip's ViT or ResNet (any of OpenAI's models) or a timm tower with blocks"
            )
        return self._widths

    @contextmanager
    def recording(self) -> Iterator[Callable[[], list[Tensor]]]:
        """Listen to the blocks during a pass; calling what is given afterwards returns `L` outputs `[B, T, W]`."""
        _ = self.widths  # known, or refused
        with self._listening() as outputs:
            yield lambda: [self._tokens(output.detach()) for output in outputs]

    @property
    def prompt_width(self) -> int:
        """`W`, of a tower that takes learned tokens beside those of the image.

        Raises:
            UserError: The tower is of another kind.
        """
        if self._before is None:
            raise UserError(
                f"the image tower ({self._kind}) takes no learned tokens; methods that learn some, such as MaPLe and "
                "PromptSRC, need a ViT of open_clip's that is read at its class token, as OpenAI's ViT-B/16 is"
            )
        return self._widths[0]

    @contextmanager
    def prompting(self, prompts: Sequence[Tensor]) -> Iterator[None]:
        """Learned tokens in the passes inside.

        `prompts[0]` `[M, W]` stand behind the image's tokens, without positions, from before the first norm on. Before
        block `i`, counted from 0, the last `M` tokens become `prompts[i]`, as far as there are so many.

        Raises:
            UserError: There are more of them than blocks, or they are of another shape, or the tower of another kind.
        """
        shapes = {tuple(tokens.shape) for tokens in prompts}
        width = self.prompt_width
        if not 1 <= len(prompts) <= len(self._modules) or len(shapes) != 1 or prompts[0].shape[1:] != (width,):
            raise UserError(
                f"this image tower takes learned tokens [M, {width}] for 1 to {len(self._modules)} blocks, got "
                f"{[list(tokens.shape) for tokens in prompts]}"
            )
        count = len(prompts[0])

        def appended(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return replace_rows(inputs[0], prompts[0], inputs[0].shape[1]), *inputs[1:]

        def replaced(module: nn.Module, inputs: tuple[Tensor, ...], number: int) -> tuple[Tensor, ...]:
            return replace_rows(inputs[0], prompts[number], inputs[0].shape[1] - count), *inputs[1:]

        assert self._before is not None
        handles = [self._before.register_forward_pre_hook(appended)]
        for number, module in enumerate(self._modules[1 : len(prompts)], start=1):
            handles.append(module.register_forward_pre_hook(partial(replaced, number=number)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def _listening(self) -> Iterator[list[Any]]:
        """Collect what the blocks put out, as they do."""
        outputs: list[Any] = []
        handles = [
            module.register_forward_hook(lambda module, inputs, output: outputs.append(output))
            for module in self._modules
        ]
        try:
            yield outputs
        finally:
            for handle in handles:
                handle.remove()

    def _tokens(self, output: Tensor) -> Tensor:
        """A block's output as `[B, T, W]` in float32."""
        output = output.to(torch.promote_types(output.dtype, torch.float32))
        if output.dim() == 4:
            return output.flatten(2).transpose(1, 2)
        return output if self._first_is_batch else output.transpose(0, 1)

    @torch.no_grad()
    def _measure(self, visual: nn.Module, image_size: tuple[int, int]) -> tuple[int, ...]:
        """Widths of the blocks of a timm tower, from the shapes of one pass; none if a shape is of another kind."""
        weight = next(visual.parameters())
        training = visual.training
        with self._listening() as outputs:
            visual.eval()(torch.zeros(1, 3, *image_size, dtype=weight.dtype, device=weight.device))
        visual.train(training)
        if not outputs or any(not isinstance(output, Tensor) or output.dim() not in (3, 4) for output in outputs):
            return ()
        return tuple(output.shape[1] if output.dim() == 4 else output.shape[2] for output in outputs)


class Projection:
    """The linear map at the end of an image tower, apart from the rest of it.

    Args:
        visual: The image tower of an open_clip model: a ViT with a projection, or a ResNet with attention pooling.

    Attributes:
        weight: `[W, E]`, on the left of which features of width `W` stand.
        bias: `[E]`, or None.

    Raises:
        UserError: The tower ends in another way.
    """

    def __init__(self, visual: nn.Module):
        self._visual = visual
        proj: Any = getattr(visual, "proj", None)
        last: Any = getattr(getattr(visual, "attnpool", None), "c_proj", None)
        if isinstance(proj, Tensor):
            self.weight, self.bias = proj.detach(), None
            self._identity = {"proj": torch.eye(len(proj)).to(proj)}
        elif isinstance(last, nn.Linear):
            self.weight, self.bias = last.weight.detach().T, last.bias.detach()
            self._identity = {
                "attnpool.c_proj.weight": torch.eye(last.in_features).to(last.weight),
                "attnpool.c_proj.bias": torch.zeros(last.in_features).to(last.weight),
            }
        else:
            raise UserError(
                f"the image tower ({type(visual).__name__}) does not end in a projection of its own, which this method "
                "learns; take open_clip's ViT or ResNet, such as any of OpenAI's models"
            )

    def inputs(self, images: Tensor) -> Tensor:
        """What is projected of images `[B, 3, H, W]`: `[B, W]`, from a pass with the identity in its place."""
        out: Any = torch.func.functional_call(self._visual, self._identity, (images,))
        inputs: Tensor = out[0] if isinstance(out, tuple) else out
        return inputs


class SelfAttention(nn.Module):
    """What `nn.MultiheadAttention` computes in evaluation mode of queries that are keys and values as well.

    Args:
        attention: The module whose weights are used; batches come first.
    """

    def __init__(self, attention: nn.MultiheadAttention):
        super().__init__()
        self.embed_dim, self.num_heads = attention.embed_dim, attention.num_heads
        self.in_proj_weight, self.in_proj_bias = attention.in_proj_weight, attention.in_proj_bias
        self.out_proj = attention.out_proj

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, need_weights: bool = False, attn_mask: Tensor | None = None
    ) -> tuple[Tensor, None]:
        """Attended tokens `[B, T, W]` of `query` `[B, T, W]`, and None in place of the weights.

        Args:
            query: The tokens.
            key: The same tensor.
            value: The same tensor.
            need_weights: Must be False.
            attn_mask: `[T, T]`, added to the scores, or None.

        Raises:
            UserError: Other keys or values, or weights that are asked for.
        """
        if key is not query or value is not query or need_weights:
            raise UserError("the image tower's attention is of its tokens among themselves, and gives no weights")
        batch, tokens, _ = query.shape
        joint = F.linear(query, self.in_proj_weight, self.in_proj_bias)  # [B, T, 3 W]
        q, k, v = joint.view(batch, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)  # each [B, H, T, d]
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)
        return self.out_proj(attended.transpose(1, 2).reshape(batch, tokens, self.embed_dim)), None


def use_fused_attention(visual: nn.Module) -> int:
    """Let the blocks of open_clip's image transformer attend by `SelfAttention`; returns how many do.

    Other towers stay as they are, and so does attention with several projections or with added keys and values.
    """
    blocks: Any = getattr(getattr(visual, "transformer", None), "resblocks", ())
    changed = 0
    for block in blocks:
        attn: Any = getattr(block, "attn", None)
        if type(attn) is not nn.MultiheadAttention or hasattr(block, "ln_1_kv"):
            continue
        if attn.batch_first and attn.in_proj_weight is not None and attn.bias_k is None and not attn.add_zero_attn:
            block.attn = SelfAttention(attn)
            changed += 1
    return changed
