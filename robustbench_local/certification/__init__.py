"""Certification: ReLU networks as linear layers, and exact searches over their activation regions."""
