"""Prediction files, mAP and recall, the THUMOS14 protocol, fusion of scores."""
