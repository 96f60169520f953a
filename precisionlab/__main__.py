"""`python -m precisionlab`."""

from precisionlab.cli import main

main()
