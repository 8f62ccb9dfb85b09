"""Raw video: decoding, optical flow, clips, features."""
