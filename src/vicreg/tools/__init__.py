"""What verifies, identifies, times and shows: the command ``vicreg`` and what it runs."""
