"""What a quantization did, for people and programs."""
