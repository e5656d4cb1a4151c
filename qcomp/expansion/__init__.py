"""How integer operators with dyadic scales become standard ONNX operators on integers, fast in ONNX Runtime."""
