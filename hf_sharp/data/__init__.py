"""Class counts, labels, samplers, and loading of datasets."""
