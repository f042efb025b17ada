"""The methods that hiso is compared with, which send vectors: FedAvg and its kin, and FedZO."""
