"""Sums, products, means and concatenations of activations, as ONNX Runtime's integer operators.

Their kernels compute in float32, so each factor ``m / 2^c`` gets the largest ``c`` at which every intermediate result
is exact:

- sum: all partial sums of ``a * ma + b * mb + zero points`` are multiples of ``2^-c`` of magnitude at most
  ``255 * (ma + mb) / 2^c + 255``, so ``255 * (ma + mb + 2^c) < 2^24``;
- product: ``(a - za) * (b - zb) * m / 2^c`` is rounded after the zero point was added: ``c <= 15``;
- both round after the zero point was added, which is the same where it is even.

The mean's multiplier is odd: then no sum of up to 128 elements is a tie, and kernels that round ties away from zero
(ONNX Runtime's for Arm) agree too.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qcomp import graph, operators
from qcomp.errors import UnsupportedError
from qcomp.integer.requantize import LARGEST
from qcomp.operators import MICROSOFT
from qcomp.quantization.dyadic import EXACT_BITS, PRODUCT_SHIFT, SHIFT, Dyadic
from qcomp.rescale.site import Emitter, Site


def add(site: Site, emitter: Emitter) -> ir.Value:
    """``com.microsoft.QLinearAdd``."""
    factors = sum_factors(site.input_scale(0) / site.scale, site.input_scale(1) / site.scale)
    scales = [emitter.shared(factor.value, "factor") for factor in factors]
    pairs = [v for i, scale in enumerate(scales) for v in (site.integers(i), scale, site.zero(i))]
    return emitter.add(site, "QLinearAdd", [*pairs, emitter.one, site.zero_point], domain=MICROSOFT)


def sum_factors(left: float, right: float) -> tuple[Dyadic, Dyadic]:
    """The dyadic numbers nearest to the factors of a sum, as fine as float32 adds exactly.

    Args:
        left, right: positive; beyond 2^15 they are that, which saturates all the same.
    """
    least = 2.0**-SHIFT
    factors = [min(max(f, least), 2.0 ** (SHIFT - 1)) for f in (left, right)]
    for shift in range(SHIFT, -1, -1):
        found = [max(round(f * 2.0**shift), 1) for f in factors]
        if LARGEST * (sum(found) + 2**shift) < 2**EXACT_BITS:
            return Dyadic(np.asarray(found[0]), shift), Dyadic(np.asarray(found[1]), shift)
    raise AssertionError("at shift 0 the sum is below 2^24")


def multiply(site: Site, emitter: Emitter) -> ir.Value:
    """``com.microsoft.QLinearMul``."""
    factor = Dyadic.nearest(site.input_scale(0) * site.input_scale(1) / site.scale, PRODUCT_SHIFT)
    first = [site.integers(0), emitter.shared(factor.value, "factor"), site.zero(0)]
    second = [site.integers(1), emitter.one, site.zero(1)]
    return emitter.add(site, "QLinearMul", [*first, *second, emitter.one, site.zero_point], domain=MICROSOFT)


def global_average_pool(site: Site, emitter: Emitter) -> ir.Value:
    """``com.microsoft.QLinearGlobalAveragePool``, which divides its scale by the number of elements.

    Raises:
        UnsupportedError: the number is not static, or too large for float32.
    """
    count = counted(site)
    factor = mean_factor(site.input_scale() / site.scale / count, count)
    scale = np.asarray(count * float(factor.value), np.float32)
    if float(scale) != count * float(factor.value):
        hint = "leave it in float with --allow-float"
        raise UnsupportedError(f"it averages {count} elements at once", where=graph.describe(site.node), hint=hint)
    inputs = [site.integers(), emitter.shared(scale, "factor"), site.zero(), emitter.one, site.zero_point]
    return emitter.add(site, "QLinearGlobalAveragePool", inputs, {"channels_last": 0}, domain=MICROSOFT)


def counted(site: Site) -> int:
    """How many elements a mean takes.

    Raises:
        UnsupportedError: it is not static.
    """
    count = operators.averaged(site.node)
    if not count:
        what = "the number of elements it averages is not known"
        hint = "give the model a fixed height and width, or leave it in float with --allow-float"
        raise UnsupportedError(what, where=graph.describe(site.node), hint=hint)
    return count


def mean_factor(factor: float, count: int) -> Dyadic:
    """The nearest dyadic number with an odd multiplier, of which float32 holds ``count`` times.

    From 255 on every result saturates, and ONNX Runtime's kernel takes none from 256 on.
    """
    most, factor = (2**EXACT_BITS - 1) // count, min(factor, LARGEST)
    shift = next((c for c in range(SHIFT, 0, -1) if factor * 2.0**c < most), 0)
    odd = 2 * round((min(factor * 2.0**shift, most) - 1) / 2) + 1
    return Dyadic(np.asarray(max(odd if odd <= most else odd - 2, 1)), shift)


def concat(site: Site, emitter: Emitter) -> ir.Value:
    """``Concat`` where all scales and zero points agree, else ``com.microsoft.QLinearConcat``."""
    params = [(site.input_scale(i), int(reader.zero_point)) for i, reader in enumerate(site.inputs)]
    zero = graph.constant(site.zero_point)
    assert zero is not None
    attributes = site.node.attributes
    if all(found == (site.scale, int(zero)) for found in params):
        return emitter.add(site, "Concat", [site.integers(i) for i in range(len(params))], attributes)
    inputs = [emitter.one, site.zero_point]
    for i, (scale, _) in enumerate(params):
        factor = Dyadic.nearest(scale / site.scale, PRODUCT_SHIFT)
        inputs += [site.integers(i), emitter.shared(factor.value, "factor"), site.zero(i)]
    return emitter.add(site, "QLinearConcat", inputs, attributes, domain=MICROSOFT)
