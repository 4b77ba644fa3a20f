"""What a run reports: metrics per class, tables, plots and the model card."""
