"""Time and memory of the loss, compared with the published formula and the bare products."""
