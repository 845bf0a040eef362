"""Commands other than the pipeline's stages: data files, features, memory, scores, calibration, comparison."""
