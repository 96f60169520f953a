"""Real models with labelled data, made ready for precisionlab: see `python -m examples.prepare --help`."""
