"""Showing a run: tables, report and gallery."""
