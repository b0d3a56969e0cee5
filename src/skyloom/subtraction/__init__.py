"""Match a template to a science image and subtract it."""
