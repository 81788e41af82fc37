"""From a checkpoint to ONNX: graphs, quantisation, verification.

`metadata` and `decode_np` need no torch and no onnx: they are what a program that only runs a file uses.
"""
