"""ColBERT-XM, a modular multi-vector retriever: encoder, scoring, losses, training, index and evaluation.

The notebooks in `notebooks/` are the way in; each module here holds one idea and says so in its first line.
Importing `xmlib` loads nothing heavy and changes nothing: import the module that you need.
"""

__version__ = "0.1.0"
