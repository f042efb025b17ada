"""The way out of a run: model folders, adapters, and what a tuned model says."""
