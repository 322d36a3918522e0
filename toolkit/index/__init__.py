"""The caption index: texts with keys on disk, and exact search among them. No model is needed."""
