"""masked_lm_head, forward and backward, compared with stock PyTorch and other fused heads.

The fused heads of Liger and cut-cross-entropy choose no token, so they do less than the others.
Above a bound on their size (with the larger GPU shape) ours computes the logits in chunks, and
twice.
Shapes: M masked positions, H width, V vocabulary.
"""

from importlib.util import find_spec

import pytest
import torch
import torch.nn.functional as F
from row_work import choose_and_substitute, make_rows
from timing import half_dtype

from masktuning.ops import backends, masked_lm_head

GPU = torch.cuda.is_available()
DEVICE, DTYPE = ("cuda", half_dtype()) if GPU else ("cpu", torch.float32)
SHAPES = [(205, 768, 30522), (3270, 768, 50265)] if GPU else [(102, 384, 30522)]
OURS = ["reference", "cpp", "cuda", "triton"]


@pytest.mark.parametrize("name", [*OURS, "eager", "liger", "cut-cross-entropy"])
@pytest.mark.parametrize(("M", "H", "V"), SHAPES)
def bench_masked_lm_head(benchmark, name, M, H, V):
    benchmark.group = f"masked_lm_head forward and backward M={M} H={H} V={V}"
    _, rows = make_rows(M, V, DTYPE, DEVICE)
    del rows["bias"]  # a separate operand here
    generator = torch.Generator().manual_seed(0)
    operands = [
        torch.randn(shape, generator=generator).to(DEVICE, DTYPE).requires_grad_()
        for shape in ((M, H), (V, H), (V,))
    ]
    targets = rows["targets"]
    if name in OURS:
        if backends.available()[name] or (name == "cpp" and GPU):
            pytest.skip(f"{name} does not run on {DEVICE} here")

        def loss():
            with backends.use(name):
                return masked_lm_head(*operands, **rows).losses.sum()

    elif name == "eager":

        def loss():
            logits = F.linear(*operands)
            choose_and_substitute(logits.detach().clone(), rows, 1)
            return F.cross_entropy(logits, targets, reduction="sum")

    elif not GPU or not find_spec(name.replace("-", "_").replace("liger", "liger_kernel")):
        pytest.skip(f"{name} is not here, or has no GPU")
    elif name == "liger":
        from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

        def loss():
            hidden, weight, bias = operands
            return liger_fused_linear_cross_entropy(hidden, weight, targets, bias, reduction="sum")

    else:
        from cut_cross_entropy import linear_cross_entropy

        def loss():  # it takes no bias
            return linear_cross_entropy(*operands[:2], targets, reduction="sum")

    def call():
        torch.autograd.grad(loss(), operands, allow_unused=True)
        if GPU:
            torch.cuda.synchronize()

    benchmark.pedantic(call, rounds=10, warmup_rounds=2)
