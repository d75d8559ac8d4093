"""From image files to packed pixels."""
