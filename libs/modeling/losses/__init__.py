"""What training minimizes: targets, detection and distillation losses."""
