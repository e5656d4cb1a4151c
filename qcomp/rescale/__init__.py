"""From the Q/DQ graph to the integer graph: one operator between DequantizeLinear and QuantizeLinear at a time.

The integer graph holds ONNX Runtime's own integer operators, whose scales are dyadic numbers ``m / 2^c`` or 1, so that
float kernels and integer arithmetic agree (see `qcomp.quantization.dyadic`), ONNX operators on the integers themselves,
and functions of the domain ``qcomp``. It is what every integer backend reads.
"""
