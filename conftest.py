"""Triton reads this variable when it is first imported, which the libraries that the tests import may do."""

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
