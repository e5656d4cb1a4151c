"""Reference models: builders, export from PyTorch, and the small trained ones of the demo."""
