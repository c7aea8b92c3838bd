"""The functions that compute a loss: one file for each family."""
