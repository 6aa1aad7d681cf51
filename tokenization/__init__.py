"""Byte Pair Encoding for DNA: exact training, fast exact encoding, k-mer baselines and the tokenizer study."""
