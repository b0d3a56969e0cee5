"""The stages chained."""
