"""Scales of channels that move between the operators around them: which channels share one, and how to choose it."""
