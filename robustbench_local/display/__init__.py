"""Everything drawn on a terminal."""
