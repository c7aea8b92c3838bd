"""The tools: verification, identification, benchmark, plots, and the command ``vicreg``."""
