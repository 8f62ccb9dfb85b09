"""Networks, targets, losses and decoding; knows nothing of data sets."""
