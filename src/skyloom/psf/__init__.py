"""Point spread functions: models, and their estimate from stars."""
