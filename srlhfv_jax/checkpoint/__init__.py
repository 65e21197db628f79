"""Checkpoints of a run: whole, checked, and only one run at a time.

manager       saves and restores by Orbax
manifest      seals over the files of a save, and the damage of them
provenance    settings, versions and rows that a resumed run must share
lock          one run for each workdir
"""
