"""Serve predictions and explanations over the Open Inference Protocol, by REST and gRPC.

`protocol` reads and writes requests, `questions` and `answers` translate them, `worker` and `service` run models
without a network, and `rest`, `people` and `rpc` are the doors. The doors need the packages of the extra ``serve``.
"""
