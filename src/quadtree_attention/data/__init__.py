"""Images, datasets, and generators of synthetic pairs."""
