"""GUE: the task table, checks of a download, a grid of fine-tuning runs, a report beside published numbers."""
