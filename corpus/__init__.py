"""Genomes to sequences: readers of biological files and the preparation of pre-training corpora."""
