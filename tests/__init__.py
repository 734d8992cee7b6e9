"""Tests of the roadmap suite."""
