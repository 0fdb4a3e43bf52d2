"""Procedures: several trainings in sequence, as functions that are given `fit`. They name no method."""
