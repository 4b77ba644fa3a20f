"""Class counts, labels, samplers, and the data sets that recipes and tests load."""
