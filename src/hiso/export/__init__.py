"""What leaves a run: model folders, adapters, and predictions of the tuned model."""
