"""Times and memory of the loss beside the published formula and the bare products."""
