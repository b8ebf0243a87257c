"""`--alpha auto`: the weight of the masked-LM loss, set from the norms of both terms' gradients."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from masktuning.modeling.encoder_layers import encoder_layers

START = 0.1
"""Alpha in the first step, before anything has been measured."""
SHARE = 0.1
"""The masked-LM term's gradient is to have this share of the norm of the classifier's."""
_MOST = 0.5  # alpha, so that a masked LM that has little left to learn leaves the classifier a say
_MEMORY = 0.9  # of the running means of the norms, so that they follow about the last ten steps


class GradientBalance(nn.Module):
    """Sets alpha so that the masked-LM gradient has a fixed share of the classifier's norm.

    With g_MLM and g_CLS the gradients of the two losses, unweighted, on the last encoder layer, and
    running means of their norms,

        alpha = min(1/2, SHARE * |g_CLS| / (|g_MLM| + SHARE * |g_CLS|)),

    so that alpha * |g_MLM| = SHARE * (1 - alpha) * |g_CLS|, or less. The norms of a step set the
    alpha of the next one: they are parts of the gradients that the step computes anyway, and need
    no second backward pass. They are those of a whole optimiser step, over all of its micro-batches
    and processes, and are saved with the checkpoint, so alpha does not depend on how a batch is
    split or on a resume. Measuring on the last shared layer alone follows GradNorm (Chen et al.,
    2018, arXiv 1711.02257, section 3).
    """

    norms: Tensor
    """[2] float32, running means of |g_MLM| and |g_CLS|; zeros before the first measurement."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("norms", torch.zeros(2))

    def alpha(self) -> Tensor:
        """The current alpha, a tensor of no dimensions on the device, so that nothing waits."""
        mlm, cls = self.norms.unbind()
        wanted = (SHARE * cls / (mlm + SHARE * cls)).clamp(max=_MOST)
        return torch.where((mlm > 0) & (cls > 0), wanted, START)

    @torch.no_grad()
    def update(self, weighted_mlm: Tensor, weighted_cls: Tensor) -> None:
        """Averages in the norms of a step's gradients, of alpha * L_MLM and (1 - alpha) * L_CLS.

        A step without a masked token, or one with an overflow, changes nothing.
        """
        alpha = self.alpha()
        new = torch.stack([weighted_mlm / alpha, weighted_cls / (1 - alpha)]).to(self.norms)
        mean = torch.where(self.norms > 0, _MEMORY * self.norms + (1 - _MEMORY) * new, new)
        usable = torch.isfinite(new).all() & (new > 0).all()
        self.norms.copy_(torch.where(usable, mean, self.norms))


def last_layer_parameters(encoder: nn.Module) -> list[nn.Parameter]:
    """The parameters of the encoder's last layer that are trained, or else all that are."""
    layers = [*encoder_layers(encoder)]
    last = [p for p in layers[-1].parameters() if p.requires_grad] if layers else []
    return last or [p for p in encoder.parameters() if p.requires_grad]
