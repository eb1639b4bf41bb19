"""`python -m metadnas_ext`."""

from metadnas_ext.cli import main

main()
