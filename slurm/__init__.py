"""Launching the roadmap: submission, the workers that carry it out, and their status."""
