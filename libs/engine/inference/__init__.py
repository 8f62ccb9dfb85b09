"""From a model to detections: prediction, evaluation, candidates, the sweep over NMS settings."""
