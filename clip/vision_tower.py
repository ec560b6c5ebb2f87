"""What the blocks of an image tower put out, for open_clip's ViT and ResNet and for timm's towers.

Shapes: `B` images, `L` blocks, `T` tokens of a block (positions of a ResNet stage), `W` width of a block.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dassl_clip.results.errors import UserError


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
        # open_clip and timm have no types.
        transformer: Any = getattr(visual, "transformer", None)
        trunk: Any = getattr(visual, "trunk", None)
        if hasattr(transformer, "resblocks"):
            self._modules = list(transformer.resblocks)
            self._first_is_batch = getattr(transformer, "batch_first", False)
            self._widths = tuple(block.ln_1.normalized_shape[-1] for block in transformer.resblocks)
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
        self._require_known()
        return self._widths

    def _require_known(self) -> None:
        if not self._widths:
            raise UserError(
                f"the image tower ({self._kind}) has no block outputs that are known here; methods that read them, "
                f"such as GOPro, need open_clip's ViT or ResNet (any of OpenAI's models) or a timm tower with blocks"
            )

    @contextmanager
    def recording(self) -> Iterator[Callable[[], list[Tensor]]]:
        """Listen to the blocks during a pass; calling what is given afterwards returns `L` outputs `[B, T, W]`."""
        self._require_known()
        with self._listening() as outputs:
            yield lambda: [self._tokens(output.detach()) for output in outputs]

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
