"""The statistics of activations, collected with ONNX Runtime, and the data they come from."""
