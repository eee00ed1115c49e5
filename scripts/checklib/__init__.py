"""The rules behind scripts/check."""
