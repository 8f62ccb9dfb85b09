"""What is wrong with a set of detections: analysis, figures, report page."""
