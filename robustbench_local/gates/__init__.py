"""Decisions for CI over result files. Never imports torch."""
