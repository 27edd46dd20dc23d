"""Hashing-based image retrieval."""
