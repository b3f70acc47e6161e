"""Benchmark protocols: categories beside peers, and nights of drift. Nothing is ever chosen on test images."""
