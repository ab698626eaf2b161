"""Explain many photos on many machines: batches of Arrow tables, and a job of Ray Data that loses no photo.

`batch` needs pyarrow alone, and suits any engine that hands out batches. `photos` lists the photos of a job, `folder`
keeps its files, `work` explains a part of it, `crew` counts the workers, and `ray` runs it. They need
the packages of the extra ``ray``.
"""
