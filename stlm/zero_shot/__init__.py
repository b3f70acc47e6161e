"""CLIP-SAM with cascaded prompts (Hou et al., arXiv 2510.11028): anomaly maps without training, and masks from maps."""
