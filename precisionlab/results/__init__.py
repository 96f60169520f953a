"""What the jobs found, as values that can be written, read back and shown."""
