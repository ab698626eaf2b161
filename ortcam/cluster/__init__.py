"""Explain many photos on many machines: batches of Arrow tables, and a job of Ray Data that loses no photo.

`batch` needs pyarrow alone and suits any engine that hands out batches; `photos` lists the photos; `files` keeps a job's
folder; `work` and `ray` run a job. They need the packages of the extra ``ray``.
"""
