"""Reports of a run: figures by class, tables, pictures and the model card."""
