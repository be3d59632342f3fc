"""Runs attacks over a data set: protocols, the cascade, batches, verification, the journal."""
