"""The conformance suite: hard inputs, exact results, bounds of rounding, and the report."""
