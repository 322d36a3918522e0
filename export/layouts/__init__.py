"""Layouts: how an export folder is arranged for one runtime or another.

All are made from the graphs that parity ran on; their weights stay byte for byte. Each layout is one file in
:mod:`.runtimes` and its template, and everything else asks the :mod:`.registry`.
"""
