"""Files, evaluation, NMS, diagnosis of detections, figures, tables and progress."""
