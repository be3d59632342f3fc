"""Runs attacks over a dataset: protocols, the cascade, batches, verification, the journal."""
