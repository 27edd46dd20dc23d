"""Rows -> CSV, LaTeX, text and figures. Reads result rows only: no configuration files, no torch."""
