"""What a program gets that imports the package."""

import warnings

import torch

from geoopt_projunn import LowRankUnitary


def test_a_star_import_leaves_nn_alone():
    names = {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exec("from torch import nn\nfrom geoopt_projunn import *", names)
    assert names["nn"] is torch.nn
    assert names["LowRankUnitary"] is LowRankUnitary
