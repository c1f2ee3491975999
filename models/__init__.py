"""Frozen bases with a trainable adapter."""
