"""The data sets and formats that can be read: one file each."""
