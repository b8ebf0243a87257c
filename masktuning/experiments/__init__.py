"""Comparisons of methods: the plan of runs, the study that shares them out, and the report."""
