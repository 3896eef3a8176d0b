"""One model held by several processes: the first decides what is decoded, and all decode it in step."""
