"""Recipes and suites run seed by seed, and shown beside what was published."""
