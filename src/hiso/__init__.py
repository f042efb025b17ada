"""hiso: federated fine-tuning of language models that sends numbers, not tensors."""
