"""The paper's perturbation (arXiv 2307.10457): masked tokens are replaced by predictions.

Shapes: B examples, L tokens.
"""

from __future__ import annotations

from torch import Tensor

from masktuning.data.batch import Batch
from masktuning.methods.perturbations.base import Perturbed, Strategy
from masktuning.ops import MaskedLMOutput


class MaskedLMPredictions(Strategy):
    """The masked LM's own predictions of the step: the most likely tokens, or a draw by `top_k`.

    Equivalent to::

        x_hat[masked] = mlm_logits_MV.argmax(1)
    """

    predicts = True

    def perturb(self, batch: Batch, rng: Tensor, output: MaskedLMOutput | None) -> Perturbed:
        """See `Strategy.perturb`."""
        assert output is not None
        return Perturbed(output.input_ids, **batch.texts())
