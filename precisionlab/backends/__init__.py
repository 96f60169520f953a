"""What builds a variant and runs it."""
