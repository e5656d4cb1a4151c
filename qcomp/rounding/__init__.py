"""Rounding of weights by what it does to a layer's output: samples of two models, their moments, and the search."""
