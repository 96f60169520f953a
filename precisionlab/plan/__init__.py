"""A precision plan: the one thing that all else is made from."""
