"""Retrieval of texts for pictures: the caption index, its embedders, the fit of the query, and the prompt's prefix."""
