"""NMS, evaluation, schedules, weight average, atomic file I/O."""
