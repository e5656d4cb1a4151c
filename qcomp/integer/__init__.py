"""Operators that ONNX lacks in integers: their constants, their definition in NumPy, and their ONNX functions."""
