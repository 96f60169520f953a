"""Plans evaluated on samples: prepared, journalled, gone on from."""
