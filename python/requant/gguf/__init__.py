"""GGUF, the file format of llama.cpp: its blocks, its files, and models and checkpoints written as such files."""
