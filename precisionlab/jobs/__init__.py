"""The jobs, one module each: what a command calls, as a page that reads like its flow."""
