"""Find the transform between two images from their sources."""
