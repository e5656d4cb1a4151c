"""The numbers: types, scales, ranges and rounding. NumPy only."""
