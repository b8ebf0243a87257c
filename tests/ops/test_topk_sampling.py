"""The draw among the k largest logits: every compiler gives the same bits.

Shapes: M rows, K candidates.
"""

import math

import numpy as np
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from masktuning.ops.topk_sampling import draw_weights


def test_no_compiler_can_fuse_a_product_of_the_draw_with_a_sum():
    """A product in float32 could be fused with a sum after it, which rounds once, not twice."""
    aten = torch.ops.aten
    nodes = list(make_fx(draw_weights)(torch.randn(3, 4), 0.7).graph.nodes)
    products = [node for node in nodes if node.target is aten.mul.Tensor]
    for product in products:
        assert not [
            user for user in product.users if user.target in (aten.add.Tensor, aten.sub.Tensor)
        ]
    # The products with log2(e) / temperature and in the polynomial; the last, with 2^24, is exact.
    dtypes = [product.meta["val"].dtype for product in products]
    assert dtypes == [torch.float64] * 6 + [torch.float32]
    # Some releases of Inductor drop a conversion of a conversion.
    conversions = [node for node in nodes if node.target is aten._to_copy.default]
    assert conversions and not [n for n in conversions if n.args[0].target is aten._to_copy.default]


def test_compiled_draws_have_the_same_bits():
    generator = torch.Generator().manual_seed(0)
    values = (20 * torch.randn(500, 8, generator=generator)).sort(1, descending=True).values
    with torch.no_grad():
        compiled = torch.compile(draw_weights, fullgraph=True)(values, 0.7)
    assert torch.equal(compiled, draw_weights(values, 0.7))


def expected_weight(value, best, scale):
    """The polynomial of the draw, one correctly rounded float32 operation after the other."""
    f32 = np.float32
    y = f32(f32(f32(value) - f32(best)) * f32(scale))
    y = y if y > -25 else f32(-25)
    whole = np.floor(y)
    f = f32(y - whole)
    power = f32(0.00186699)
    for coefficient in (0.00901733, 0.05579971, 0.2401645, 0.6931513, 1.0):
        power = f32(f32(power * f) + f32(coefficient))
    return math.floor(math.ldexp(float(power), int(whole) + 24))


def test_the_weights_are_those_of_float32_arithmetic():
    generator = torch.Generator().manual_seed(1)
    values = (5 * torch.randn(200, 8, generator=generator)).sort(1, descending=True).values
    scale = np.float32(math.log2(math.e) / 0.7)
    want = [[expected_weight(x, row[0], scale) for x in row] for row in values.numpy()]
    assert draw_weights(values, 0.7).tolist() == want
