"""Retrieval of texts for pictures: building the index, its embedders, and the fit of the query."""
