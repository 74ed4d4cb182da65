"""For every test: no network, no window, nothing written into the checkout."""

import os
import shutil
import tempfile

import pytest


def pytest_configure(config):
    # Before any test module imports xmlib.paths, which reads these once.
    config.xmlib_folder = tempfile.mkdtemp(prefix="xmlib-tests-")
    for name in ("DATA", "RUNS", "FIGURES"):
        os.environ[f"XMLIB_{name}"] = os.path.join(config.xmlib_folder, name.lower())
    os.environ["XMLIB_PRECISION"] = "float32"  # so that equal means equal on every machine
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "MPLBACKEND": "Agg"}


def pytest_unconfigure(config):
    shutil.rmtree(config.xmlib_folder, ignore_errors=True)


def pytest_collection_modifyitems(items):
    on_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if not on_gpu:
        return  # importing torch takes seconds

    import torch

    if not torch.cuda.is_available():
        for item in on_gpu:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
