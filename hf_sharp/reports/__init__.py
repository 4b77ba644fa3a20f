"""Reports on a run: figures by class, tables, plots and the model card."""
