"""The conformance suite: hard inputs, an exact truth, the bounds of rounding, and what it says."""
