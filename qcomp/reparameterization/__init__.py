"""Channel-wise scale and shift moved between an activation and the operators around it."""
