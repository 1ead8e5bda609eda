"""The mathematics of bridges, on tensors: bridge, network, sampler, patches, anomaly score, checkpoint."""
