"""Training: samples and augmentation, recipe, loop, state, inference and precision."""
