"""Results as CSV and HTML. This room sees results, never backends."""
