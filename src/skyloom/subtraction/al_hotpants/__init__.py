"""Alard-Lupton subtraction with the options, products and conventions of HOTPANTS (Becker 2015)."""
