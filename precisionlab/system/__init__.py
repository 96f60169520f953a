"""What touches the machine: files, locks, processes, other people's code; nothing here knows a model."""
