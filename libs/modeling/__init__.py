"""Networks, targets, losses and decoding; imports nothing of libs.datasets."""
