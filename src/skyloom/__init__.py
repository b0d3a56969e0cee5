"""skyloom: register, drizzle, co-add and difference astronomical images, and find what changed in them."""

__version__ = "0.1.0"
