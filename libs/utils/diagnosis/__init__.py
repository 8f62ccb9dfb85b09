"""Error analysis of detections: analysis, figures, report page."""
