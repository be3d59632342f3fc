"""The result file: its schema, reading it, comparing several. Never imports torch."""
