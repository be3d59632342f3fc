"""Reads untrusted files safely, writes files atomically, escapes foreign text."""
