"""Find what changed: matched filter, candidates, flags."""
